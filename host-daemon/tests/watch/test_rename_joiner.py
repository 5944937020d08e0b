# SPDX-License-Identifier: Apache-2.0
"""RenameJoiner joins both sides of a rename, leaves some unpaired in time, and keeps order."""

from __future__ import annotations

from farwatchd.linux.inotify import InotifyBit
from farwatchd.watch.event_stream import MarkEvent
from farwatchd.watch.rename_joiner import RenameJoiner

FROM = MarkEvent(1, int(InotifyBit.MOVED_FROM), b"old")
TO = MarkEvent(2, int(InotifyBit.MOVED_TO), b"new")
BOTH = int(InotifyBit.MOVED_FROM | InotifyBit.MOVED_TO)
ISDIR = int(InotifyBit.ISDIR)
RENAMED = MarkEvent(1, BOTH, b"old", new_mark_id=2, new_name=b"new")
OTHER = MarkEvent(3, int(InotifyBit.MODIFY))


def test_moved_from_and_moved_to_become_one_rename() -> None:
    joiner = RenameJoiner()
    joiner.feed(FROM, 5, now=0)
    assert joiner.take(0) == []
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED]
    assert joiner.deadline is None


def test_rename_of_a_directory_keeps_isdir() -> None:
    joiner = RenameJoiner()
    joiner.feed(MarkEvent(1, int(InotifyBit.MOVED_FROM) | ISDIR, b"old"), 5, now=0)
    joiner.feed(MarkEvent(1, int(InotifyBit.MOVED_TO) | ISDIR, b"new"), 5, now=0)
    assert joiner.take(0) == [MarkEvent(1, BOTH | ISDIR, b"old", new_mark_id=1, new_name=b"new")]


def test_events_after_a_queued_moved_from_wait_for_it() -> None:
    joiner = RenameJoiner()
    joiner.feed(OTHER, 0, now=0)
    joiner.feed(FROM, 5, now=0)
    joiner.feed(OTHER, 0, now=0)
    assert joiner.take(0) == [OTHER]
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, OTHER]


def test_moved_from_stays_unpaired_after_the_deadline() -> None:
    joiner = RenameJoiner(patience=0.01)
    joiner.feed(FROM, 5, now=1)
    joiner.feed(OTHER, 0, now=1)
    assert joiner.deadline == 1.01
    assert joiner.take(1.009) == []
    assert joiner.take(1.01) == [FROM, OTHER]
    joiner.feed(TO, 5, now=1.02)
    assert joiner.take(1.02) == [TO]


def test_moved_from_stays_unpaired_after_another_entry_event_of_its_directory() -> None:
    joiner = RenameJoiner()
    created = MarkEvent(1, int(InotifyBit.CREATE), b"x")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(created, 0, now=0)
    assert joiner.take(0) == [FROM, created]


def test_entry_event_of_another_directory_does_not_end_the_wait() -> None:
    joiner = RenameJoiner()
    created = MarkEvent(3, int(InotifyBit.CREATE), b"x")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(created, 0, now=0)
    assert joiner.take(0) == []
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, created]


def test_two_concurrent_renames_are_both_joined() -> None:
    joiner = RenameJoiner()
    other_from = MarkEvent(3, int(InotifyBit.MOVED_FROM), b"a")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(other_from, 6, now=0)
    joiner.feed(MarkEvent(4, int(InotifyBit.MOVED_TO), b"b"), 6, now=0)
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, MarkEvent(3, BOTH, b"a", new_mark_id=4, new_name=b"b")]


def test_lone_moved_to_stays_unpaired() -> None:
    joiner = RenameJoiner()
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [TO]


def test_number_of_queued_events_is_bounded() -> None:
    joiner = RenameJoiner(limit=10)
    joiner.feed(FROM, 5, now=0)
    for _ in range(10):
        joiner.feed(OTHER, 0, now=0)
    assert joiner.take(0) == [FROM] + [OTHER] * 10


def test_events_that_are_not_queued_do_not_count() -> None:
    joiner = RenameJoiner(limit=10)
    for _ in range(20):
        joiner.feed(OTHER, 0, now=0)
    joiner.feed(FROM, 5, now=0)
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [OTHER] * 20 + [RENAMED]


def test_clear_drops_queued_events() -> None:
    joiner = RenameJoiner()
    joiner.feed(FROM, 5, now=0)
    joiner.clear()
    assert joiner.deadline is None
    assert joiner.take(100) == []
