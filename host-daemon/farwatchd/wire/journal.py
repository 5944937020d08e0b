# SPDX-License-Identifier: Apache-2.0
"""The journal of a session: what each request has changed of its state (docs/state.md).

A transaction has what one request has changed: records of the session's state, and those below.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_type_hints

import construct

from farwatchd.wire.codec import Codec
from farwatchd.wire.state import (
    FlockState,
    InterruptState,
    LockHandleState,
    LockState,
    NumbersState,
    OpenFileState,
    PendingReplyState,
    SessionState,
    StateError,
)
from farwatchd.wire.state_codec import RecordTable

MAGIC = b"FWJOURN\0"
#: Changes with each change of a record: another version is refused, never guessed.
VERSION = 1
#: Bytes of a journal.
MAX_SIZE = 1 << 31


class OptionsState(NamedTuple):
    """The options that a daemon must have to use the journal, as text."""

    text: bytes


class HandleInodeState(NamedTuple):
    """An inode that the guest knows, found by its file handle. ``key`` is the inode store's."""

    nodeid: int
    kind: int
    lookups: int
    named: int
    key: bytes


class PathInodeState(NamedTuple):
    """An inode that the guest knows, found by its path from the share's root.

    ``handle`` is its file handle where it has one; ``birth`` its time of birth in nanoseconds, 0
    where it has none.
    """

    nodeid: int
    kind: int
    lookups: int
    named: int
    device: int
    ino: int
    birth: int
    handle: bytes
    path: bytes


class LookupsState(NamedTuple):
    """The lookup count of an inode; with 0 it is forgotten."""

    nodeid: int
    lookups: int
    named: int


class MountPlaceState(NamedTuple):
    """A mount: the device of its inodes, and the path of one of its directories."""

    ident: int
    device: int
    path: bytes


class MountIdentityState(NamedTuple):
    """What identifies the file system of a mount elsewhere: its id, a directory's file handle.

    The directory is that of the mount's place.
    """

    ident: int
    file_system: int
    handle: bytes


class ReleasedState(NamedTuple):
    """An open file that the guest has closed."""

    fh: int


class UnlockedState(NamedTuple):
    """A lock owner has no lock on an inode but those that follow."""

    nodeid: int
    owner: int


class RenamedState(NamedTuple):
    """A path that the guest has renamed; ``exchanged`` with the other one."""

    path: bytes
    new_path: bytes
    exchanged: int


#: The records, numbered by their position.
RECORDS: tuple[Any, ...] = (
    OptionsState,
    SessionState,
    NumbersState,
    MountPlaceState,
    HandleInodeState,
    PathInodeState,
    LookupsState,
    OpenFileState,
    ReleasedState,
    FlockState,
    UnlockedState,
    LockState,
    LockHandleState,
    RenamedState,
    # Of a migration only.
    MountIdentityState,
    InterruptState,
    PendingReplyState,
)
_TABLES = [RecordTable(record.__name__, record) for record in RECORDS]
_NUMBER_OF = {record: number for number, record in enumerate(RECORDS)}
#: Bytes of what follows, its checksum, which starts with the lower half of the number that comes
#: next: that of the request, 0 for no request.
_TRANSACTION = struct.Struct("<IIQ")
#: A record's number, and its bytes.
_RECORD = struct.Struct("<II")

#: ``boot``: the id of the host's boot. ``generation``: of two journals the one with the larger
#: number is valid, none with 0. ``end``: bytes of the transactions.
header = Codec(
    construct.Struct(
        "magic" / construct.Bytes(8),
        "version" / construct.Int64ul,
        "boot" / construct.Bytes(16),
        "reserved" / construct.Int64ul,
        "generation" / construct.Int64ul,
        "end" / construct.Int64ul,
    ),
    "JournalHeader",
)
#: Positions of these two in the file, in units of 8 bytes.
GENERATION_AT, END_AT = 5, 6


def number_of(record: type[Any]) -> int:
    """Return the number of a record."""
    return _NUMBER_OF[record]


class Transaction(NamedTuple):
    """What the request ``unique`` has changed."""

    unique: int
    records: list[Any]


def encode(unique: int, records: Sequence[Any]) -> bytes:
    """Return a transaction's bytes."""
    parts = []
    for record in records:
        kind = type(record)
        head = _HEADS.get(kind)
        if head is not None:
            parts.append(head + _PACK[kind](*record))
            continue
        number = _NUMBER_OF[kind]
        data = b"".join(_TABLES[number].encode([record]))
        parts.append(_RECORD.pack(number, len(data)) + data)
    return _framed(unique, b"".join(parts))


_PACK = {record: _TABLES[number].pack for record, number in _NUMBER_OF.items()}
#: What comes before a record without strings, whose size is always the same.
_HEADS = {
    record: _RECORD.pack(number, len(_PACK[record](*(0 for _ in record._fields))))
    for record, number in _NUMBER_OF.items()
    if bytes not in get_type_hints(record).values()
}
_LOOKUPS_HEAD = _HEADS[LookupsState]
_pack_lookups = _PACK[LookupsState]
_HANDLE_INODE = _NUMBER_OF[HandleInodeState]
_pack_handle_inode = _PACK[HandleInodeState]
_HANDLE_INODE_SIZE = len(_pack_handle_inode(0, 0, 0, 0, 0))
_FILE_HEAD = _HEADS[OpenFileState]
_pack_file = _PACK[OpenFileState]
_RELEASED_HEAD = _HEADS[ReleasedState]
_pack_released = _PACK[ReleasedState]


def encode_lookups(unique: int, nodeid: int, lookups: int, named: int) -> bytes:
    """Return the transaction of most lookups: ``LookupsState`` alone."""
    return _framed(unique, _LOOKUPS_HEAD + _pack_lookups(nodeid, lookups, named))


def encode_handle_inode(
    unique: int, nodeid: int, kind: int, lookups: int, named: int, key: bytes
) -> bytes:
    """Return the transaction of a lookup that finds a new inode: ``HandleInodeState`` alone."""
    return _framed(unique, _handle_inode(nodeid, kind, lookups, named, key))


def encode_created(
    unique: int,
    nodeid: int,
    kind: int,
    lookups: int,
    named: int,
    key: bytes,
    file: OpenFileState,
) -> bytes:
    """Return the transaction of most new files: ``HandleInodeState`` and ``OpenFileState``."""
    inode = _handle_inode(nodeid, kind, lookups, named, key)
    return _framed(unique, inode + _FILE_HEAD + _pack_file(*file))


def _handle_inode(nodeid: int, kind: int, lookups: int, named: int, key: bytes) -> bytes:
    size = len(key)
    return (
        _RECORD.pack(_HANDLE_INODE, _HANDLE_INODE_SIZE + size)
        + _pack_handle_inode(nodeid, kind, lookups, named, size)
        + key
    )


def encode_file(unique: int, file: OpenFileState) -> bytes:
    """Return the transaction of most open(2): ``OpenFileState`` alone."""
    return _framed(unique, _FILE_HEAD + _pack_file(*file))


def encode_released(unique: int, fh: int) -> bytes:
    """Return the transaction of most closed files: ``ReleasedState`` alone."""
    return _framed(unique, _RELEASED_HEAD + _pack_released(fh))


def _framed(unique: int, body: bytes) -> bytes:
    return _TRANSACTION.pack(len(body), zlib.crc32(body, unique & 0xFFFFFFFF), unique) + body


def decode(data: memoryview) -> Iterator[Transaction]:
    """Yield the transactions that are all of ``data``; ``StateError``."""
    position = 0
    while position < len(data):
        if position + _TRANSACTION.size > len(data):
            raise StateError("its journal ends in the middle of a transaction")
        size, checksum, unique = _TRANSACTION.unpack_from(data, position)
        position += _TRANSACTION.size
        body = data[position : position + size]
        if len(body) != size:
            raise StateError("its journal ends in the middle of a transaction")
        if zlib.crc32(body, unique & 0xFFFFFFFF) != checksum:
            raise StateError("a checksum in its journal is wrong")
        position += size
        yield Transaction(unique, _records(body))


def _records(body: memoryview) -> list[Any]:
    records: list[Any] = []
    position = 0
    while position < len(body):
        if position + _RECORD.size > len(body):
            raise StateError("a record in its journal is incomplete")
        number, size = _RECORD.unpack_from(body, position)
        position += _RECORD.size
        if number >= len(_TABLES) or position + size > len(body):
            raise StateError("a record in its journal is incomplete or unknown")
        records += _TABLES[number].decode(body[position : position + size], 1)
        position += size
    return records
