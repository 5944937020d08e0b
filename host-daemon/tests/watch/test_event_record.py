# SPDX-License-Identifier: Apache-2.0
"""Event records: bytes as in docs/protocol.md, and every rule of the decoder."""

from __future__ import annotations

from typing import Any

import pytest
from farwatchd.watch.event_record import (
    OVERFLOW,
    RECORD_MAX,
    WATCHES_LOST,
    EventRecord,
    watch_ended,
)
from farwatchd.wire.fsnotify import Event
from hypothesis import given
from hypothesis import strategies as st
from tests.support.event_records import decode_all

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
U64 = st.integers(1, 2**64 - 1)
ENTRY_BITS = (
    Event.CREATE,
    Event.DELETE,
    Event.MOVED_FROM,
    Event.MOVED_TO,
    Event.OPEN | Event.ON_CHILD,
)


def make_record(**fields: Any) -> EventRecord:
    """Make a record; Hypothesis would make up the fields that are left out."""
    return EventRecord(**fields)


ENTRY = st.builds(
    make_record, nodeid=U64, generation=U64, mask=st.sampled_from(ENTRY_BITS), name=NAMES
)
RENAME = st.builds(
    make_record,
    nodeid=U64,
    generation=U64,
    mask=st.sampled_from((Event.RENAME, Event.RENAME | Event.ISDIR)),
    name=NAMES,
    newdir=U64,
    newdir_generation=U64,
    newname=NAMES,
)


@given(st.lists(st.one_of(ENTRY, RENAME, st.just(OVERFLOW))))
def test_records_survive_encode_and_decode(records: list[EventRecord]) -> None:
    assert decode_all(b"".join(record.encode() for record in records)) == records


def test_record_has_the_layout_of_the_protocol() -> None:
    encoded = EventRecord(
        0x11, 0x22, Event.MOVED_FROM | Event.ISDIR, b"abc", unpaired=True
    ).encode()
    assert encoded == (
        (88).to_bytes(4, "little") + (1).to_bytes(2, "little") + (80).to_bytes(2, "little")
        + (0x11).to_bytes(8, "little") + (0x22).to_bytes(8, "little")
        + (1 << 6 | 1 << 30).to_bytes(4, "little") + (3).to_bytes(2, "little")
        + (0).to_bytes(2, "little")
        + bytes(48) + b"abc" + bytes(5)
    )  # fmt: skip


@pytest.mark.parametrize(("length", "size"), [(1, 88), (8, 88), (9, 96), (255, 336)])
def test_names_are_padded_to_eight_bytes(length: int, size: int) -> None:
    assert len(EventRecord(1, 0, Event.CREATE, b"n" * length).encode()) == size


def test_longest_record_has_record_max_bytes() -> None:
    longest = EventRecord(1, 0, Event.RENAME, b"a" * 255, newdir=2, newname=b"b" * 255)
    assert len(longest.encode()) == RECORD_MAX


def test_name_over_255_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="256 bytes"):
        EventRecord(1, 0, Event.CREATE, b"n" * 256).encode()


def test_a_fixed_part_that_has_grown_is_skipped() -> None:
    created = EventRecord(1, 0, Event.CREATE, b"name")
    good = created.encode()
    grown = (
        (len(good) + 8).to_bytes(4, "little")
        + good[4:6]
        + (88).to_bytes(2, "little")
        + good[8:80]
        + b"unknown!"
        + good[80:]
    )
    assert decode_all(grown + good) == [created, created]


@pytest.mark.parametrize("record", [OVERFLOW, WATCHES_LOST, watch_ended(5, 6)])
def test_records_without_an_event_survive_encode_and_decode(record: EventRecord) -> None:
    assert decode_all(record.encode()) == [record]


GOOD = EventRecord(1, 0, Event.CREATE, b"name").encode()


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (GOOD[:40], "at least 80"),
        ((84).to_bytes(4, "little") + GOOD[4:], "record length 84"),
        ((72).to_bytes(4, "little") + GOOD[4:], "record length 72"),
        ((96).to_bytes(4, "little") + GOOD[4:], "record length 96"),
        (GOOD[:4] + b"\4" + GOOD[5:], "reserved"),
        (GOOD[:6] + b"\x48" + GOOD[7:], "72 bytes before the names"),
        (GOOD[:6] + b"\x51" + GOOD[7:], "81 bytes before the names"),
        (GOOD[:64] + b"\1" + GOOD[65:], "reserved"),
        (GOOD[:28] + b"\x09" + GOOD[29:], "padding"),
        (GOOD[:-1] + b"x", "padding"),
        (EventRecord(1, 0, Event.CREATE, b"..").encode(), "bad name"),
        (EventRecord(1, 0, Event.CREATE, b"a/b").encode(), "bad name"),
        (EventRecord(1, 0, Event.CREATE, b"a\0b").encode(), "bad name"),
        (EventRecord(1, 0, Event.CREATE).encode(), "no name"),
        (EventRecord(1, 0, Event.ATTRIB, b"x").encode(), "a name"),
        (EventRecord(1, 0, Event.RENAME, b"x", newname=b"y").encode(), "new directory"),
        (EventRecord(1, 0, Event.CREATE, b"x", newdir=3).encode(), "new directory"),
        (EventRecord(1, 0, Event.CREATE, b"x", unpaired=True).encode(), "UNPAIRED"),
        (EventRecord(1, 0, Event.CREATE, b"x", unlinked=True).encode(), "UNLINKED"),
        (
            EventRecord(1, 0, Event.CREATE, b"x", newdir_generation=1).encode(),
            "generation of no new directory",
        ),
        (
            EventRecord(1, 0, Event.CREATE, b"x", child_generation=1).encode(),
            "generation of no child",
        ),
        (OVERFLOW._replace(nodeid=1).encode(), "no event"),
        (WATCHES_LOST._replace(nodeid=1).encode(), "no event"),
        (watch_ended(0, 0).encode(), "no event"),
        (watch_ended(1, 0)._replace(name=b"x").encode(), "no event"),
    ],
)
def test_record_that_breaks_a_rule_is_refused(payload: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        decode_all(payload)
