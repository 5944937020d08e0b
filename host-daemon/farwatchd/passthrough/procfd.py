# SPDX-License-Identifier: Apache-2.0
"""Reaches an inode by its link in /proc/self/fd when only an O_PATH descriptor is open.

Such a link refers to the inode itself, wherever it was moved and even if it is a symbolic link; the
guest cannot influence it. In the sandbox no path leads to /proc, but /proc/self/fd is the current
directory.
"""

from __future__ import annotations

import errno
import os

from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import file_system_type

_PROC_SUPER_MAGIC = 0x9FA0


class ProcFd:
    """The directory /proc/self/fd, by path or as the current directory.

    Which of them, is found out when this is made.
    """

    def __init__(self) -> None:
        #: What precedes a descriptor's number in the path of its inode.
        self.prefix = "" if _current_directory_is_proc() else "/proc/self/fd/"

    def path(self, fd: int) -> str:
        """Return a path that refers to the inode of ``fd`` when it is followed."""
        return f"{self.prefix}{fd}"

    def target(self, fd: int) -> bytes:
        """Return where the inode of ``fd`` is, as this process sees it."""
        return os.readlink(os.fsencode(f"{self.prefix}{fd}"))  # noqa: PTH115

    def reopen(self, fd: int, flags: int) -> int:
        """Open the inode of ``fd`` again and return the new descriptor; its offset is its own."""
        # As open_at() does, without two calls: this is a part of every open(2) of the guest.
        try:
            return os.open(f"{self.prefix}{fd}", flags | os.O_CLOEXEC)
        except OSError as error:
            raise as_systems_limit(error) from None


def open_at(path: str | bytes, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
    """``os.open`` for the guest: see ``as_systems_limit``."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    except OSError as error:
        raise as_systems_limit(error) from None


def as_systems_limit(error: OSError) -> OSError:
    """Return the error to raise for ``error``: the daemon's own limit of descriptors is ENFILE.

    EMFILE would say that the guest's process has too many.
    """
    return failure(errno.ENFILE) if error.errno == errno.EMFILE else error


def _current_directory_is_proc() -> bool:
    try:
        return file_system_type(b".") == _PROC_SUPER_MAGIC
    except OSError:
        return False
