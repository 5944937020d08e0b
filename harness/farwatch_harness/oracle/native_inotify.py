# SPDX-License-Identifier: Apache-2.0
"""inotify(7) of the system on which this process runs: the host, or the guest."""

import ctypes
import os
import select
import struct
from enum import IntFlag
from pathlib import Path
from typing import Self

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import GuestInotifyEvent

HEAD = struct.Struct("=iIII")
LIBC = ctypes.CDLL(None, use_errno=True)
#: Seconds for an event that must come.
LIMIT = 20.0


class In(IntFlag):
    """The bits of inotify(7)."""

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
    ALL = 0xFFF
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    DONT_FOLLOW = 0x2000000
    EXCL_UNLINK = 0x4000000
    MASK_CREATE = 0x10000000
    MASK_ADD = 0x20000000
    ISDIR = 0x40000000
    ONESHOT = 0x80000000


class NativeInotify:
    """An inotify instance of this process."""

    def __init__(self) -> None:
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def add(self, path: Path, mask: int) -> int:
        """Add or change a watch; return its watch descriptor.

        OSError: inotify_add_watch(2) failed.
        """
        wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))
        return int(wd)

    def remove(self, wd: int) -> None:
        """Remove a watch.

        OSError: inotify_rm_watch(2) failed.
        """
        if LIBC.inotify_rm_watch(self.fd, wd) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"watch {wd}")

    def read(self, until: str) -> list[GuestInotifyEvent]:
        """Return all events up to the first one with the name `until`.

        HarnessError: no such event came in LIMIT seconds.
        """
        events: list[GuestInotifyEvent] = []
        while not any(event.name == until for event in events):
            more = self.read_ready(LIMIT)
            if not more:
                raise HarnessError(f"native inotify did not report {until!r} in {LIMIT:.0f} s")
            events += more
        return events

    def read_ready(self, limit: float) -> list[GuestInotifyEvent]:
        """Wait up to `limit` seconds for an event; return the events of one read(2)."""
        if not select.select([self.fd], [], [], limit)[0]:
            return []
        data = os.read(self.fd, 1 << 20)
        events = []
        at = 0
        while at < len(data):
            wd, mask, cookie, length = HEAD.unpack_from(data, at)
            at += HEAD.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            events.append(GuestInotifyEvent(wd, mask, cookie, name, 0.0))
        return events

    def close(self) -> None:
        """Close the instance."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
