# SPDX-License-Identifier: Apache-2.0
"""Reaching an object of which only an O_PATH descriptor is held: by its link in /proc/self/fd.

Such a link leads to the object itself, wherever it has been moved to and even if it is a symbolic
link, and cannot be influenced by the guest. In the sandbox /proc has no name any more, but
/proc/self/fd is the current directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import file_system_type

_PROC_SUPER_MAGIC = 0x9FA0


class ProcFd:
    """The directory /proc/self/fd, by name or as the current directory, as it is when this is
    made."""

    def __init__(self) -> None:
        self._prefix = "" if _current_directory_is_proc() else "/proc/self/fd/"

    def path(self, fd: int) -> str:
        """A path that leads to what ``fd`` refers to, when followed."""
        return f"{self._prefix}{fd}"

    def reopen(self, fd: int, flags: int) -> int:
        """Another descriptor of what ``fd`` refers to; the offset is its own."""
        return open_at(self.path(fd), flags)


def open_at(path: str | bytes, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
    """``os.open`` for the guest: see ``own_limit_as_systems``."""
    # Not with the context manager: this is called for every lookup, and most names that are looked
    # up are not there.
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    except OSError as error:
        raise as_systems_limit(error) from None


@contextlib.contextmanager
def own_limit_as_systems() -> Iterator[None]:
    """Report the daemon's own limit of descriptors as the system's, since it is not the guest
    process's own."""
    try:
        yield
    except OSError as error:
        raise as_systems_limit(error) from None


def as_systems_limit(error: OSError) -> OSError:
    """What to raise for an error, by ``own_limit_as_systems``."""
    return failure(errno.ENFILE) if error.errno == errno.EMFILE else error


def _current_directory_is_proc() -> bool:
    try:
        return file_system_type(b".") == _PROC_SUPER_MAGIC
    except OSError:
        return False
