# SPDX-License-Identifier: Apache-2.0
"""One FUSE request: its header, arguments, names and extensions, taken out of guest memory and checked.

What is checked is copied first, since the guest may change its memory meanwhile. ``OSError`` is what the guest gets.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farwatchd.fuse.extensions import parse as parse_extensions
from farwatchd.fuse.filesystem import Caller
from farwatchd.segments import cut, gather
from farwatchd.wire.fuse import Opcode, in_header, write_in

NAME_MAX = 255
#: ``XATTR_NAME_MAX`` and ``XATTR_SIZE_MAX``.
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65536
#: A symbolic link's target, without the NUL.
TARGET_MAX = 4095
#: Arguments of all but WRITE: the largest is a BATCH_FORGET that fills the client's largest request.
MAX_ARGS = 1 << 20
_NO_ID = 0xFFFFFFFF
_OFFSET_MAX = (1 << 63) - 1
_INT_MAX = (1 << 31) - 1
_HEADER_SIZE = in_header.size
_WRITE_IN_SIZE = write_in.size
_WRITE = int(Opcode.WRITE)


@dataclass(slots=True)
class Request:
    """A request after its header: ``args`` are copied, ``data`` (WRITE alone) and ``writable`` are guest memory.

    ``data_size`` is what ``data`` holds, ``room`` what ``writable`` holds after the reply's header. ``extensions``
    follow the arguments (7.38).
    """

    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    args: bytes
    extensions: bytes
    data: list[memoryview]
    data_size: int
    writable: Sequence[memoryview]
    room: int

    def caller(self) -> Caller:
        """Who makes something new; EINVAL without valid ids."""
        if _NO_ID in (self.uid, self.gid):
            raise invalid("no owner for a new inode")
        if not self.extensions:
            return Caller(self.uid, self.gid, self.pid)
        return Caller(self.uid, self.gid, self.pid, *parse_extensions(self.extensions))

    def name(self, start: int) -> bytes:
        """The file name at ``args[start:]``; EINVAL or ENAMETOOLONG if it is none."""
        name, end, _ = self.args[start:].partition(b"\0")
        if not end:
            raise _endless()
        check_name(name)
        return name

    def names(self, start: int, count: int) -> list[bytes]:
        """``count`` file names, each ended by NUL, from ``args[start:]`` on."""
        names = self.strings(start, count)
        for name in names:
            check_name(name)
        return names

    def strings(self, start: int, count: int) -> list[bytes]:
        """``count`` strings, each ended by NUL, from ``args[start:]`` on; EINVAL when one has no end."""
        parts = self.args[start:].split(b"\0", count)
        if len(parts) <= count:
            raise _endless()
        return parts[:count]


def decode(
    header: tuple[Any, ...], readable: Sequence[memoryview], writable: Sequence[memoryview], room: int
) -> Request:
    """Take the request apart whose ``in_header`` has the values ``header``; EINVAL when its lengths are impossible."""
    size, opcode, unique, nodeid, uid, gid, pid, extension_units, _ = header
    length = size - _HEADER_SIZE
    data: list[memoryview] = []
    data_size = 0
    if opcode == _WRITE:
        _check_length(size, readable)
        data_size = max(length - _WRITE_IN_SIZE, 0)
        args = gather(readable, _HEADER_SIZE, length - data_size)
        data = cut(readable, _HEADER_SIZE + _WRITE_IN_SIZE, data_size)
    elif length > MAX_ARGS:
        raise invalid(f"{length} bytes of arguments")
    elif len(readable) == 2 and len(readable[0]) == _HEADER_SIZE and len(readable[1]) == length:
        # As Linux sends most.
        args = readable[1].tobytes()
    else:
        _check_length(size, readable)
        args = gather(readable, _HEADER_SIZE, length)
    extensions = b""
    if extension_units:
        extension_size = 8 * extension_units
        if extension_size > len(args):
            raise invalid(f"{extension_size} bytes of extensions")
        args, extensions = args[:-extension_size], args[-extension_size:]
    return Request(unique, nodeid, uid, gid, pid, args, extensions, data, data_size, writable, room)


def _check_length(size: int, readable: Sequence[memoryview]) -> None:
    if not _HEADER_SIZE <= size <= sum(map(len, readable)):
        raise invalid(f"a length of {size}")


def _endless() -> OSError:
    return invalid("a string without an end")


def invalid(what: str) -> OSError:
    """The error for a request that no client in order sends."""
    return OSError(errno.EINVAL, what)


def check_name(name: bytes) -> None:
    """Refuse what is not one name in a directory, so that nothing outside the share can be reached by it."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name is too long")
    if not name or b"/" in name or name == b"." or name == b"..":
        raise invalid("not a file name")


def check_xattr_name(name: bytes) -> None:
    """Refuse what xattr(7) does: ERANGE."""
    if not 0 < len(name) <= XATTR_NAME_MAX:
        raise OSError(errno.ERANGE, "not an attribute's name")


def check_offset(*offsets: int) -> None:
    """EINVAL for what is negative as an ``loff_t``."""
    for offset in offsets:
        if offset > _OFFSET_MAX:
            raise invalid("a negative offset")


def check_int(*values: int) -> None:
    """EINVAL for what is negative as an ``int``: flags and modes with the highest bit."""
    for value in values:
        if value > _INT_MAX:
            raise invalid("unknown flags")
