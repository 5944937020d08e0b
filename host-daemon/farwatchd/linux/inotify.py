# SPDX-License-Identifier: Apache-2.0
"""inotify(7) through the C library: one instance, its watches and its events."""

from __future__ import annotations

import ctypes
import os
import struct
from enum import IntFlag
from typing import NamedTuple

from farwatchd.linux.group import NotificationGroup
from farwatchd.linux.libc import check, function

_EVENT = struct.Struct("=iIII")
_MAX_U32 = 0xFFFFFFFF


class InotifyBit(IntFlag):
    """Bits of ``linux/inotify.h``.

    fanotify has the same bits for the same events. OPEN_EXEC exists in fanotify only.
    """

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    OPEN_EXEC = 0x1000
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    ISDIR = 0x40000000


class InotifyEvent(NamedTuple):
    """``struct inotify_event``. ``mask`` is a plain int, because it is tested for every event."""

    wd: int
    mask: int
    cookie: int
    name: bytes


_inotify_init1 = function("inotify_init1")
_inotify_add_watch = function("inotify_add_watch")
_inotify_rm_watch = function("inotify_rm_watch")


class Inotify(NotificationGroup):
    """An inotify instance. Its methods raise ``OSError`` with the kernel's errno."""

    def __init__(self, fd: int | None = None) -> None:
        """Make an instance, or take ownership of the descriptor ``fd`` of one."""
        if fd is None:
            fd = _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        super().__init__(check(fd, "inotify_init1"))

    def add(self, path: str, mask: int) -> int:
        """Watch the inode at ``path``, or replace its mask; return the watch descriptor."""
        encoded = ctypes.c_char_p(os.fsencode(path))
        return check(
            _inotify_add_watch(self._fd, encoded, ctypes.c_uint32(mask)),
            "inotify_add_watch",
        )

    def remove(self, wd: int) -> None:
        """End a watch; EINVAL when the kernel has ended it already."""
        check(_inotify_rm_watch(self._fd, wd), "inotify_rm_watch")

    def read(self, size: int) -> list[InotifyEvent]:
        """Return up to ``size`` bytes of events; an empty list when no event is queued."""
        data = self.read_bytes(size)
        events = []
        offset = 0
        while offset < len(data):
            wd, mask, cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + length].rstrip(b"\0") if length else b""
            events.append(InotifyEvent(wd, mask & _MAX_U32, cookie, name))
            offset += length
        return events
