# SPDX-License-Identifier: Apache-2.0
"""The one encoding of a session's state (docs/state.md). Integers are 64 bits, little-endian."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

import construct

from farwatchd.wire.codec import Codec
from farwatchd.wire.state import VERSION, State, StateError

MAGIC = b"FWSTATE\0"
#: Bytes of a whole state: some 4 million inodes.
MAX_SIZE = 1 << 30


class RecordTable:
    """Encodes the records of one kind: all integers, and the lengths of all strings; then these."""

    def __init__(self, name: str, record: Any) -> None:
        self.name = name
        self._record = record
        hints = get_type_hints(record)
        self._strings = [index for index, each in enumerate(record._fields) if hints[each] is bytes]
        layout = construct.Struct(*(each / construct.Int64ul for each in record._fields))
        self._codec = Codec(layout, record.__name__)
        #: Encodes the integers of one record, strings by their lengths.
        self.pack = self._codec.pack_values

    def encode(self, records: Iterable[Any]) -> list[bytes]:
        """Return the encoded records, in parts."""
        pack, strings = self._codec.pack_values, self._strings
        parts = []
        for record in records:
            if not strings:
                parts.append(pack(*record))
                continue
            values = list(record)
            tail = []
            for index in strings:
                tail.append(values[index])
                values[index] = len(values[index])
            parts.append(pack(*values))
            parts += tail
        return parts

    def decode(self, data: memoryview, count: int) -> list[Any]:
        """Decode ``count`` records that are all of ``data``; ``StateError``."""
        values_of, size, make = self._codec.values, self._codec.size, self._record._make
        if count * size > len(data):
            raise StateError(f"its {self.name} are incomplete")
        records = []
        position = 0
        try:
            for _ in range(count):
                values = values_of(data, position)
                position += size
                if self._strings:
                    mixed: list[Any] = list(values)
                    for index in self._strings:
                        end = position + mixed[index]
                        if end > len(data):
                            raise StateError(f"its {self.name} are incomplete")
                        mixed[index] = data[position:end].tobytes()
                        position = end
                    values = tuple(mixed)
                records.append(make(values))
        except struct.error:
            raise StateError(f"its {self.name} are incomplete") from None
        if position != len(data):
            raise StateError(f"its {self.name} are followed by {len(data) - position} bytes")
        return records


def _record_of(name: str) -> Any:
    return get_type_hints(State)[name].__args__[0]


_TABLES = [RecordTable(each.name, _record_of(each.name)) for each in fields(State)]

#: ``size`` is that of the whole state. ``checksum`` is CRC-32 of the state with a checksum of 0.
_header = Codec(
    construct.Struct(
        "magic" / construct.Bytes(8),
        "version" / construct.Int32ul,
        "checksum" / construct.Int32ul,
        "size" / construct.Int64ul,
    ),
    "StateHeader",
)
_section = Codec(
    construct.Struct("count" / construct.Int64ul, "size" / construct.Int64ul), "StateSection"
)


def encode(state: State) -> bytes:
    """Return the encoded state; ``StateError`` if it is larger than MAX_SIZE."""
    parts = [b""]
    for table in _TABLES:
        records = getattr(state, table.name)
        encoded = table.encode(records)
        parts.append(_section.pack_values(len(records), sum(map(len, encoded))))
        parts += encoded
    size = _header.size + sum(map(len, parts))
    if size > MAX_SIZE:
        raise StateError(f"it has {size} bytes, at most {MAX_SIZE} are allowed")
    body = b"".join(parts)
    head = _header.pack_values(MAGIC, VERSION, 0, size)
    checksum = zlib.crc32(body, zlib.crc32(head))
    return _header.pack_values(MAGIC, VERSION, checksum, size) + body


def decode(data: bytes) -> State:
    """Decode a whole state; ``StateError`` for anything else than what ``encode`` returns."""
    if len(data) < _header.size:
        raise StateError("it is shorter than its header")
    head = _header.unpack_from(data)
    if head.magic != MAGIC:
        raise StateError("it does not begin as a state does")
    if head.version != VERSION:
        raise StateError(f"it has version {head.version}, {VERSION} is supported")
    if head.size != len(data):
        raise StateError(f"it has {len(data)} bytes of {head.size}")
    view = memoryview(data)
    empty = _header.pack_values(head.magic, head.version, 0, head.size)
    if zlib.crc32(view[_header.size :], zlib.crc32(empty)) != head.checksum:
        raise StateError("its checksum is wrong")
    found: dict[str, list[Any]] = {}
    position = _header.size
    for table in _TABLES:
        if position + _section.size > len(data):
            raise StateError(f"its {table.name} are missing")
        count, size = _section.values(view, position)
        position += _section.size
        if position + size > len(data):
            raise StateError(f"its {table.name} are incomplete")
        found[table.name] = table.decode(view[position : position + size], count)
        position += size
    if position != len(data):
        raise StateError(f"it is followed by {len(data) - position} bytes")
    return State(**found)
