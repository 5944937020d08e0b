# SPDX-License-Identifier: Apache-2.0
"""Handlers of attributes, extended attributes, and the file system as a whole."""

from __future__ import annotations

import errno
from collections.abc import Callable

from farwatchd.fuse import encode
from farwatchd.fuse.encode import Encoder
from farwatchd.fuse.extensions import XATTR_SIZE_MAX
from farwatchd.fuse.filesystem import Changes, FileSystem, OperationDeferred
from farwatchd.fuse.reply import Handler, Reply
from farwatchd.fuse.request import (
    Request,
    check_int,
    check_offset,
    check_xattr_name,
    invalid,
)
from farwatchd.fuse.thread_pool import ThreadPool, nothing
from farwatchd.linux.libc import NANOSECONDS, NO_ID
from farwatchd.wire.fuse import (
    COMPAT_SETXATTR_IN_SIZE,
    GETATTR_FH,
    SETXATTR_ACL_KILL_SGID,
    Opcode,
    SetattrValid,
    attr_out,
    getattr_in,
    getxattr_in,
    getxattr_out,
    setattr_in,
    setxattr_in,
    statfs_out,
    statx_in,
    statx_out,
)

_MODE, _UID, _GID, _SIZE = (
    int(v) for v in (SetattrValid.MODE, SetattrValid.UID, SetattrValid.GID, SetattrValid.SIZE)
)
_ATIME, _MTIME = int(SetattrValid.ATIME), int(SetattrValid.MTIME)
_ATIME_NOW, _MTIME_NOW = int(SetattrValid.ATIME_NOW), int(SetattrValid.MTIME_NOW)
_FH, _KILL = int(SetattrValid.FH), int(SetattrValid.KILL_SUIDGID)


class AttributeHandlers:
    """Decode a request, call the file system, encode the reply."""

    def __init__(self, fs: FileSystem, pool: ThreadPool) -> None:
        """``pool`` runs tasks that may take long."""
        self._fs = fs
        self._pool = pool
        self._encode = Encoder(fs.timeout)
        self._setxattr_in_size = COMPAT_SETXATTR_IN_SIZE

    def use_setxattr_ext(self, extended: bool) -> None:
        """Choose whether SETXATTR has its long form, as INIT negotiated."""
        self._setxattr_in_size = setxattr_in.size if extended else COMPAT_SETXATTR_IN_SIZE

    def table(self) -> dict[int, Handler]:
        """Return the handlers by opcode."""
        return {
            Opcode.GETATTR: Handler(self._getattr, getattr_in.size, attr_out.size),
            Opcode.SETATTR: Handler(self._setattr, setattr_in.size, attr_out.size),
            Opcode.STATX: Handler(self._statx, statx_in.size, statx_out.size),
            Opcode.STATFS: Handler(self._statfs, 0, statfs_out.size),
            Opcode.SYNCFS: Handler(self._syncfs),
            Opcode.SETXATTR: Handler(self._setxattr, COMPAT_SETXATTR_IN_SIZE + 1),
            Opcode.GETXATTR: Handler(self._getxattr, getxattr_in.size + 1),
            Opcode.LISTXATTR: Handler(self._listxattr, getxattr_in.size),
            Opcode.REMOVEXATTR: Handler(self._removexattr, 1),
        }

    def _getattr(self, request: Request) -> Reply:
        flags, _, fh = getattr_in.values(request.args)
        try:
            return self._encode.attr(
                self._fs.getattr(request.nodeid, fh if flags & GETATTR_FH else None)
            )
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, self._encode.attr)

    def _setattr(self, request: Request) -> Reply:
        args = setattr_in.unpack_from(request.args)
        valid = args.valid
        if valid & _SIZE:
            check_offset(args.size)
        if valid & _MODE:
            check_int(args.mode)
        if (valid & _UID and args.uid == NO_ID) or (valid & _GID and args.gid == NO_ID):
            raise invalid("not an owner")
        changes = Changes(
            mode=args.mode if valid & _MODE else None,
            uid=args.uid if valid & _UID else None,
            gid=args.gid if valid & _GID else None,
            size=args.size if valid & _SIZE else None,
            atime_ns=_time(valid & _ATIME, valid & _ATIME_NOW, args.atime, args.atimensec),
            mtime_ns=_time(valid & _MTIME, valid & _MTIME_NOW, args.mtime, args.mtimensec),
            fh=args.fh if valid & _FH else None,
            kill_suidgid=bool(valid & _KILL),
        )
        try:
            return self._encode.attr(self._fs.setattr(request.nodeid, changes))
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, self._encode.attr)

    def _statx(self, request: Request) -> Reply:
        args = statx_in.unpack_from(request.args)
        fh = args.fh if args.getattr_flags & GETATTR_FH else None
        return self._pool.run(request, self._encode.statx, self._fs.statx, request.nodeid, fh)

    def _statfs(self, request: Request) -> Reply:
        return self._pool.run(request, encode.statfs, self._fs.statfs, request.nodeid)

    def _syncfs(self, request: Request) -> Reply:
        return self._pool.submit(request, self._fs.syncfs(request.nodeid), nothing)

    def _setxattr(self, request: Request) -> Reply:
        fixed = self._setxattr_in_size
        args = setxattr_in.unpack_from(request.args[:fixed].ljust(setxattr_in.size, b"\0"))
        name = request.strings(fixed, 1)[0]
        check_xattr_name(name)
        check_int(args.flags)
        if args.size > XATTR_SIZE_MAX:
            raise OSError(errno.E2BIG, "an attribute's value is too long")
        start = fixed + len(name) + 1
        value = request.args[start : start + args.size]
        if len(value) < args.size:
            raise invalid("a short value")
        kill = bool(args.setxattr_flags & SETXATTR_ACL_KILL_SGID)
        return self._pool.run(
            request, nothing, self._fs.setxattr, request.nodeid, name, value, args.flags, kill
        )

    def _getxattr(self, request: Request) -> Reply:
        name = request.strings(getxattr_in.size, 1)[0]
        check_xattr_name(name)
        return self._pool.run(request, _sized(request), self._fs.getxattr, request.nodeid, name)

    def _listxattr(self, request: Request) -> Reply:
        sized = _sized(request)
        return self._pool.run(
            request,
            lambda names: sized(b"".join(name + b"\0" for name in names)),
            self._fs.listxattr,
            request.nodeid,
        )

    def _removexattr(self, request: Request) -> Reply:
        name = request.strings(0, 1)[0]
        check_xattr_name(name)
        return self._pool.run(request, nothing, self._fs.removexattr, request.nodeid, name)


def _sized(request: Request) -> Callable[[bytes], bytes]:
    """Return what makes a reply of a value: the value if it fits the requested size.

    It is the value's size if that is 0. ERANGE: the value is longer.
    """
    size, room = getxattr_in.unpack_from(request.args).size, request.room

    def encoded(value: bytes) -> bytes:
        if size == 0:
            reply = getxattr_out.pack_values(len(value), 0)
            if len(reply) > room:
                raise invalid("no room for a size")
            return reply
        if len(value) > min(size, room):
            raise OSError(errno.ERANGE, "an attribute does not fit")
        return value

    return encoded


def _time(given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if now:
        return Changes.NOW
    if not given:
        return None
    if nanoseconds >= NANOSECONDS:
        raise invalid("a time with too many nanoseconds")
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * NANOSECONDS + nanoseconds
