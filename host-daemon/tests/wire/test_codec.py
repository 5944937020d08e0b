# SPDX-License-Identifier: Apache-2.0
"""Codecs: names, what is left out, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from construct import Bytes, Int16ul, Int32sl, Int32ub, Struct, VarInt, this
from farwatchd.wire.codec import Codec

FILE = Codec(Struct("kind" / Int16ul, "name" / Bytes(3), "error" / Int32sl), "file")


def test_structure_is_unpacked_by_the_names_of_its_fields() -> None:
    packed = FILE.pack(kind=1, name=b"abc", error=-4)
    assert packed == struct.pack("<H3si", 1, b"abc", -4)
    found = FILE.unpack_from(b"x" + packed, 1)
    assert found._asdict() == {"kind": 1, "name": b"abc", "error": -4}
    assert FILE.values(packed) == tuple(found)


def test_fields_that_are_left_out_are_zero() -> None:
    assert FILE.pack(error=-1) == bytes(5) + b"\xff" * 4


def test_unknown_fields_and_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"file has no fields \['mode', 'size'\]"):
        FILE.pack(size=1, mode=1)
    with pytest.raises(struct.error):
        FILE.pack(kind=1 << 16)
    with pytest.raises(struct.error):
        FILE.unpack_from(bytes(8))


@pytest.mark.parametrize("field", [Int32ub, VarInt, Bytes(this.kind)], ids=str)
def test_fields_that_would_be_decoded_otherwise_than_declared_are_refused(field: Any) -> None:
    with pytest.raises(TypeError, match="no fixed-size little-endian codec"):
        Codec(Struct("kind" / Int16ul, "field" / field), "file")
