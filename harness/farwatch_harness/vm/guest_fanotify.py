# SPDX-License-Identifier: Apache-2.0
"""fanotify groups in the guest, for the tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from farwatch_harness.vm.guest_client import Guest


class FanFlag(IntFlag):
    """fanotify_init(2) and fanotify_mark(2)."""

    # fanotify_init
    CLASS_CONTENT = 0x4
    REPORT_FID = 0x200
    REPORT_DFID_NAME = 0xC00
    REPORT_TARGET_FID = 0x1000
    REPORT_REMOTE = 0x8000
    REMOTE_ONLY = 0x10000
    # fanotify_mark: what to mark
    MARK_MOUNT = 0x10
    MARK_IGNORED_MASK = 0x20
    MARK_IGNORED_SURV_MODIFY = 0x40
    MARK_FILESYSTEM = 0x100


#: FAN_EVENT_INFO_TYPE_FID: the record of the object itself, beside that of directory and name.
TARGET = 1


class FanMask(IntFlag):
    """The events of fanotify; a subset of inotify's bits, and some more."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    OPEN_EXEC = 0x1000
    Q_OVERFLOW = 0x4000
    OPEN_PERM = 0x10000
    REMOTE = 0x04000000
    RENAME = 0x10000000
    ON_CHILD = 0x08000000
    ONDIR = 0x40000000


GROUP = """
import ctypes, os, select, struct

def fail(what):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

def new(flags):
    fd = libc.fanotify_init(flags | 0x3, os.O_RDONLY)
    return fd if fd >= 0 else fail("fanotify_init")

def mark(fd, flags, mask, path):
    if libc.fanotify_mark(fd, flags | 1, ctypes.c_uint64(mask), -100, path.encode()) < 0:
        fail(path)

def handle(path):
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    if libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.byref(ctypes.c_int()), 0) < 0:
        fail(path)
    size, _kind = struct.unpack_from("=Ii", buffer.raw)
    return buffer.raw[8 : 8 + size].hex()

def read(fd, count, limit):
    found = []
    while len(found) < count and select.select([fd], [], [], limit)[0]:
        data = os.read(fd, 65536)
        while data:
            length, _version, _reserved, header, mask, file, _pid = struct.unpack_from(
                "=IBBHQii", data
            )
            infos, at = [], header
            while at < length:
                kind, _pad, size = struct.unpack_from("=BBH", data, at)
                bytes_, _type = struct.unpack_from("=Ii", data, at + 12)
                object_ = data[at + 20 : at + 20 + bytes_].hex()
                name = data[at + 20 + bytes_ : at + size].split(bytes(1))[0].decode()
                infos.append([kind, object_, name])
                at += size
            path = None
            if file >= 0:
                path = os.readlink(f"/proc/self/fd/{file}")
                os.close(file)
            found.append([mask, infos, path])
            data = data[length:]
    return found

def close(fd):
    os.close(fd)

"""


@dataclass(frozen=True)
class Seen:
    """One event as a fanotify group reads it.

    kinds: the types of the information records, FAN_EVENT_INFO_TYPE_*.
    infos: file handle and name of each record.
    path: the path of the event's file descriptor, if it has one.
    """

    mask: FanMask
    kinds: list[int]
    infos: list[tuple[str, str]]
    path: str | None


class Group:
    """A fanotify group in the guest."""

    def __init__(self, guest: Guest, flags: FanFlag) -> None:
        self.guest = guest
        self.fd = int(self.call("new", int(flags)))

    def call(self, function: str, *args: object, limit: float = 10.0) -> Any:
        """Call a function of GROUP in the guest; GuestError has its exception."""
        return self.guest.python(f"{GROUP}main = {function}", *args, limit=limit)

    def mark(self, path: os.PathLike[str], mask: FanMask, flags: FanFlag = FanFlag(0)) -> None:  # noqa: B008
        """Add a mark of this group on `path`, a path of the guest."""
        self.call("mark", self.fd, int(flags), int(mask), os.fspath(path))

    def handle(self, path: os.PathLike[str]) -> str:
        """Return the file handle of a path of the guest, in hexadecimal."""
        return str(self.call("handle", os.fspath(path)))

    def read(self, count: int, limit: float = 10.0) -> list[Seen]:
        """Read `count` events, or fewer if none comes for `limit` seconds."""
        found = self.guest.python(
            f"{GROUP}main = read", self.fd, count, limit, limit=limit * (count + 1)
        )
        return [
            Seen(
                FanMask(mask),
                [info[0] for info in infos],
                [(info[1], info[2]) for info in infos],
                path,
            )
            for mask, infos, path in found
        ]

    def quiet(self) -> bool:
        """Return whether no event comes for half a second."""
        return not self.read(1, 0.5)


@contextmanager
def group(guest: Guest, flags: FanFlag) -> Iterator[Group]:
    """Make a fanotify group in the guest, and close it at the end of the block."""
    made = Group(guest, flags)
    try:
        yield made
    finally:
        made.call("close", made.fd)
