# SPDX-License-Identifier: Apache-2.0
"""The directory of ``--state-dir``: checked, locked, and its files opened.

No descriptor of the directory itself is kept: it would lead out of the sandbox.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from farwatchd.config import UserError
from farwatchd.state_dir.descriptor_store import DescriptorStore, connect

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NAMES = ("in-flight", "journal.0", "journal.1")
#: Seconds to wait for a daemon that is about to end.
_LOCK_LIMIT = 5.0
_LOCK_DELAY = 0.02


class StateFiles(NamedTuple):
    """The descriptors of the state's files. The first one has the lock on all."""

    in_flight: int
    journals: tuple[int, int]
    store: DescriptorStore


def open_state_dir(path: Path, shared_dir: Path, *, lock: bool = True) -> StateFiles:
    """Open the files of a state directory, which is made if it is missing; ``UserError``.

    The caller owns the descriptors. Without ``lock`` the caller gets the lock of a running daemon.
    """
    directory = path.absolute()
    if directory.resolve().is_relative_to(shared_dir.resolve()):
        raise _unusable(path, "it is in the shared directory, where the guest can change it")
    opened: list[int] = []
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(0o700)
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check(path, os.fstat(place))
            for name in _NAMES:
                opened.append(os.open(name, _FLAGS, 0o600, dir_fd=place))
                _check_file(path, name, os.fstat(opened[-1]))
            if lock:
                _lock(path, opened[0])
            store = connect(place)
        finally:
            os.close(place)
    except OSError as error:
        _close(opened)
        raise _unusable(path, error.strerror or str(error)) from error
    except UserError:
        _close(opened)
        raise
    return StateFiles(opened[0], (opened[1], opened[2]), store)


def _check(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _unusable(path, f"user {status.st_uid} owns it, and not user {os.geteuid()}")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise _unusable(path, "others may write it; use chmod go-w")


def _check_file(path: Path, name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _unusable(path, f"{name} in it is no regular file of its own")
    if status.st_uid != os.geteuid():
        raise _unusable(path, f"user {status.st_uid} owns {name} in it")


def _lock(path: Path, fd: int) -> None:
    deadline = time.monotonic() + _LOCK_LIMIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return
        if time.monotonic() > deadline:
            raise _unusable(path, "another daemon uses it")
        time.sleep(_LOCK_DELAY)


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"--state-dir={path}: {reason}")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
