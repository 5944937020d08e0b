# SPDX-License-Identifier: Apache-2.0
"""Operations on open files and directories: data goes between file and guest memory without a copy
here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from farwatchd.fuse import encode
from farwatchd.fuse.directory import fill
from farwatchd.fuse.encode import Encoder
from farwatchd.fuse.filesystem import FileSystem
from farwatchd.fuse.init import MAX_WRITE
from farwatchd.fuse.killpriv import SetIdBits
from farwatchd.fuse.reply import EMPTY, Operation, Reply
from farwatchd.fuse.request import OFFSET_MAX, Request, check_int, check_offset, invalid
from farwatchd.fuse.thread_pool import Workers, nothing
from farwatchd.iovec import cut
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

#: ``MAX_RW_COUNT``: what one copy_file_range(2) does at most, and what fits its reply.
_MAX_COPY = 0x7FFFF000


class FileOperations:
    """Calls the file system and encodes what it returns."""

    def __init__(
        self, fs: FileSystem, setid: SetIdBits, workers: Workers, unlocked: Callable[[], None]
    ) -> None:
        """``workers`` do what takes long; ``unlocked`` is called when locks may have been given
        back."""
        self._fs = fs
        self._encode = Encoder(fs.valid)
        self._setid = setid
        self._workers = workers
        self._unlocked = unlocked

    def table(self) -> dict[int, Operation]:
        """The operations by opcode."""
        return {
            Opcode.OPEN: Operation(self._open, open_in.size, open_out.size),
            Opcode.READ: Operation(self._read, read_in.size),
            Opcode.WRITE: Operation(self._write, write_in.size, write_out.size),
            Opcode.FLUSH: Operation(self._flush, flush_in.size),
            Opcode.RELEASE: Operation(self._release, release_in.size),
            Opcode.FSYNC: Operation(self._fsync, fsync_in.size),
            Opcode.FALLOCATE: Operation(self._fallocate, fallocate_in.size),
            Opcode.LSEEK: Operation(self._lseek, lseek_in.size, lseek_out.size),
            Opcode.COPY_FILE_RANGE: Operation(
                self._copy_file_range, copy_file_range_in.size, write_out.size
            ),
            Opcode.OPENDIR: Operation(self._opendir, open_in.size, open_out.size),
            Opcode.READDIR: Operation(self._readdir, read_in.size),
            Opcode.READDIRPLUS: Operation(self._readdirplus, read_in.size),
            Opcode.RELEASEDIR: Operation(self._releasedir, release_in.size),
            Opcode.FSYNCDIR: Operation(self._fsyncdir, fsync_in.size),
        }

    def _open(self, request: Request) -> Reply:
        flags, open_flags = open_in.values(request.args)
        check_int(flags)
        kill = self._setid.go(request, flags, open_flags)
        return encode.opened(self._fs.open(request.nodeid, flags, kill))

    def _read(self, request: Request) -> Reply:
        fh, offset, size, _, _, _, _ = read_in.values(request.args)
        if offset > OFFSET_MAX or size > MAX_WRITE or size > request.room:
            raise invalid(f"a read of {size} bytes from {offset} on into {request.room}")
        done = self._fs.read(request.nodeid, fh, offset, request.target(size), size)
        return done if isinstance(done, int) else self._workers.do(request, done, int)

    def _write(self, request: Request) -> Reply:
        fh, offset, size, write_flags, _, _, _ = write_in.values(request.args)
        held = request.data_size
        if offset > OFFSET_MAX or size > held or size > MAX_WRITE:
            raise invalid(f"a write of {size} bytes from {offset} on with {held} at hand")
        views = request.data if size == held else cut(request.data, 0, size)
        kill = bool(write_flags & WRITE_KILL_SUIDGID)
        done = self._fs.write(
            request.nodeid, fh, offset, views, kill, bool(write_flags & WRITE_CACHE)
        )
        return (
            _written(done) if isinstance(done, int) else self._workers.do(request, done, _written)
        )

    def _flush(self, request: Request) -> Reply:
        fh, _, _, lock_owner = flush_in.values(request.args)
        self._fs.unlock_owner(request.nodeid, lock_owner)
        self._unlocked()
        self._fs.flush(request.nodeid, fh)
        return EMPTY

    def _release(self, request: Request) -> Reply:
        fh, *_ = release_in.values(request.args)
        self._fs.release(request.nodeid, fh)
        self._unlocked()
        return EMPTY

    def _fsync(self, request: Request) -> Reply:
        args = fsync_in.unpack_from(request.args)
        job = self._fs.fsync(request.nodeid, args.fh, bool(args.fsync_flags & FSYNC_FDATASYNC))
        return self._workers.do(request, job, nothing)

    def _fallocate(self, request: Request) -> Reply:
        args = fallocate_in.unpack_from(request.args)
        check_offset(args.offset, args.length)
        check_int(args.mode)
        kill = self._setid.go_by_change(request)
        job = self._fs.fallocate(request.nodeid, args.fh, args.mode, args.offset, args.length, kill)
        return self._workers.do(request, job, nothing)

    def _lseek(self, request: Request) -> Reply:
        args = lseek_in.unpack_from(request.args)
        check_int(args.whence)
        return lseek_out.pack_values(
            self._fs.lseek(request.nodeid, args.fh, args.offset, args.whence)
        )

    def _copy_file_range(self, request: Request) -> Reply:
        args = copy_file_range_in.unpack_from(request.args)
        check_offset(args.off_in, args.off_out, args.len)
        if args.flags:
            raise invalid("flags of copy_file_range")
        job = self._fs.copy_file_range(
            request.nodeid,
            args.fh_in,
            args.off_in,
            args.nodeid_out,
            args.fh_out,
            args.off_out,
            min(args.len, _MAX_COPY),
            self._setid.go_by_change(request),
        )
        return self._workers.do(request, job, _written)

    def _opendir(self, request: Request) -> Reply:
        args = open_in.unpack_from(request.args)
        check_int(args.flags)
        return encode.opened(self._fs.opendir(request.nodeid, args.flags))

    def _readdir(self, request: Request) -> Reply:
        return self._entries(request, None)

    def _readdirplus(self, request: Request) -> Reply:
        return self._entries(request, partial(self._look_up, request.nodeid))

    def _look_up(self, parent: int, name: bytes) -> bytes:
        """The inode of a listed name; none for what vanished meanwhile."""
        entry = self._fs.lookup(parent, name)
        return encode.NO_ENTRY if entry is None else self._encode.entry(entry)

    def _entries(self, request: Request, lookup: Callable[[bytes], bytes] | None) -> Reply:
        fh, offset, size, *_ = read_in.values(request.args)
        check_offset(offset)
        room = min(size, request.room, MAX_WRITE)
        return fill(self._fs.readdir(request.nodeid, fh, offset), room, lookup)

    def _releasedir(self, request: Request) -> Reply:
        self._fs.releasedir(request.nodeid, release_in.unpack_from(request.args).fh)
        return EMPTY

    def _fsyncdir(self, request: Request) -> Reply:
        args = fsync_in.unpack_from(request.args)
        job = self._fs.fsyncdir(request.nodeid, args.fh, bool(args.fsync_flags & FSYNC_FDATASYNC))
        return self._workers.do(request, job, nothing)


def _written(size: int) -> bytes:
    return write_out.pack_values(size, 0)
