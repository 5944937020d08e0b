# SPDX-License-Identifier: Apache-2.0
"""One FUSE request: its header, arguments, names and extensions, copied from guest memory and
checked.

The copy comes first, since the guest may change its memory meanwhile. The guest gets an ``OSError``
as the reply's errno.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from farwatchd.fuse.extensions import parse as parse_extensions
from farwatchd.fuse.filesystem import Caller
from farwatchd.iovec import gather, slices
from farwatchd.virtqueue import Chain
from farwatchd.wire.fuse import InHeader, Opcode, in_header, out_header, write_in

#: ``FUSE_NAME_MAX``, bytes. What is too long for the host's file system is the host's error: some
#: (vfat, exfat, ntfs3, cifs) allow 255 characters, which are more bytes.
NAME_MAX = 1024
#: ``XATTR_NAME_MAX`` and ``XATTR_SIZE_MAX``.
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65536
#: A symbolic link's target, without the NUL.
TARGET_MAX = 4095
#: Arguments of all but WRITE: the largest is a BATCH_FORGET that fills the client's largest
#: request.
MAX_ARGS = 1 << 20
_NO_ID = 0xFFFFFFFF
OFFSET_MAX = (1 << 63) - 1
_INT_MAX = (1 << 31) - 1
_HEADER_SIZE = in_header.size
_REPLY_HEADER_SIZE = out_header.size
_WRITE_IN_SIZE = write_in.size
_WRITE = int(Opcode.WRITE)


class Request:
    """A request after its header: ``args`` are copied, ``writable`` is guest memory.

    ``room`` is what ``writable`` holds after the reply's header. Only WRITE has ``data``, which is
    guest memory and holds ``data_size`` bytes.
    """

    __slots__ = (
        "args",
        "data",
        "data_size",
        "extensions",
        "gid",
        "nodeid",
        "pid",
        "room",
        "uid",
        "unique",
        "writable",
    )

    # Not a dataclass: attributes of few requests cost nothing for the others.
    def __init__(
        self, header: InHeader, args: bytes, writable: Sequence[memoryview], room: int
    ) -> None:
        _, _, self.unique, self.nodeid, self.uid, self.gid, self.pid, _, _ = header
        self.args = args
        self.writable = writable
        self.room = room
        self.data: Sequence[memoryview]
        self.data_size: int
        #: What follows the arguments (7.38); empty for most requests.
        self.extensions = b""

    def target(self, size: int) -> Sequence[memoryview]:
        """Return where a payload of ``size`` bytes, at most ``room``, goes after its header."""
        if size == self.room and len(self.writable[0]) == _REPLY_HEADER_SIZE:
            return self.writable[1:]
        return slices(self.writable, _REPLY_HEADER_SIZE, size)

    def caller(self) -> Caller:
        """Return the requester, who makes something new; EINVAL without valid ids."""
        if self.uid == _NO_ID or self.gid == _NO_ID:
            raise invalid("no owner for a new inode")
        if not self.extensions:
            return Caller(self.uid, self.gid, self.pid)
        return Caller(self.uid, self.gid, self.pid, *parse_extensions(self.extensions))

    def name(self, start: int) -> bytes:
        """Return the file name at ``args[start:]``; EINVAL or ENAMETOOLONG if it is invalid."""
        name, end, _ = self.args[start:].partition(b"\0")
        if not end:
            raise _endless()
        check_name(name)
        return name

    def names(self, start: int, count: int) -> list[bytes]:
        """Return ``count`` file names, each ended by NUL, from ``args[start:]`` on."""
        names = self.strings(start, count)
        for name in names:
            check_name(name)
        return names

    def strings(self, start: int, count: int) -> list[bytes]:
        """Return ``count`` strings, each ended by NUL, from ``args[start:]`` on; EINVAL when one
        has no end."""
        parts = self.args[start:].split(b"\0", count)
        if len(parts) <= count:
            raise _endless()
        return parts[:count]


def decode(header: InHeader, chain: Chain, room: int) -> Request:
    """Decode the request with this header; EINVAL when its lengths are impossible.

    ``room``: bytes that ``chain`` holds for the reply's payload.
    """
    readable = chain.readable
    size = header[0]
    length = size - _HEADER_SIZE
    if header[1] == _WRITE:
        return _decode_write(header, chain, room)
    if (
        len(readable) == 2
        and len(readable[1]) == length
        and len(readable[0]) == _HEADER_SIZE
        and length <= MAX_ARGS
    ):
        # As Linux sends most.
        args = readable[1].tobytes()
    else:
        if length > MAX_ARGS:
            raise invalid(f"{length} bytes of arguments")
        _check_length(size, chain)
        args = gather(readable, _HEADER_SIZE, length)
    request = Request(header, args, chain.writable, room)
    return _split_extensions(request, header[7]) if header[7] else request


def _decode_write(header: InHeader, chain: Chain, room: int) -> Request:
    readable = chain.readable
    size = header[0]
    data_size = size - _HEADER_SIZE - _WRITE_IN_SIZE
    if (
        size == chain.readable_size
        and data_size > 0
        and len(readable[0]) == _HEADER_SIZE
        and len(readable[1]) == _WRITE_IN_SIZE
    ):
        # As Linux sends it.
        args, data = readable[1].tobytes(), readable[2:]
    else:
        _check_length(size, chain)
        data_size = max(data_size, 0)
        args = gather(readable, _HEADER_SIZE, size - _HEADER_SIZE - data_size)
        data = slices(readable, _HEADER_SIZE + _WRITE_IN_SIZE, data_size)
    request = Request(header, args, chain.writable, room)
    request.data, request.data_size = data, data_size
    return _split_extensions(request, header[7]) if header[7] else request


def _split_extensions(request: Request, units: int) -> Request:
    """Split off the extensions, of ``units`` times 8 bytes, from the arguments."""
    size = 8 * units
    if size > len(request.args):
        raise invalid(f"{size} bytes of extensions")
    request.args, request.extensions = request.args[:-size], request.args[-size:]
    return request


def _check_length(size: int, chain: Chain) -> None:
    if not _HEADER_SIZE <= size <= chain.readable_size:
        raise invalid(f"a length of {size}")


def _endless() -> OSError:
    return invalid("a string without an end")


def invalid(what: str) -> OSError:
    """Return the error for a request that no correct client sends."""
    return OSError(errno.EINVAL, what)


def check_name(name: bytes) -> None:
    """Refuse what is not one name in a directory, so that no name reaches outside the share."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name is too long")
    if not name or b"/" in name or name == b"." or name == b"..":
        raise invalid("not a file name")


def check_xattr_name(name: bytes) -> None:
    """Refuse what xattr(7) refuses: ERANGE."""
    if not 0 < len(name) <= XATTR_NAME_MAX:
        raise OSError(errno.ERANGE, "not an attribute's name")


def check_offset(*offsets: int) -> None:
    """Refuse what is negative as an ``loff_t``: EINVAL."""
    for offset in offsets:
        if offset > OFFSET_MAX:
            raise invalid("a negative offset")


def check_int(*values: int) -> None:
    """Refuse what is negative as an ``int``, flags and modes with the highest bit: EINVAL."""
    for value in values:
        if value > _INT_MAX:
            raise invalid("unknown flags")
