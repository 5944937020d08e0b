# SPDX-License-Identifier: Apache-2.0
"""One FUSE request: its header, arguments, names and extensions, copied from guest memory.

The arguments are copied first and checked then, since the guest may change its memory meanwhile.
The errno of an ``OSError`` is the reply's.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from farwatchd.fuse.extensions import XATTR_NAME_MAX
from farwatchd.fuse.extensions import parse as parse_extensions
from farwatchd.fuse.filesystem import Requester
from farwatchd.iovec import gather, slices
from farwatchd.linux.libc import NO_ID, OFFSET_MAX
from farwatchd.virtqueue import Chain
from farwatchd.wire.fuse import InHeader, Opcode, in_header, out_header, write_in

#: ``FUSE_NAME_MAX``, bytes. The host's file system refuses a name that is too long for it: some
#: (vfat, exfat, ntfs3, cifs) allow 255 characters, which are more bytes.
NAME_MAX = 1024
#: A symbolic link's target, without the NUL.
TARGET_MAX = 4095
#: Arguments of all but WRITE: the largest is a BATCH_FORGET that fills the client's largest
#: request.
MAX_ARGS = 1 << 20
_INT_MAX = (1 << 31) - 1
_HEADER_SIZE = in_header.size
_REPLY_HEADER_SIZE = out_header.size
_WRITE_IN_SIZE = write_in.size
_WRITE = int(Opcode.WRITE)


class Request:
    """A request after its header: ``args`` are copied, ``writable`` is guest memory.

    ``room`` is the size of ``writable`` after the reply's header. Only WRITE has ``data``, which is
    guest memory of ``data_size`` bytes.
    """

    __slots__ = (
        "args",
        "data",
        "data_size",
        "extensions",
        "header",
        "nodeid",
        "room",
        "writable",
    )

    # Not a dataclass: attributes that few requests have cost the others no time.
    def __init__(
        self, header: InHeader, args: bytes, writable: Sequence[memoryview], room: int
    ) -> None:
        self.header = header
        self.nodeid = header[3]
        self.args = args
        self.writable = writable
        self.room = room
        self.data: Sequence[memoryview]
        self.data_size: int
        #: The bytes after the arguments (7.38); empty for most requests.
        self.extensions = b""

    @property
    def unique(self) -> int:
        """The number that the reply has, too."""
        return self.header[2]

    @property
    def uid(self) -> int:
        """The requester's user id."""
        return self.header[4]

    def target(self, size: int) -> Sequence[memoryview]:
        """Return the memory of a payload after the reply's header; ``size`` is at most ``room``."""
        if size == self.room and len(self.writable[0]) == _REPLY_HEADER_SIZE:
            return self.writable[1:]
        return slices(self.writable, _REPLY_HEADER_SIZE, size)

    def requester(self) -> Requester:
        """Return the requester, for a new inode; EINVAL without valid ids."""
        uid, gid, pid = self.header[4:7]
        if uid == NO_ID or gid == NO_ID:
            raise invalid("no owner for a new inode")
        if not self.extensions:
            return Requester(uid, gid, pid)
        return Requester(uid, gid, pid, *parse_extensions(self.extensions))

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
        """Return ``count`` strings, each ended by NUL, from ``args[start:]`` on.

        EINVAL: a string has no end.
        """
        parts = self.args[start:].split(b"\0", count)
        if len(parts) <= count:
            raise _endless()
        return parts[:count]


def decode(header: InHeader, chain: Chain, room: int) -> Request:
    """Decode the request with this header; EINVAL when its lengths are impossible.

    ``room``: bytes of ``chain`` for the reply's payload.
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
    """Refuse all but one name in a directory, so that no name reaches outside the share.

    ENAMETOOLONG, EINVAL.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name is too long")
    if not name or b"/" in name or name == b"." or name == b"..":
        raise invalid("not a file name")


def check_xattr_name(name: bytes) -> None:
    """Refuse a name that xattr(7) refuses: ERANGE."""
    if not 0 < len(name) <= XATTR_NAME_MAX:
        raise OSError(errno.ERANGE, "not an attribute's name")


def check_offset(*offsets: int) -> None:
    """Refuse an offset that is negative as an ``loff_t``: EINVAL."""
    for offset in offsets:
        if offset > OFFSET_MAX:
            raise invalid("a negative offset")


def check_int(*values: int) -> None:
    """Refuse flags and modes that are negative as an ``int``: EINVAL."""
    for value in values:
        if value > _INT_MAX:
            raise invalid("unknown flags")
