# SPDX-License-Identifier: Apache-2.0
"""Handlers of locks: POSIX record locks and flock(2) locks on the host.

They also hold against processes of the host and other guests.
"""

from __future__ import annotations

import errno
import fcntl
from functools import partial
from typing import Any

from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.filesystem import FileSystem, Lock, OperationDeferred
from farwatchd.fuse.reply import EMPTY, Handler, Reply
from farwatchd.fuse.request import Request, invalid
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.linux.libc import OFFSET_MAX
from farwatchd.wire.fuse import LK_FLOCK, Opcode, lk_in, lk_out

_KINDS = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)


class LockHandlers:
    """Decode a request and call the file system; blocking locks are pending in ``locks``."""

    def __init__(self, fs: FileSystem, locks: BlockingLocks, pool: ThreadPool) -> None:
        self._fs = fs
        self._locks = locks
        self._pool = pool
        self._posix = self._flock = False

    def use(self, posix: bool, flock: bool) -> None:
        """Choose which kinds of locks are taken on the host, as INIT negotiated."""
        self._posix, self._flock = posix, flock

    def table(self) -> dict[int, Handler]:
        """Return the handlers by opcode."""
        return {
            Opcode.GETLK: Handler(self._getlk, lk_in.size, lk_out.size),
            Opcode.SETLK: Handler(self._setlk, lk_in.size),
            Opcode.SETLKW: Handler(self._setlkw, lk_in.size),
        }

    def _getlk(self, request: Request) -> Reply:
        args = lk_in.unpack_from(request.args)
        if not self._posix:
            raise OSError(errno.ENOSYS, "was not negotiated")
        if args.lk_flags:
            raise invalid("unknown flags of GETLK")
        return self._pool.run(
            request, _found, self._fs.getlk, request.nodeid, args.fh, args.owner, _lock(args)
        )

    def _setlk(self, request: Request) -> Reply:
        return self._pool.run(request, self._done, self._set, request.nodeid, request.args)

    def _setlkw(self, request: Request) -> Reply:
        attempt = partial(self._set, request.nodeid, request.args)
        try:
            return self._done(attempt())
        except BlockingIOError:
            return self._locks.add(request.unique, attempt)
        except OperationDeferred as deferred:
            return self._locks.add(request.unique, attempt, deferred, self._pool.run_then)

    def _done(self, _: None) -> bytes:
        """Return the reply; what was set may release others' locks."""
        self._locks.released()
        return EMPTY

    def _set(self, nodeid: int, arguments: bytes) -> None:
        args = lk_in.unpack_from(arguments)
        if args.lk_flags & ~LK_FLOCK:
            raise invalid("unknown flags of a lock")
        flock = bool(args.lk_flags & LK_FLOCK)
        if not (self._flock if flock else self._posix):
            raise OSError(errno.ENOSYS, "was not negotiated")
        lock = _lock(args)
        if flock:
            self._fs.flock(nodeid, args.fh, lock.kind)
        else:
            self._fs.setlk(nodeid, args.fh, args.owner, lock)


def _found(lock: Lock | None) -> bytes:
    """Return the reply to GETLK."""
    if lock is None:
        return lk_out.pack(lk_type=fcntl.F_UNLCK)
    return lk_out.pack_values(lock.start, lock.end, lock.kind, lock.pid)


def _lock(args: Any) -> Lock:
    start, end, kind, pid = args.lk_start, args.lk_end, args.lk_type, args.lk_pid
    if kind not in _KINDS or not start <= end <= OFFSET_MAX:
        raise invalid("not a lock")
    return Lock(kind, start, end, pid)
