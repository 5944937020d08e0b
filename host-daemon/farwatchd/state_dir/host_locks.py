# SPDX-License-Identifier: Apache-2.0
"""Takes locks on the host again: those of a former process, or those released meanwhile."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from farwatchd.fuse.filesystem import Lock, OperationDeferred
from farwatchd.passthrough.passthrough_fs import PassthroughFs

#: Seconds between attempts.
_RETRY_DELAY = 0.02


class OwnersLocks(NamedTuple):
    """The locks of an owner on an inode, and the open files through which it took any."""

    nodeid: int
    owner: int
    handles: list[int]
    locks: list[Lock]


class HostLocks:
    """Takes locks; where another process has one meanwhile, the files become errors."""

    def __init__(self, fs: PassthroughFs) -> None:
        self._fs = fs
        self._share = fs.share
        #: Lock owners and open files that have lost their locks.
        self.lost = 0

    def flock(self, fh: int, kind: int, deadline: float = 0.0) -> None:
        """Take a lock of an open file, until ``deadline`` (monotonic) if need be."""
        file = self._share.open_files.find(fh)
        if file is None:
            return
        try:
            _until(deadline, self._fs.flock, file.nodeid, fh, kind)
        except OSError:
            self.lost += 1
            self._lose(file.nodeid, [fh])

    def posix(self, held: OwnersLocks, deadline: float = 0.0) -> None:
        """Take the POSIX locks of an owner, until ``deadline`` (monotonic) if need be."""
        nodeid, owner = held.nodeid, held.owner
        files = [fh for fh in held.handles if self._share.open_files.find(fh) is not None]
        try:
            if not files:
                raise BlockingIOError
            for lock in held.locks:
                _until(deadline, self._fs.setlk, nodeid, files[0], owner, lock)
            self._share.locks.add_handles(nodeid, owner, files)
        except OSError:
            self.lost += 1
            self._share.locks.close(nodeid, owner)
            self._lose(nodeid, files)

    def release_all(self) -> tuple[list[OwnersLocks], dict[int, int]]:
        """Release all locks; return what takes them again: those of owners, and of open files."""
        owners = []
        for nodeid, owner in self._share.locks.owners():
            locks, handles = self._share.locks.of_owner(nodeid, owner)
            owners.append(OwnersLocks(nodeid, owner, sorted(handles), list(locks)))
        for held in owners:
            self._share.locks.close(held.nodeid, held.owner)
        files = {
            fh: file.flock for fh, file in self._share.open_files.all() if file.flock is not None
        }
        for fh in files:
            file = self._share.open_files.find(fh)
            assert file is not None
            _wait(self._fs.flock, file.nodeid, fh, fcntl.F_UNLCK)
        return owners, files

    def _lose(self, nodeid: int, files: Iterable[int]) -> None:
        """Have each use of open files be an error, and of those that share locks with them."""
        # Of each owner to all of its files, and so on: the guest can make that chain of any length.
        left = list(files)
        while left:
            fh = left.pop()
            if self._share.open_files.find(fh) is None:
                continue
            others = [
                (owner, self._share.locks.of_owner(of, owner)[1])
                for of, owner in self._share.locks.owners()
                if of == nodeid
            ]
            for owner, handles in others:
                if fh in handles:
                    self._share.locks.close(nodeid, owner)
                    left += handles
            self._share.open_files.lose(nodeid, fh)


def _until(deadline: float, operation: Callable[..., object], *args: object) -> None:
    """Perform an operation, again and again while another process has the lock."""
    while True:
        try:
            _wait(operation, *args)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_DELAY)
        else:
            return


def _wait(operation: Callable[..., object], *args: object) -> None:
    """Perform an operation, also where a server has to answer: nothing is served meanwhile."""
    try:
        operation(*args)
    except OperationDeferred as deferred:
        deferred.wait()
