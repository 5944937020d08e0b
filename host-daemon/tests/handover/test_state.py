# SPDX-License-Identifier: Apache-2.0
"""The encoding of a session's state: what goes in comes out, and nothing else does."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from farwatchd.wire import state_codec as wire
from farwatchd.wire.state import (
    NONE,
    VERSION,
    Descriptors,
    EventRecordState,
    ReceivedDescriptors,
    State,
    StateError,
)
from farwatchd.wire.state_codec import decode, encode
from hypothesis import given
from hypothesis import strategies as st

_HEADER = wire._header.size
_NUMBERS = st.integers(0, NONE)
_STRINGS = st.binary(max_size=40)


def _records(record: Any) -> st.SearchStrategy[list[Any]]:
    hints = get_type_hints(record)
    values = [_STRINGS if hints[name] is bytes else _NUMBERS for name in record._fields]
    return st.lists(st.builds(record, *values), min_size=1, max_size=2)


_TABLES = {
    each.name: _records(get_type_hints(State)[each.name].__args__[0]) for each in fields(State)
}


@st.composite
def _states(draw: st.DrawFn) -> State:
    """Draw a state with records in some tables: with all of them it would be too large."""
    names = draw(st.sets(st.sampled_from(sorted(_TABLES)), max_size=3))
    return State(**{name: draw(_TABLES[name]) for name in sorted(names)})


STATES = _states()


@given(STATES)
def test_decoded_state_is_the_encoded_one(state: State) -> None:
    assert decode(encode(state)) == state


@given(STATES, st.data())
def test_truncated_state_is_refused(state: State, data: st.DataObject) -> None:
    encoded = encode(state)
    with pytest.raises(StateError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(StateError):
        decode(encoded + b"\0")


@given(STATES, st.data())
def test_changed_byte_is_refused(state: State, data: st.DataObject) -> None:
    encoded = bytearray(encode(state))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError) as caught:
        decode(bytes(encoded))
    assert "\n" not in str(caught.value)


@given(STATES, st.data())
def test_wrong_state_with_a_right_checksum_is_decoded_or_refused(
    state: State, data: st.DataObject
) -> None:
    body = bytearray(encode(state)[_HEADER:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    encoded = sealed(bytes(body))
    try:
        decoded = decode(encoded)
    except StateError:
        return
    assert encode(decoded) == encoded


def sealed(body: bytes) -> bytes:
    """Return a state with the right size and checksum."""
    size = _HEADER + len(body)
    checksum = zlib.crc32(body, zlib.crc32(wire._header.pack_values(wire.MAGIC, VERSION, 0, size)))
    return wire._header.pack_values(wire.MAGIC, VERSION, checksum, size) + body


def section(count: int, *parts: bytes) -> bytes:
    """Return a section as its header counts it."""
    data = b"".join(parts)
    return wire._section.pack_values(count, len(data)) + data


#: The tables before the first one whose records have strings, and one after that.
_BEFORE = [each.name for each in fields(State)].index("pending")
_RECORD = struct.Struct("<QQQ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (section(0) * 3, "its vrings are missing"),
        (section(0) * 2 + section(0)[:5], "are missing"),
        (wire._section.pack_values(0, 8), "its server are incomplete"),
        (section(2, bytes(32)), "its server are incomplete"),
        (section(1, bytes(48)), "its server are followed by 8 bytes"),
        (section(0) * len(fields(State)) + b"more", "it is followed by 4 bytes"),
        # A string that is longer than the section.
        (section(0) * _BEFORE + section(1, _RECORD.pack(0, 0, 9), b"12345678"), "incomplete"),
        (section(0) * _BEFORE + section(1, _RECORD.pack(0, 0, NONE)), "incomplete"),
        # The second record is a part of the first one's string.
        (section(0) * _BEFORE + section(2, _RECORD.pack(0, 0, 20), bytes(24)), "incomplete"),
    ],
)
def test_state_that_contradicts_its_own_sizes_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        decode(sealed(body))


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        decode(data)


def test_another_version_is_refused_by_its_number() -> None:
    encoded = bytearray(encode(State()))
    encoded[8:12] = (VERSION + 1).to_bytes(4, "little")
    with pytest.raises(StateError, match=f"version {VERSION + 1}, {VERSION} is supported"):
        decode(bytes(encoded))


def test_state_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_SIZE", 1000)
    with pytest.raises(StateError, match="at most 1000"):
        encode(State(events=[EventRecordState(bytes(600))] * 2))


def test_descriptor_is_taken_once() -> None:
    collected = Descriptors()
    assert collected.add(None) == collected.add(-1) == NONE
    assert collected.add(7) == 0 and collected.fds == [7]
    fd = os.open("/dev/null", os.O_RDONLY)
    surplus = os.dup(fd)
    received = ReceivedDescriptors([fd, surplus])
    assert received.take_any(NONE) is None
    assert received.take(0) == fd
    received.close()
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(surplus)
    for index in (0, 1, NONE):
        with pytest.raises(StateError):
            received.take(index)
