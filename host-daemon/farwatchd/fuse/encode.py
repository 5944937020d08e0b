# SPDX-License-Identifier: Apache-2.0
"""Encodes what the file system returns: attributes, entries, directories, statx, statfs."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

from farwatchd.fuse.filesystem import DirEntry, Entry, OpenResult, Statx
from farwatchd.fuse.request import invalid
from farwatchd.linux.libc import NANOSECONDS
from farwatchd.wire.fuse import (
    ATTR_SUBMOUNT,
    attr,
    attr_out,
    dirent,
    entry_out,
    open_out,
    statfs_out,
    statx_out,
)

_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1
_U16 = (1 << 16) - 1
#: ``STATX_BASIC_STATS`` and ``STATX_BTIME``.
_STATX_BASIC = 0x7FF
_STATX_BTIME = 0x800

_pack_attr = attr.pack_values
#: The first fields of ``fuse_entry_out``: nodeid and generation.
_NODEID = struct.Struct("<QQ")

#: An entry without an inode: nodeid 0.
NO_ENTRY = bytes(entry_out.size)

_DIRENT_SIZE = dirent.size
_PADDING = [bytes(length) for length in range(8)]


class Encoder:
    """Encodes attributes and entries, whose timeouts are ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self._seconds = int(timeout)
        self._nanoseconds = int((timeout - self._seconds) * NANOSECONDS)
        # The parts of both replies that are always the same.
        times = {"attr_valid": self._seconds, "attr_valid_nsec": self._nanoseconds}
        self.attr_start = attr_out.pack(**times)[: -attr.size]
        times |= {"entry_valid": self._seconds, "entry_valid_nsec": self._nanoseconds}
        self.entry_times = entry_out.pack(**times)[_NODEID.size : -attr.size]

    def entry(self, value: Entry) -> bytes:
        """Return ``fuse_entry_out``."""
        nodeid, generation, stat, submount = value
        start = _NODEID.pack(nodeid, generation) + self.entry_times
        return start + _attr(stat, ATTR_SUBMOUNT if submount else 0)

    def attr(self, stat: os.stat_result) -> bytes:
        """Return ``fuse_attr_out``."""
        return self.attr_start + _attr(stat, 0)

    def statx(self, value: Statx) -> bytes:
        """Return ``fuse_statx_out``."""
        stat = value.stat
        atime, atime_nsec = divmod(stat.st_atime_ns, NANOSECONDS)
        btime, btime_nsec = divmod(value.btime_ns or 0, NANOSECONDS)
        ctime, ctime_nsec = divmod(stat.st_ctime_ns, NANOSECONDS)
        mtime, mtime_nsec = divmod(stat.st_mtime_ns, NANOSECONDS)
        return statx_out.pack(
            attr_valid=self._seconds,
            attr_valid_nsec=self._nanoseconds,
            stat_mask=_STATX_BASIC if value.btime_ns is None else _STATX_BASIC | _STATX_BTIME,
            stat_blksize=min(stat.st_blksize, _U32),
            stat_attributes=value.file_attributes,
            stat_attributes_mask=value.file_attributes_mask,
            stat_nlink=min(stat.st_nlink, _U32),
            stat_uid=stat.st_uid,
            stat_gid=stat.st_gid,
            stat_mode=stat.st_mode & _U16,
            stat_ino=stat.st_ino,
            stat_size=stat.st_size,
            stat_blocks=stat.st_blocks,
            stat_atime_tv_sec=atime,
            stat_atime_tv_nsec=atime_nsec,
            stat_btime_tv_sec=btime,
            stat_btime_tv_nsec=btime_nsec,
            stat_ctime_tv_sec=ctime,
            stat_ctime_tv_nsec=ctime_nsec,
            stat_mtime_tv_sec=mtime,
            stat_mtime_tv_nsec=mtime_nsec,
            stat_rdev_major=os.major(stat.st_rdev),
            stat_rdev_minor=os.minor(stat.st_rdev),
            stat_dev_major=os.major(stat.st_dev),
            stat_dev_minor=os.minor(stat.st_dev),
        )


def _attr(stat: os.stat_result, flags: int) -> bytes:
    """Return ``fuse_attr``. Times before 1970 are two's complement."""
    # By their numbers the times are whole seconds, which mypy does not know.
    numbered: tuple[Any, ...] = stat[:10]
    mode, ino, _, nlink, uid, gid, size, atime, mtime, ctime = numbered
    return _pack_attr(
        ino,
        size,
        stat.st_blocks,
        atime & _U64,
        mtime & _U64,
        ctime & _U64,
        stat.st_atime_ns % NANOSECONDS,
        stat.st_mtime_ns % NANOSECONDS,
        stat.st_ctime_ns % NANOSECONDS,
        mode,
        nlink if nlink <= _U32 else _U32,
        uid,
        gid,
        stat.st_rdev & _U32,
        stat.st_blksize & _U32,
        flags,
    )


def opened(value: OpenResult) -> bytes:
    """Return ``fuse_open_out``."""
    return open_out.pack_values(value.fh, value.flags, 0)


def statfs(value: os.statvfs_result) -> bytes:
    """Return ``fuse_statfs_out``."""
    return statfs_out.pack(
        st_blocks=value.f_blocks,
        st_bfree=value.f_bfree,
        st_bavail=value.f_bavail,
        st_files=value.f_files,
        st_ffree=value.f_ffree,
        st_bsize=value.f_bsize,
        st_namelen=value.f_namemax,
        st_frsize=value.f_frsize,
    )


def directory(
    entries: Iterable[DirEntry], room: int, lookup: Callable[[bytes], bytes] | None
) -> bytes:
    """Encode as many ``entries`` as fit ``room`` bytes, in reply to READDIR.

    With ``lookup``, which returns ``fuse_entry_out``, the reply is that to READDIRPLUS. Each entry
    that ``lookup`` returns is in the reply, as the client owes a FORGET for it: a later error ends
    the reply early, and the next read raises it again. EINVAL: not even the first entry fits.
    """
    parts: list[bytes] = []
    left = room
    fixed = _DIRENT_SIZE if lookup is None else entry_out.size + _DIRENT_SIZE
    try:
        for name, ino, kind, offset in entries:
            length = fixed + len(name)
            padding = -length % 8
            left -= length + padding
            if left < 0:
                if not parts:
                    raise invalid(f"no room for an entry in {room} bytes")
                break
            if lookup is not None:
                parts.append(_looked_up(name, lookup))
            parts += (dirent.pack_values(ino, offset, len(name), kind), name, _PADDING[padding])
    except OSError:
        if not parts:
            raise
    return b"".join(parts)


def _looked_up(name: bytes, lookup: Callable[[bytes], bytes]) -> bytes:
    """Return an entry's ``fuse_entry_out``.

    NO_ENTRY: the name is '.' or '..', which are not looked up, or looking it up fails.
    """
    if name == b"." or name == b"..":
        return NO_ENTRY
    try:
        return lookup(name)
    except OSError:
        return NO_ENTRY
