# SPDX-License-Identifier: Apache-2.0
"""The event queue is bounded, keeps order, coalesces as inotify does, and reports each loss."""

from __future__ import annotations

import pytest
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import OVERFLOW, EventRecord
from farwatchd.wire.fsnotify import Event
from hypothesis import given
from hypothesis import strategies as st
from tests.support.event_records import decode_all

BIG = 1 << 16


def event(nodeid: int, name: bytes = b"n", mask: Event = Event.CREATE) -> EventRecord:
    return EventRecord(nodeid, 0, mask, name)


def drain(queue: EventQueue, max_bytes: int = BIG) -> list[EventRecord]:
    records = []
    while (payload := queue.take(max_bytes)) is not None:
        records += decode_all(payload)
    return records


def test_records_leave_in_order() -> None:
    queue = EventQueue(100)
    records = [event(nodeid) for nodeid in range(1, 50)]
    for record in records:
        queue.push(record)
    assert drain(queue) == records
    assert queue.take(BIG) is None


def test_record_equal_to_the_last_one_is_left_out() -> None:
    queue = EventQueue(100)
    for nodeid in (1, 1, 2, 1):
        queue.push(event(nodeid))
    assert drain(queue) == [event(1), event(2), event(1)]


def test_record_equal_to_a_taken_one_is_queued() -> None:
    queue = EventQueue(100)
    queue.push(event(1))
    assert drain(queue) == [event(1)]
    queue.push(event(1))
    assert drain(queue) == [event(1)]


@pytest.mark.parametrize("other", [event(2), event(1, b"m"), event(1, mask=Event.DELETE)])
def test_different_records_are_queued(other: EventRecord) -> None:
    queue = EventQueue(100)
    queue.push(event(1))
    queue.push(other)
    assert len(queue) == 2


def test_two_equal_renames_are_two_moves() -> None:
    queue = EventQueue(100)
    rename = EventRecord(1, 0, Event.RENAME, b"a", newdir=1, newname=b"b")
    queue.push(rename)
    queue.push(rename)
    assert drain(queue) == [rename, rename]


def test_full_queue_reports_one_overflow_and_accepts_records_again() -> None:
    queue = EventQueue(4)
    for nodeid in range(1, 10):
        queue.push(event(nodeid))
    assert queue.dropped == 6
    assert drain(queue) == [event(1), event(2), event(3), OVERFLOW]
    queue.push(event(10))
    assert drain(queue) == [event(10)]


def test_overflow_is_at_the_position_of_the_loss() -> None:
    queue = EventQueue(4)
    for nodeid in range(1, 6):
        queue.push(event(nodeid))
    assert decode_all(queue.take(2 * 88) or b"") == [event(1), event(2)]
    queue.push(event(6))
    assert drain(queue) == [event(3), OVERFLOW, event(6)]


def test_overflow_of_the_host_is_queued_once() -> None:
    queue = EventQueue(4)
    queue.push(event(1))
    queue.push_overflow()
    queue.push_overflow()
    queue.push(event(2))
    assert drain(queue) == [event(1), OVERFLOW, event(2)]


def test_only_whole_records_are_taken() -> None:
    queue = EventQueue(10)
    for nodeid in (1, 2, 3):
        queue.push(event(nodeid))
    assert len(queue.take(2 * 88 + 87) or b"") == 2 * 88
    assert len(queue) == 1


def test_record_longer_than_the_buffer_becomes_an_overflow() -> None:
    queue = EventQueue(10)
    queue.push(event(1, b"n" * 255))
    queue.push(event(2))
    assert drain(queue, 128) == [OVERFLOW, event(2)]
    assert queue.dropped == 1


def test_buffer_too_small_for_any_record_takes_nothing() -> None:
    queue = EventQueue(10)
    queue.push(event(1))
    assert queue.take(79) is None
    assert drain(queue) == [event(1)]


def test_wakeup_is_called_for_a_batch_and_when_it_is_set_late() -> None:
    queue = EventQueue(10)
    wakeups: list[int] = []
    queue.announce()
    queue.push(event(1))
    queue.set_wakeup(lambda: wakeups.append(len(queue)))
    assert wakeups == [1]
    drain(queue)
    queue.announce()
    assert wakeups == [1]
    queue.push(event(2))
    queue.push(event(3))
    queue.announce()
    assert wakeups == [1, 2]


def test_clear_drops_all_records() -> None:
    queue = EventQueue(3)
    for nodeid in range(1, 9):
        queue.push(event(nodeid))
    queue.clear()
    assert len(queue) == 0
    assert queue.dropped == 0


def test_queue_without_room_for_an_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        EventQueue(1)


@given(
    limit=st.integers(2, 12),
    script=st.lists(
        st.one_of(st.just("push"), st.just("lost"), st.integers(88, 400)), max_size=200
    ),
)
def test_order_bound_and_losses_hold_in_any_sequence(limit: int, script: list[str | int]) -> None:
    queue = EventQueue(limit)
    pushed = 0
    lost_by_host = 0
    out: list[EventRecord] = []
    for step in script:
        if step == "push":
            pushed += 1
            queue.push(event(pushed))
        elif step == "lost":
            lost_by_host += 1
            queue.push_overflow()
        elif isinstance(step, int):
            payload = queue.take(step)
            assert payload is None or len(payload) <= step
            out += decode_all(payload or b"")
        assert len(queue) <= limit
    out += drain(queue)
    numbers = [record.nodeid for record in out if record != OVERFLOW]
    assert numbers == sorted(set(numbers))
    assert queue.dropped - lost_by_host == pushed - len(numbers)
    # A gap in the numbers has exactly one overflow in it, and there is none where nothing is
    # missing.
    if not lost_by_host:
        before = 0
        for index, record in enumerate(out):
            if record == OVERFLOW:
                following = out[index + 1].nodeid if index + 1 < len(out) else pushed + 1
                assert following not in (0, before + 1)
            else:
                assert record.nodeid == before + 1 or out[index - 1] == OVERFLOW
                before = record.nodeid
