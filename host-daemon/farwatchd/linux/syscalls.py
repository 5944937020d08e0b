# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's ``os`` lacks. Each raises ``OSError`` with the kernel's errno."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

from farwatchd.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    NANOSECONDS,
    OFFSET_MAX,
    check,
    function,
    last_errno,
)

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_STATX_BTIME = 0x800
_STATX_NLINK = 0x4
_STATX_NLINK_AT = 0x10
#: STATX_TYPE, STATX_MODE, STATX_NLINK, STATX_INO.
_STATX_KNOWN = 0x107
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_AT = 0x90
_STATX_SIZE = 256
_AT_STATX_DONT_SYNC = 0x4000
_CLONE_FS = 0x200
#: More than ``struct statfs`` has.
_STATFS_SIZE = 256
# mask, attributes, attributes_mask, btime (s, ns) of struct statx; see statx(2) and linux/stat.h.
_STATX_FIELDS = struct.Struct("=I4xQ40xQ16xqI")
# nlink, mode, ino, major and minor number of the device.
_STATX_KNOWN_FIELDS = struct.Struct("=16xI8xH2xQ96xII")
_TIMESPEC_PAIR = struct.Struct("@llll")

_int, _pointer_to = ctypes.c_int, ctypes.c_char_p
_fallocate = function("fallocate", _int, _int, ctypes.c_int64, ctypes.c_int64)
_fstatfs = function("fstatfs", _int, _pointer_to)
_getdents64 = function("getdents64", _int, _pointer_to, ctypes.c_size_t, result=ctypes.c_ssize_t)
# Without types: this is called for every lookup.
_openat = function("openat")
_renameat2 = function("renameat2", _int, _pointer_to, _int, _pointer_to, ctypes.c_uint)
_statfs = function("statfs", _pointer_to, _pointer_to)
_statx = function("statx", _int, _pointer_to, _int, ctypes.c_uint, _pointer_to)
_syncfs = function("syncfs", _int)
_unshare = function("unshare", _int)
_utimensat = function("utimensat", _int, _pointer_to, _pointer_to, _int)

_OPEN_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ExtendedStat:
    """The attributes that statx(2) adds to those of stat(2).

    ``btime_ns`` is None where the file system has no birth time.
    """

    btime_ns: int | None
    attributes: int
    attributes_mask: int


class Time(NamedTuple):
    """A timespec, or one of the two special nanosecond values of utimensat(2)."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, nanoseconds: int) -> Time:
        """Make a time from nanoseconds since the epoch, negative ones before it."""
        return cls(*divmod(nanoseconds, NANOSECONDS))


def signed(value: int) -> int:
    """Return a 64-bit number as ``off_t``; the kernel, and not Python, refuses a negative one."""
    return value if value <= OFFSET_MAX else value - (1 << 64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or free space (section 2 of the manual); ``mode`` is FALLOC_FL_*."""
    check(_fallocate(fd, mode, signed(offset), signed(length)))


def getdents64(fd: int, buffer: bytearray) -> int:
    """Fill ``buffer`` with ``struct linux_dirent64``.

    Return the bytes, 0 at the end of the directory.
    """
    return check(_getdents64(fd, _pointer(buffer), len(buffer)))


def file_system_type(place: int | bytes) -> int:
    """Return the type of the file system of a descriptor or a path.

    It is ``f_type`` of statfs(2), ``*_MAGIC`` of linux/magic.h.
    """
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    check(_statfs(place, buffer) if isinstance(place, bytes) else _fstatfs(place, buffer))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


def open_path(directory: int, name: bytes) -> int:
    """Open ``name`` itself with O_PATH; return the descriptor, or the negative errno.

    Most names that are looked up do not exist, and an exception takes longer than the call. The
    caller owns the descriptor.
    """
    fd: int = _openat(directory, name, _OPEN_PATH)
    return fd if fd >= 0 else -last_errno()


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """Rename with flags RENAME_*."""
    check(_renameat2(old_fd, old, new_fd, new, flags))


def statx(fd: int) -> ExtendedStat:
    """Return the extended attributes of the inode of ``fd``, which may be O_PATH."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    check(_statx(fd, b"", AT_EMPTY_PATH, _STATX_BTIME, buffer))
    mask, attributes, attributes_mask, seconds, nanoseconds = _STATX_FIELDS.unpack_from(buffer)
    btime = seconds * NANOSECONDS + nanoseconds if mask & _STATX_BTIME else None
    return ExtendedStat(btime, attributes, attributes_mask)


def mount_id(fd: int) -> int:
    """Return the id, as in /proc/self/mountinfo, of the mount of ``fd``, without asking a server.

    Before Linux 5.8 it is 0 for all.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    check(_statx(fd, b"", AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_MNT_ID, buffer))
    return ctypes.c_uint64.from_buffer(buffer, _STATX_MNT_ID_AT).value


def known_links(fd: int) -> int:
    """Return the number of names of an inode, as far as it is known without asking a server."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    check(_statx(fd, b"", AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_NLINK, buffer))
    return ctypes.c_uint32.from_buffer(buffer, _STATX_NLINK_AT).value


def known_status(fd: int) -> os.stat_result:
    """Return what is known of an inode without asking a server.

    It has mode, inode number, device and link count; all else is 0.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    check(_statx(fd, b"", AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_KNOWN, buffer))
    links, mode, inode, major, minor = _STATX_KNOWN_FIELDS.unpack_from(buffer)
    return os.stat_result((mode, inode, os.makedev(major, minor), links, 0, 0, 0, 0, 0, 0))


def syncfs(fd: int) -> None:
    """Write the file system of ``fd`` to its disk."""
    check(_syncfs(fd))


def unshare_fs() -> None:
    """Give the calling thread a umask and a current directory of its own (unshare(2))."""
    check(_unshare(_CLONE_FS))


def utimens(path: str, atime: Time, mtime: Time) -> None:
    """Set the times of a path (utimensat(2)), following it."""
    check(_utimensat(AT_FDCWD, os.fsencode(path), _TIMESPEC_PAIR.pack(*atime, *mtime), 0))


def _pointer(buffer: bytearray) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)
