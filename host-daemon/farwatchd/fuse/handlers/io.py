# SPDX-License-Identifier: Apache-2.0
"""Handlers of open files and directories."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from farwatchd.fuse import encode
from farwatchd.fuse.encode import Encoder
from farwatchd.fuse.filesystem import FileSystem, OperationDeferred
from farwatchd.fuse.init import MAX_READ, MAX_WRITE
from farwatchd.fuse.killpriv import KillPriv
from farwatchd.fuse.reply import EMPTY, Handler, Reply
from farwatchd.fuse.request import Request, check_int, check_offset, invalid
from farwatchd.fuse.thread_pool import ThreadPool, nothing
from farwatchd.iovec import slices
from farwatchd.linux.libc import OFFSET_MAX
from farwatchd.wire.fuse import (
    FSYNC_FDATASYNC,
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
    Opcode,
    copy_file_range_in,
    fallocate_in,
    flush_in,
    fsync_in,
    lseek_in,
    lseek_out,
    open_in,
    open_out,
    read_in,
    release_in,
    write_in,
    write_out,
)

#: The most that one COPY_FILE_RANGE copies, in bytes: a task that has begun cannot be cancelled.
#: The client sends another request for the rest.
_MAX_COPY = 64 << 20
#: Bytes of one reply to READDIR, whose 2000 entries take a few milliseconds.
_MAX_READDIR = 64 << 10
#: Bytes of one reply to READDIRPLUS: each entry is looked up, and 200 take a few milliseconds, in
#: which no other request is served. The client asks for the rest.
_MAX_READDIRPLUS = 32 << 10


class IoHandlers:
    """Decode a request, call the file system, encode the reply."""

    def __init__(
        self, fs: FileSystem, killpriv: KillPriv, pool: ThreadPool, unlocked: Callable[[], None]
    ) -> None:
        """``pool`` runs tasks that may take long.

        ``unlocked`` is called when locks may have been released.
        """
        self._fs = fs
        self._encode = Encoder(fs.timeout)
        self._killpriv = killpriv
        self._pool = pool
        self._unlocked = unlocked
        #: Looks up an entry that the guest knows, and returns ``fuse_entry_out``; None: the file
        #: system has to look it up.
        self.known_entry: Callable[[int, bytes], bytes | None] = _unknown

    def table(self) -> dict[int, Handler]:
        """Return the handlers by opcode."""
        return {
            Opcode.OPEN: Handler(self._open, open_in.size, open_out.size),
            Opcode.READ: Handler(self._read, read_in.size),
            Opcode.WRITE: Handler(self._write, write_in.size, write_out.size),
            Opcode.FLUSH: Handler(self._flush, flush_in.size),
            Opcode.RELEASE: Handler(self._release, release_in.size),
            Opcode.FSYNC: Handler(self._fsync, fsync_in.size),
            Opcode.FALLOCATE: Handler(self._fallocate, fallocate_in.size),
            Opcode.LSEEK: Handler(self._lseek, lseek_in.size, lseek_out.size),
            Opcode.COPY_FILE_RANGE: Handler(
                self._copy_file_range, copy_file_range_in.size, write_out.size
            ),
            Opcode.OPENDIR: Handler(self._opendir, open_in.size, open_out.size),
            Opcode.READDIR: Handler(self._readdir, read_in.size),
            Opcode.READDIRPLUS: Handler(self._readdirplus, read_in.size),
            Opcode.RELEASEDIR: Handler(self._releasedir, release_in.size),
            Opcode.FSYNCDIR: Handler(self._fsyncdir, fsync_in.size),
        }

    def _open(self, request: Request) -> Reply:
        flags, open_flags = open_in.values(request.args)
        check_int(flags)
        kill = self._killpriv.must_clear_on_open(request, flags, open_flags)
        try:
            return encode.opened(self._fs.open(request.nodeid, flags, kill))
        except OperationDeferred as deferred:
            return self._pool.submit_deferred(request, deferred, encode.opened)

    def _read(self, request: Request) -> Reply:
        fh, offset, size, _, _, _, _ = read_in.values(request.args)
        if offset > OFFSET_MAX or size > MAX_READ or size > request.room:
            raise invalid(f"a read of {size} bytes from {offset} on into {request.room}")
        done = self._fs.read(request.nodeid, fh, offset, request.target(size), size)
        return done if isinstance(done, int) else self._pool.submit_read(request, done, size)

    def _write(self, request: Request) -> Reply:
        fh, offset, size, write_flags, _, _, _ = write_in.values(request.args)
        present = request.data_size
        if offset > OFFSET_MAX or size > present or size > MAX_WRITE:
            raise invalid(f"a write of {size} bytes from {offset} on with {present} present")
        views = request.data if size == present else slices(request.data, 0, size)
        kill = bool(write_flags & WRITE_KILL_SUIDGID)
        done = self._fs.write(
            request.nodeid, fh, offset, views, kill, bool(write_flags & WRITE_CACHE)
        )
        if isinstance(done, int):
            return _written(done)
        return self._pool.submit_write(request, done, views, _written)

    def _flush(self, request: Request) -> Reply:
        fh, _, _, lock_owner = flush_in.values(request.args)
        return self._pool.run(request, nothing, self._unlock, request.nodeid, fh, lock_owner)

    def _unlock(self, nodeid: int, fh: int, lock_owner: int) -> None:
        """Release an owner's locks, and flush the file."""
        try:
            self._fs.unlock_owner(nodeid, lock_owner)
        except OperationDeferred as deferred:
            raise deferred.followed_by(partial(self._flush_unlocked, nodeid, fh)) from None
        self._flush_unlocked(nodeid, fh)

    def _flush_unlocked(self, nodeid: int, fh: int) -> None:
        self._unlocked()
        self._fs.flush(nodeid, fh)

    def _release(self, request: Request) -> Reply:
        fh, *_ = release_in.values(request.args)
        self._fs.release(request.nodeid, fh)
        self._unlocked()
        return EMPTY

    def _fsync(self, request: Request) -> Reply:
        args = fsync_in.unpack_from(request.args)
        task = self._fs.fsync(request.nodeid, args.fh, bool(args.fsync_flags & FSYNC_FDATASYNC))
        return self._pool.submit(request, task, nothing)

    def _fallocate(self, request: Request) -> Reply:
        args = fallocate_in.unpack_from(request.args)
        check_offset(args.offset, args.length)
        check_int(args.mode)
        kill = self._killpriv.must_clear_on_modify(request)
        task = self._fs.fallocate(
            request.nodeid, args.fh, args.mode, args.offset, args.length, kill
        )
        return self._pool.submit(request, task, nothing)

    def _lseek(self, request: Request) -> Reply:
        args = lseek_in.unpack_from(request.args)
        check_int(args.whence)
        return self._pool.run(
            request,
            lseek_out.pack_values,
            self._fs.lseek,
            request.nodeid,
            args.fh,
            args.offset,
            args.whence,
        )

    def _copy_file_range(self, request: Request) -> Reply:
        args = copy_file_range_in.unpack_from(request.args)
        check_offset(args.off_in, args.off_out, args.len)
        if args.flags:
            raise invalid("flags of copy_file_range")
        task = self._fs.copy_file_range(
            request.nodeid,
            args.fh_in,
            args.off_in,
            args.nodeid_out,
            args.fh_out,
            args.off_out,
            min(args.len, _MAX_COPY),
            self._killpriv.must_clear_on_modify(request),
        )
        return self._pool.submit(request, task, _written)

    def _opendir(self, request: Request) -> Reply:
        args = open_in.unpack_from(request.args)
        check_int(args.flags)
        return self._pool.run(request, encode.opened, self._fs.opendir, request.nodeid, args.flags)

    def _readdir(self, request: Request) -> Reply:
        return self._entries(request, _MAX_READDIR, None)

    def _readdirplus(self, request: Request) -> Reply:
        return self._entries(request, _MAX_READDIRPLUS, partial(self._look_up, request.nodeid))

    def _look_up(self, parent: int, name: bytes) -> bytes:
        """Return the inode of a listed name; NO_ENTRY if it was deleted meanwhile."""
        known = self.known_entry(parent, name)
        if known is not None:
            return known
        try:
            entry = self._fs.lookup(parent, name)
        except OperationDeferred:
            # A mount point whose server may not answer: the client looks it up if it needs it.
            return encode.NO_ENTRY
        return encode.NO_ENTRY if entry is None else self._encode.entry(entry)

    def _entries(
        self, request: Request, most: int, lookup: Callable[[bytes], bytes] | None
    ) -> Reply:
        """Reply with at most ``most`` bytes of entries."""
        fh, offset, size, *_ = read_in.values(request.args)
        # The offset is not checked: it is the host file system's, which may use all 64 bits.
        room = min(size, request.room, most)
        try:
            entries = self._fs.readdir(request.nodeid, fh, offset)
        except OperationDeferred as deferred:
            look_up = None if lookup is None else _no_entry
            return self._pool.submit_deferred(
                request, deferred, lambda entries: encode.directory(entries, room, look_up)
            )
        return encode.directory(entries, room, lookup)

    def _releasedir(self, request: Request) -> Reply:
        self._fs.releasedir(request.nodeid, release_in.unpack_from(request.args).fh)
        return EMPTY

    def _fsyncdir(self, request: Request) -> Reply:
        args = fsync_in.unpack_from(request.args)
        task = self._fs.fsyncdir(request.nodeid, args.fh, bool(args.fsync_flags & FSYNC_FDATASYNC))
        return self._pool.submit(request, task, nothing)


def _unknown(_parent: int, _name: bytes) -> None:
    return None


def _no_entry(_: bytes) -> bytes:
    """Look up nothing: each lookup may wait for a server."""
    return encode.NO_ENTRY


def _written(size: int) -> bytes:
    return write_out.pack_values(size, 0)
