# SPDX-License-Identifier: Apache-2.0
"""A FUSE client for tests.

It encodes requests as Linux does, calls a session, checks and decodes the replies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from farwatchd.virtio_fs.interfaces import RequestHandler
from farwatchd.virtqueue import Chain
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import FUSE_HAS_FSNOTIFY, Event, fsnotify_in, fsnotify_out
from farwatchd.wire.fuse import InitFlag, Opcode, SetattrValid
from tests.support.request_ring import RequestRing

ROOT = 1
#: What Linux 6.12 offers, as far as the daemon knows it.
OFFER = sum(InitFlag) | FUSE_HAS_FSNOTIFY
HEADER_SIZE = fuse.out_header.size


@dataclass(frozen=True)
class Listed:
    """An entry of a directory.

    ``entry`` is the inode in READDIRPLUS, None without it or with nodeid 0.
    """

    name: bytes
    ino: int
    kind: int
    offset: int
    entry: Any = None


def slices_of(data: bytes | bytearray, sizes: Sequence[int]) -> list[memoryview]:
    """Cut a copy of ``data`` into buffers of the given sizes and a rest, each memory of its own."""
    views = []
    position = 0
    for size in sizes:
        views.append(memoryview(bytearray(data[position : position + size])))
        position += size
    views.append(memoryview(bytearray(data[position:])))
    return views


class Client:
    """Sends one request after the other; a reply with an error raises ``OSError``.

    ``cuts`` are the sizes of the first slices of request and reply: Linux puts the headers into
    their own.
    """

    def __init__(
        self,
        handler: RequestHandler,
        *,
        uid: int = 0,
        gid: int = 0,
        cuts: tuple[list[int], list[int]] = ([40], [16]),
    ) -> None:
        self.handler = handler
        self.uid = uid
        self.gid = gid
        self.cuts = cuts
        self.agreed: Any = None
        self._unique = 0
        #: Plain requests reach the native part by a ring only.
        self._ring = None if handler.plain is None else RequestRing(handler)

    def send(self, request: bytes, room: int) -> bytes:
        """Pass raw bytes with a reply buffer of ``room`` bytes; return all that was written."""
        readable = slices_of(request, self.cuts[0])
        writable = slices_of(bytearray(b"\xa5" * room), self.cuts[1])
        if self._ring is None:
            written = self.handler.handle(Chain.of(readable, writable))
            buffer = b"".join(writable)
        else:
            written, buffer = self._ring.send([*map(bytes, readable)], [*map(len, writable)])
        assert isinstance(written, int), "a deferred reply"
        assert 0 <= written <= room
        return buffer[:written]

    def request(
        self,
        opcode: int,
        nodeid: int,
        args: bytes = b"",
        extensions: bytes = b"",
        data: bytes = b"",
    ) -> bytes:
        """Encode a request with the next unique number."""
        self._unique += 2
        body = args + data + extensions
        return (
            fuse.in_header.pack(
                len=fuse.in_header.size + len(body),
                opcode=opcode,
                unique=self._unique,
                nodeid=nodeid,
                uid=self.uid,
                gid=self.gid,
                pid=os.getpid(),
                total_extlen=len(extensions) // 8,
            )
            + body
        )

    def call(
        self,
        opcode: int,
        nodeid: int,
        args: bytes = b"",
        room: int = 4096,
        extensions: bytes = b"",
        data: bytes = b"",
    ) -> bytes:
        """Send a request with room for a payload of ``room`` bytes; returns the reply's payload."""
        reply = self.send(self.request(opcode, nodeid, args, extensions, data), HEADER_SIZE + room)
        header = fuse.out_header.unpack_from(reply)
        assert header.len == len(reply)
        assert header.unique == self._unique
        if header.error:
            assert -512 < header.error < 0
            assert len(reply) == HEADER_SIZE
            raise OSError(-header.error, os.strerror(-header.error))
        return reply[HEADER_SIZE:]

    def silent(self, opcode: int, nodeid: int, args: bytes) -> None:
        """Send a request that has no reply."""
        assert self.send(self.request(opcode, nodeid, args), 0) == b""

    def init(self, offer: int = OFFER, *, major: int = 7, minor: int = 42) -> Any:
        """Agree on what holds; returns ``init_out``."""
        args = fuse.init_in.pack(
            major=major,
            minor=minor,
            max_readahead=1 << 17,
            flags=offer & 0xFFFFFFFF,
            flags2=offer >> 32,
        )
        if minor < 36:
            args = args[:16]
        self.agreed = fuse.init_out.unpack_from(self.call(Opcode.INIT, 0, args, fuse.init_out.size))
        return self.agreed

    def destroy(self) -> None:
        self.call(Opcode.DESTROY, 0)

    def lookup(self, parent: int, name: bytes) -> Any:
        return self._entry(self.call(Opcode.LOOKUP, parent, name + b"\0", fuse.entry_out.size))

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        self.silent(Opcode.FORGET, nodeid, fuse.forget_in.pack(nlookup=nlookup))

    def batch_forget(self, *inodes: tuple[int, int]) -> None:
        args = fuse.batch_forget_in.pack(count=len(inodes))
        self.silent(
            Opcode.BATCH_FORGET,
            0,
            args + b"".join(fuse.forget_one.pack_values(*inode) for inode in inodes),
        )

    def getattr(self, nodeid: int, fh: int | None = None) -> Any:
        args = fuse.getattr_in.pack(getattr_flags=0 if fh is None else fuse.GETATTR_FH, fh=fh or 0)
        return fuse.attr_out.unpack_from(
            self.call(Opcode.GETATTR, nodeid, args, fuse.attr_out.size)
        )

    def setattr(self, nodeid: int, valid: SetattrValid, **fields: int) -> Any:
        args = fuse.setattr_in.pack(valid=int(valid), **fields)
        return fuse.attr_out.unpack_from(
            self.call(Opcode.SETATTR, nodeid, args, fuse.attr_out.size)
        )

    def statx(self, nodeid: int, fh: int | None = None) -> Any:
        args = fuse.statx_in.pack(
            getattr_flags=0 if fh is None else fuse.GETATTR_FH, fh=fh or 0, sx_mask=0xFFF
        )
        return fuse.statx_out.unpack_from(
            self.call(Opcode.STATX, nodeid, args, fuse.statx_out.size)
        )

    def readlink(self, nodeid: int) -> bytes:
        return self.call(Opcode.READLINK, nodeid, room=4095)

    def symlink(self, parent: int, name: bytes, target: bytes, extensions: bytes = b"") -> Any:
        args = name + b"\0" + target + b"\0"
        return self._entry(self.call(Opcode.SYMLINK, parent, args, fuse.entry_out.size, extensions))

    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int = 0, extensions: bytes = b""
    ) -> Any:
        args = fuse.mknod_in.pack(mode=mode, rdev=rdev) + name + b"\0"
        return self._entry(self.call(Opcode.MKNOD, parent, args, fuse.entry_out.size, extensions))

    def mkdir(
        self, parent: int, name: bytes, mode: int = 0o755, umask: int = 0, extensions: bytes = b""
    ) -> Any:
        args = fuse.mkdir_in.pack(mode=mode, umask=umask) + name + b"\0"
        return self._entry(self.call(Opcode.MKDIR, parent, args, fuse.entry_out.size, extensions))

    def unlink(self, parent: int, name: bytes) -> None:
        self.call(Opcode.UNLINK, parent, name + b"\0", 0)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.call(Opcode.RMDIR, parent, name + b"\0", 0)

    def rename(
        self, parent: int, name: bytes, newdir: int, newname: bytes, flags: int | None = None
    ) -> None:
        """RENAME, or with flags RENAME2."""
        names = name + b"\0" + newname + b"\0"
        if flags is None:
            self.call(Opcode.RENAME, parent, fuse.rename_in.pack(newdir=newdir) + names, 0)
        else:
            self.call(
                Opcode.RENAME2, parent, fuse.rename2_in.pack(newdir=newdir, flags=flags) + names, 0
            )

    def link(self, nodeid: int, newdir: int, newname: bytes) -> Any:
        args = fuse.link_in.pack(oldnodeid=nodeid) + newname + b"\0"
        return self._entry(self.call(Opcode.LINK, newdir, args, fuse.entry_out.size))

    def open(self, nodeid: int, flags: int = os.O_RDWR, open_flags: int = 0) -> Any:
        args = fuse.open_in.pack(flags=flags, open_flags=open_flags)
        return fuse.open_out.unpack_from(self.call(Opcode.OPEN, nodeid, args, fuse.open_out.size))

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int = 0o100644,
        flags: int = os.O_RDWR | os.O_CREAT,
        extensions: bytes = b"",
    ) -> tuple[Any, Any]:
        return self._created(Opcode.CREATE, parent, name, mode, flags, extensions)

    def tmpfile(self, parent: int, mode: int = 0o100644, flags: int = os.O_RDWR) -> tuple[Any, Any]:
        """As Linux does, with '/' for the name that is not there."""
        return self._created(Opcode.TMPFILE, parent, b"/", mode, flags, b"")

    def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes:
        return self.call(
            Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, offset=offset, size=size), size
        )

    def write(self, nodeid: int, fh: int, offset: int, data: bytes, write_flags: int = 0) -> int:
        args = fuse.write_in.pack(fh=fh, offset=offset, size=len(data), write_flags=write_flags)
        reply = self.call(Opcode.WRITE, nodeid, args, fuse.write_out.size, data=data)
        return int(fuse.write_out.unpack_from(reply).size)

    def flush(self, nodeid: int, fh: int) -> None:
        self.call(Opcode.FLUSH, nodeid, fuse.flush_in.pack(fh=fh), 0)

    def release(self, nodeid: int, fh: int) -> None:
        self.call(Opcode.RELEASE, nodeid, fuse.release_in.pack(fh=fh), 0)

    def fsync(self, nodeid: int, fh: int, datasync: bool = False) -> None:
        self.call(Opcode.FSYNC, nodeid, fuse.fsync_in.pack(fh=fh, fsync_flags=int(datasync)), 0)

    def fallocate(self, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        args = fuse.fallocate_in.pack(fh=fh, offset=offset, length=length, mode=mode)
        self.call(Opcode.FALLOCATE, nodeid, args, 0)

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        args = fuse.lseek_in.pack(fh=fh, offset=offset, whence=whence)
        return int(
            fuse.lseek_out.unpack_from(
                self.call(Opcode.LSEEK, nodeid, args, fuse.lseek_out.size)
            ).offset
        )

    def copy_file_range(
        self, source: tuple[int, int, int], target: tuple[int, int, int], length: int
    ) -> int:
        """``source`` and ``target`` are nodeid, fh and offset."""
        args = fuse.copy_file_range_in.pack_values(source[1], source[2], *target, length, 0)
        reply = self.call(Opcode.COPY_FILE_RANGE, source[0], args, fuse.write_out.size)
        return int(fuse.write_out.unpack_from(reply).size)

    def opendir(self, nodeid: int) -> Any:
        args = fuse.open_in.pack(flags=os.O_RDONLY | os.O_DIRECTORY)
        return fuse.open_out.unpack_from(
            self.call(Opcode.OPENDIR, nodeid, args, fuse.open_out.size)
        )

    def readdir(
        self, nodeid: int, fh: int, offset: int = 0, size: int = 4096, *, plus: bool = False
    ) -> list[Listed]:
        """One READDIR or READDIRPLUS; empty at the end."""
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        return list(
            _listed(
                self.call(opcode, nodeid, fuse.read_in.pack(fh=fh, offset=offset, size=size), size),
                plus,
            )
        )

    def listdir(self, nodeid: int, size: int = 4096, *, plus: bool = False) -> list[Listed]:
        """All of a directory."""
        fh = self.opendir(nodeid).fh
        entries: list[Listed] = []
        while part := self.readdir(
            nodeid, fh, entries[-1].offset if entries else 0, size, plus=plus
        ):
            entries += part
        self.releasedir(nodeid, fh)
        return entries

    def releasedir(self, nodeid: int, fh: int) -> None:
        self.call(Opcode.RELEASEDIR, nodeid, fuse.release_in.pack(fh=fh), 0)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool = False) -> None:
        self.call(Opcode.FSYNCDIR, nodeid, fuse.fsync_in.pack(fh=fh, fsync_flags=int(datasync)), 0)

    def statfs(self, nodeid: int = ROOT) -> Any:
        return fuse.statfs_out.unpack_from(
            self.call(Opcode.STATFS, nodeid, b"", fuse.statfs_out.size)
        )

    def syncfs(self, nodeid: int = ROOT) -> None:
        self.call(Opcode.SYNCFS, nodeid, bytes(8), 0)

    def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int = 0, setxattr_flags: int = 0
    ) -> None:
        args = fuse.setxattr_in.pack(size=len(value), flags=flags, setxattr_flags=setxattr_flags)
        if not self.agreed.flags & InitFlag.SETXATTR_EXT:
            args = args[: fuse.COMPAT_SETXATTR_IN_SIZE]
        self.call(Opcode.SETXATTR, nodeid, args + name + b"\0" + value, 0)

    def getxattr(self, nodeid: int, name: bytes, size: int = 65536) -> bytes | int:
        """Return the value, or with a ``size`` of 0 its length."""
        return self._sized(Opcode.GETXATTR, nodeid, size, name + b"\0")

    def listxattr(self, nodeid: int, size: int = 65536) -> bytes | int:
        """Return the names, each with a NUL, or with a ``size`` of 0 their length."""
        return self._sized(Opcode.LISTXATTR, nodeid, size, b"")

    def removexattr(self, nodeid: int, name: bytes) -> None:
        self.call(Opcode.REMOVEXATTR, nodeid, name + b"\0", 0)

    def fsnotify(self, nodeid: int, mask: Event, *, flags: int = 0, generation: int = 0) -> Event:
        """Set the mask of an inode; returns what is watched."""
        args = fsnotify_in.pack(mask=int(mask), flags=flags, generation=generation)
        return Event(
            fsnotify_out.unpack_from(
                self.call(Opcode.FSNOTIFY, nodeid, args, fsnotify_out.size)
            ).mask
        )

    def _entry(self, reply: bytes) -> Any:
        assert len(reply) == fuse.entry_out.size
        return fuse.entry_out.unpack_from(reply)

    def _created(
        self, opcode: Opcode, parent: int, name: bytes, mode: int, flags: int, extensions: bytes
    ) -> tuple[Any, Any]:
        args = fuse.create_in.pack(flags=flags, mode=mode) + name + b"\0"
        size = fuse.entry_out.size
        reply = self.call(opcode, parent, args, size + fuse.open_out.size, extensions)
        return self._entry(reply[:size]), fuse.open_out.unpack_from(reply, size)

    def _sized(self, opcode: Opcode, nodeid: int, size: int, name: bytes) -> bytes | int:
        reply = self.call(
            opcode, nodeid, fuse.getxattr_in.pack(size=size) + name, size or fuse.getxattr_out.size
        )
        return reply if size else int(fuse.getxattr_out.unpack_from(reply).size)


def _listed(reply: bytes, plus: bool) -> Iterator[Listed]:
    position = 0
    while position < len(reply):
        entry = None
        start = position
        if plus:
            entry = fuse.entry_out.unpack_from(reply, position)
            position += fuse.entry_out.size
        dirent = fuse.dirent.unpack_from(reply, position)
        position += fuse.dirent.size
        name = reply[position : position + dirent.namelen]
        assert len(name) == dirent.namelen
        position += len(name)
        padding = -(position - start) % 8
        assert reply[position : position + padding] == bytes(padding)
        position += padding
        yield Listed(
            name, dirent.ino, dirent.type, dirent.off, entry if entry and entry.nodeid else None
        )
