# SPDX-License-Identifier: Apache-2.0
"""Handlers of directory entries: look up, make, remove, rename, and symbolic links."""

from __future__ import annotations

import errno

from farwatchd.fuse import encode
from farwatchd.fuse.encode import Encoder
from farwatchd.fuse.filesystem import Entry, FileSystem, OpenResult, OperationDeferred
from farwatchd.fuse.killpriv import KillPriv
from farwatchd.fuse.reply import EMPTY, NOT_FOUND, Handler, Reply
from farwatchd.fuse.request import TARGET_MAX, Request, check_int, check_name, invalid
from farwatchd.fuse.thread_pool import ThreadPool, nothing
from farwatchd.linux.libc import failure
from farwatchd.wire.fuse import (
    Opcode,
    create_in,
    entry_out,
    link_in,
    mkdir_in,
    mknod_in,
    open_out,
    rename2_in,
    rename_in,
)


class NamespaceHandlers:
    """Decode a request, call the file system, encode the reply."""

    def __init__(self, fs: FileSystem, killpriv: KillPriv, pool: ThreadPool) -> None:
        """``pool`` runs the tasks of deferred operations."""
        self._fs = fs
        self._pool = pool
        self._killpriv = killpriv
        self._encode = Encoder(fs.timeout)

    def table(self) -> dict[int, Handler]:
        """Return the handlers by opcode."""
        entry = entry_out.size
        created = entry_out.size + open_out.size
        return {
            Opcode.LOOKUP: Handler(self._lookup, 2, entry),
            Opcode.SYMLINK: Handler(self._symlink, 3, entry),
            Opcode.MKNOD: Handler(self._mknod, mknod_in.size + 2, entry),
            Opcode.MKDIR: Handler(self._mkdir, mkdir_in.size + 2, entry),
            Opcode.UNLINK: Handler(self._unlink, 2),
            Opcode.RMDIR: Handler(self._rmdir, 2),
            Opcode.RENAME: Handler(self._rename, rename_in.size + 4),
            Opcode.RENAME2: Handler(self._rename2, rename2_in.size + 4),
            Opcode.LINK: Handler(self._link, link_in.size + 2, entry),
            Opcode.CREATE: Handler(self._create, create_in.size + 2, created),
            Opcode.TMPFILE: Handler(self._tmpfile, create_in.size, created),
            Opcode.READLINK: Handler(self._readlink),
        }

    def _lookup(self, request: Request) -> Reply:
        try:
            entry = self._fs.lookup(request.nodeid, request.name(0))
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, self._looked_up)
        return NOT_FOUND if entry is None else self._encode.entry(entry)

    def _looked_up(self, entry: Entry | None) -> bytes:
        if entry is None:
            raise failure(errno.ENOENT)
        return self._encode.entry(entry)

    def _symlink(self, request: Request) -> Reply:
        name, target = request.strings(0, 2)
        check_name(name)
        if not target:
            raise OSError(errno.ENOENT, "an empty target")
        if len(target) > TARGET_MAX:
            raise OSError(errno.ENAMETOOLONG, "a target is too long")
        return self._pool.run(
            request,
            self._encode.entry,
            self._fs.symlink,
            request.requester(),
            request.nodeid,
            name,
            target,
        )

    def _mknod(self, request: Request) -> Reply:
        args = mknod_in.unpack_from(request.args)
        name = request.name(mknod_in.size)
        check_int(args.mode)
        return self._pool.run(
            request,
            self._encode.entry,
            self._fs.mknod,
            request.requester(),
            request.nodeid,
            name,
            args.mode,
            args.rdev,
            args.umask,
        )

    def _mkdir(self, request: Request) -> Reply:
        mode, umask = mkdir_in.values(request.args)
        name = request.name(mkdir_in.size)
        check_int(mode)
        return self._pool.run(
            request,
            self._encode.entry,
            self._fs.mkdir,
            request.requester(),
            request.nodeid,
            name,
            mode,
            umask,
        )

    def _unlink(self, request: Request) -> Reply:
        return self._pool.run(request, nothing, self._fs.unlink, request.nodeid, request.name(0))

    def _rmdir(self, request: Request) -> Reply:
        return self._pool.run(request, nothing, self._fs.rmdir, request.nodeid, request.name(0))

    def _rename(self, request: Request) -> Reply:
        (newdir,) = rename_in.values(request.args)
        name, newname = request.names(rename_in.size, 2)
        return self._do_rename(request, name, newdir, newname, 0)

    def _rename2(self, request: Request) -> Reply:
        args = rename2_in.unpack_from(request.args)
        name, newname = request.names(rename2_in.size, 2)
        check_int(args.flags)
        return self._do_rename(request, name, args.newdir, newname, args.flags)

    def _do_rename(
        self, request: Request, name: bytes, newdir: int, newname: bytes, flags: int
    ) -> Reply:
        try:
            self._fs.rename(request.nodeid, name, newdir, newname, flags)
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, nothing)
        return EMPTY

    def _link(self, request: Request) -> Reply:
        args = link_in.unpack_from(request.args)
        return self._pool.run(
            request,
            self._encode.entry,
            self._fs.link,
            args.oldnodeid,
            request.nodeid,
            request.name(link_in.size),
        )

    def _create(self, request: Request) -> Reply:
        flags, mode, umask, open_flags = create_in.values(request.args)
        name = request.name(create_in.size)
        check_int(mode, flags)
        kill = self._killpriv.must_clear_on_open(request, flags, open_flags)
        try:
            return self._created(
                self._fs.create(request.requester(), request.nodeid, name, mode, flags, umask, kill)
            )
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, self._created)

    def _tmpfile(self, request: Request) -> Reply:
        # The name that follows has no meaning: it is the client's placeholder.
        args = create_in.unpack_from(request.args)
        check_int(args.mode, args.flags)
        return self._pool.run(
            request,
            self._created,
            self._fs.tmpfile,
            request.requester(),
            request.nodeid,
            args.mode,
            args.flags,
            args.umask,
        )

    def _created(self, result: tuple[Entry, OpenResult]) -> bytes:
        entry, opened = result
        return self._encode.entry(entry) + encode.opened(opened)

    def _readlink(self, request: Request) -> Reply:
        room = request.room

        def fitting(target: bytes) -> bytes:
            if len(target) > room:
                raise invalid("no room for a target")
            return target

        return self._pool.run(request, fitting, self._fs.readlink, request.nodeid)
