# SPDX-License-Identifier: Apache-2.0
"""Encodes what the file system returns: attributes, entries, statx, statfs."""

from __future__ import annotations

import functools
import os

from farwatchd.fuse.filesystem import Attributes, Entry, Opened, Statx
from farwatchd.wire.fuse import ATTR_SUBMOUNT, attr_out, entry_out, open_out, statfs_out, statx_out

_SECOND = 1_000_000_000
_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1
_U16 = (1 << 16) - 1
#: ``STATX_BASIC_STATS`` and ``STATX_BTIME``.
_STATX_BASIC = 0x7FF
_STATX_BTIME = 0x800

#: An entry that says: no inode here.
NO_ENTRY = bytes(entry_out.size)


@functools.lru_cache
def _valid(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND)


def _attr(attributes: Attributes) -> tuple[int, ...]:
    """The fields of ``fuse_attr`` in order. Times before 1970 travel as two's complement."""
    stat = attributes.stat
    mode, ino, _, nlink, uid, gid, size = stat[:7]
    atime, mtime, ctime = stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns
    return (
        ino,
        size,
        stat.st_blocks,
        atime // _SECOND & _U64,
        mtime // _SECOND & _U64,
        ctime // _SECOND & _U64,
        atime % _SECOND,
        mtime % _SECOND,
        ctime % _SECOND,
        mode,
        nlink if nlink <= _U32 else _U32,
        uid,
        gid,
        stat.st_rdev & _U32,
        stat.st_blksize & _U32,
        ATTR_SUBMOUNT if attributes.submount else 0,
    )


def entry(value: Entry) -> bytes:
    """``fuse_entry_out``."""
    nodeid, generation, attributes, seconds = value
    valid, valid_nsec = _valid(seconds)
    attr_valid, attr_valid_nsec = _valid(attributes.valid)
    return entry_out.pack_values(nodeid, generation, valid, attr_valid, valid_nsec, attr_valid_nsec, *_attr(attributes))


def attr(value: Attributes) -> bytes:
    """``fuse_attr_out``."""
    valid, valid_nsec = _valid(value.valid)
    return attr_out.pack_values(valid, valid_nsec, 0, *_attr(value))


def opened(value: Opened) -> bytes:
    """``fuse_open_out``."""
    return open_out.pack_values(value.fh, value.flags, 0)


def statx(value: Statx) -> bytes:
    """``fuse_statx_out``."""
    stat = value.attributes.stat
    valid, valid_nsec = _valid(value.attributes.valid)
    atime, atime_nsec = divmod(stat.st_atime_ns, _SECOND)
    btime, btime_nsec = divmod(value.btime_ns or 0, _SECOND)
    ctime, ctime_nsec = divmod(stat.st_ctime_ns, _SECOND)
    mtime, mtime_nsec = divmod(stat.st_mtime_ns, _SECOND)
    return statx_out.pack(
        attr_valid=valid,
        attr_valid_nsec=valid_nsec,
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


def statfs(value: os.statvfs_result) -> bytes:
    """``fuse_statfs_out``."""
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
