# SPDX-License-Identifier: Apache-2.0
"""The state that a front-end migrates to another daemon: records of the journal (docs/state.md)."""

from __future__ import annotations

import construct

from farwatchd.wire.codec import Codec
from farwatchd.wire.journal import MAX_SIZE as MAX_JOURNAL
from farwatchd.wire.journal import Transaction, encode
from farwatchd.wire.journal import decode as decode_transactions
from farwatchd.wire.state import StateError

MAGIC = b"FWMIGRA\0"
#: Changes with each change of a record: another version is refused, never guessed.
VERSION = 1
#: Bytes of a whole state.
MAX_SIZE = MAX_JOURNAL
#: Records of a transaction.
_BATCH = 256

#: ``size`` is that of the whole state.
_header = Codec(
    construct.Struct(
        "magic" / construct.Bytes(8),
        "version" / construct.Int64ul,
        "size" / construct.Int64ul,
    ),
    "MigrationHeader",
)


def encode_migration(records: list[object]) -> bytes:
    """Return the encoded state; ``StateError`` if it is larger than MAX_SIZE."""
    parts = [encode(0, records[at : at + _BATCH]) for at in range(0, len(records), _BATCH)]
    size = _header.size + sum(map(len, parts))
    if size > MAX_SIZE:
        raise StateError(f"it has {size} bytes, at most {MAX_SIZE} are allowed")
    return _header.pack_values(MAGIC, VERSION, size) + b"".join(parts)


def decode_migration(data: bytes) -> list[Transaction]:
    """Decode a whole state; ``StateError`` for anything else than what the above returns."""
    if len(data) < _header.size:
        raise StateError("it is shorter than its header")
    magic, version, size = _header.values(data)
    if magic != MAGIC:
        raise StateError("it does not begin as a state of farwatchd does")
    if version != VERSION:
        raise StateError(
            f"it has version {version}, {VERSION} is supported; migrate between daemons of the same"
            " version"
        )
    if size != len(data):
        raise StateError(f"it has {len(data)} bytes of {size}")
    return list(decode_transactions(memoryview(data)[_header.size :]))
