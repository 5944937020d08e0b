# SPDX-License-Identifier: Apache-2.0
"""fanotify(7) with file handles through the C library: a group, its marks and its events."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from enum import IntFlag
from typing import NamedTuple

from farwatchd.linux.file_handles import open_handle
from farwatchd.linux.group import NotificationGroup
from farwatchd.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    check,
    failure,
    function,
    last_errno,
)

_unpack_metadata = struct.Struct("=IBBHQii").unpack_from
#: struct fanotify_event_info_fid: type and length of the record, file system id, struct
#: file_handle; then a name in records that have one.
_unpack_info = struct.Struct("=BxH8xI").unpack_from
_FSID_AT = 4
_HANDLE_AT = 20
#: Bytes of the file system id at the start of an identity.
FSID_SIZE = 8
_MARK_ADD, _MARK_REMOVE, _MARK_FLUSH = 0x1, 0x2, 0x80
#: A handle that identifies, and need not be good for open_by_handle_at(2): what fanotify reports.
#: Since Linux 6.5. overlayfs has no other one.
_AT_HANDLE_FID = 0x200
#: struct file_handle: bytes of the handle, its type; then the handle.
_HANDLE_HEAD = struct.Struct("=Ii")
_MAX_HANDLE = 128

#: FAN_CLASS_NOTIF with FAN_CLOEXEC, FAN_NONBLOCK, FAN_REPORT_FID, FAN_REPORT_DIR_FID,
#: FAN_REPORT_NAME and FAN_REPORT_TARGET_FID.
_INIT_FLAGS = 0x1 | 0x2 | 0x200 | 0x400 | 0x800 | 0x1000
#: FAN_UNLIMITED_QUEUE and FAN_UNLIMITED_MARKS; both need CAP_SYS_ADMIN. The daemon limits the
#: watches itself.
_UNLIMITED_QUEUE = 0x10
_UNLIMITED_MARKS = 0x20

_int, _path, _pointer = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
_fanotify_init = function("fanotify_init", ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = function("fanotify_mark", _int, ctypes.c_uint, ctypes.c_uint64, _int, _path)
_name_to_handle_at = function("name_to_handle_at", _int, _path, _pointer, _pointer, _int)

INFO_FID = 1
INFO_DFID_NAME = 2
INFO_OLD_DFID_NAME = 10
INFO_NEW_DFID_NAME = 12


class Fan(IntFlag):
    """Bits of ``linux/fanotify.h`` that inotify does not have."""

    EVENT_ON_CHILD = 0x08000000
    RENAME = 0x10000000
    ONDIR = 0x40000000


class Info(NamedTuple):
    """One information record.

    ``identity``: the inode's file system id and its ``struct file_handle``, as one string.
    ``name``: that of an entry in the inode, where the record has one.
    """

    identity: bytes
    name: bytes


class FanEvent(NamedTuple):
    """One event.

    Coalesced events are one: each bit happened to the same inode and name, caused by the same
    process ``pid``, at least once and in an unknown order.
    """

    mask: int
    pid: int
    infos: dict[int, Info]


class Fanotify(NotificationGroup):
    """A fanotify group with inode marks. Its methods raise ``OSError`` with the kernel's errno."""

    def __init__(self, unlimited_queue: bool = False, fd: int | None = None) -> None:
        """Make a group, or take ownership of the descriptor ``fd`` of one.

        ``unlimited_queue``: keep all unread events, where CAP_SYS_ADMIN permits it, and not only
        fs.fanotify.max_queued_events. While the process does not read, that takes the host's
        memory.
        """
        more = _UNLIMITED_MARKS | (_UNLIMITED_QUEUE if unlimited_queue else 0)
        if fd is None:
            fd = _fanotify_init(_INIT_FLAGS | more, os.O_RDONLY)
            if fd < 0 and last_errno() == errno.EPERM:
                more = 0
                fd = _fanotify_init(_INIT_FLAGS, os.O_RDONLY)
        super().__init__(check(fd, "fanotify_init"))
        self.has_unlimited_queue = bool(more & _UNLIMITED_QUEUE)
        self._handle = ctypes.create_string_buffer(_HANDLE_HEAD.size + _MAX_HANDLE)
        self._mount_id = ctypes.c_int()
        self._handle_pointers = ctypes.byref(self._handle), ctypes.byref(self._mount_id)
        self._handle_flags = _AT_HANDLE_FID

    def add(self, path: str, mask: int) -> None:
        """Mark the inode at ``path``, or add ``mask`` to the mask of its mark."""
        self._mark(_MARK_ADD, path, mask)

    def remove(self, path: str, mask: int) -> None:
        """Remove bits from the mask of a mark. The kernel removes a mark without bits."""
        self._mark(_MARK_REMOVE, path, mask)

    def remove_all(self) -> None:
        """Remove all marks."""
        check(_fanotify_mark(self._fd, _MARK_FLUSH, 0, AT_FDCWD, None), "fanotify_mark")

    def identity(self, fd: int) -> bytes:
        """Return what ``Info.identity`` is in events of the inode behind ``fd``.

        EOPNOTSUPP: fanotify cannot identify inodes of the file system.
        """
        fsid = os.fstatvfs(fd).f_fsid & 0xFFFFFFFFFFFFFFFF
        handle = self._fid(fd, b"", AT_EMPTY_PATH)
        assert handle is not None
        return fsid.to_bytes(FSID_SIZE, sys.byteorder) + handle

    def identity_at(self, dir_fd: int, name: bytes, fsid: bytes) -> bytes | None:
        """Return what ``identity`` is for an entry of a directory; None when there is no entry.

        ``fsid`` is the first part of the directory's identity, and the entry's as well unless
        another file system is mounted there.
        """
        handle = self._fid(dir_fd, name, 0)
        return None if handle is None else fsid + handle

    def open_object(self, mount_fd: int, identity: bytes) -> int:
        """Open an inode with O_PATH and return the descriptor, which the caller owns.

        ``mount_fd`` is a descriptor on the inode's file system. Needs CAP_DAC_READ_SEARCH.
        """
        return open_handle(mount_fd, identity[FSID_SIZE:])

    def read(self, size: int) -> list[FanEvent]:
        """Return up to ``size`` bytes of events; an empty list when no event is queued."""
        data = self.read_bytes(size)
        events = []
        offset = 0
        while offset < len(data):
            length, _version, _reserved, head, mask, _fd, pid = _unpack_metadata(data, offset)
            events.append(FanEvent(mask, pid, _infos(data, offset + head, offset + length)))
            offset += length
        return events

    def _fid(self, dir_fd: int, name: bytes, flags: int) -> bytes | None:
        """Return the ``struct file_handle`` of an inode, None when there is no such name.

        ``flags`` are those of name_to_handle_at(2).
        """
        _HANDLE_HEAD.pack_into(self._handle, 0, _MAX_HANDLE, 0)
        flags |= self._handle_flags
        if _name_to_handle_at(dir_fd, name, *self._handle_pointers, flags) < 0:
            error = last_errno()
            if error == errno.ENOENT:
                return None
            if error == errno.EINVAL and self._handle_flags:
                self._handle_flags = 0
                return self._fid(dir_fd, name, flags & ~_AT_HANDLE_FID)
            raise failure(error, "name_to_handle_at")
        size, _ = _HANDLE_HEAD.unpack_from(self._handle)
        return self._handle.raw[: _HANDLE_HEAD.size + size]

    def _mark(self, flags: int, path: str, mask: int) -> None:
        check(
            _fanotify_mark(self._fd, flags, mask, AT_FDCWD, os.fsencode(path)),
            "fanotify_mark",
        )


def _infos(data: bytes, offset: int, end: int) -> dict[int, Info]:
    infos = {}
    while offset < end:
        kind, length, size = _unpack_info(data, offset)
        name_at = offset + _HANDLE_AT + size
        identity = data[offset + _FSID_AT : name_at]
        offset += length
        # The name ends with one NUL or more.
        infos[kind] = Info(
            identity, data[name_at:offset].rstrip(b"\0") if kind != INFO_FID else b""
        )
    return infos
