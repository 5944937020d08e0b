# SPDX-License-Identifier: Apache-2.0
"""Joining the halves of renames: what is joined, what is given up and when, and that order is
kept."""

from __future__ import annotations

from farwatchd.watch.backend import HostEvent
from farwatchd.watch.rename_joiner import RenameJoiner
from farwatchd.wire.fsnotify import Event

FROM = HostEvent(1, Event.MOVED_FROM, b"old")
TO = HostEvent(2, Event.MOVED_TO, b"new")
RENAMED = HostEvent(1, Event.RENAME, b"old", newkey=2, newname=b"new")
HALF_FROM = HostEvent(1, Event.MOVED_FROM, b"old", half=True)
HALF_TO = HostEvent(2, Event.MOVED_TO, b"new", half=True)
OTHER = HostEvent(3, Event.MODIFY)


def test_two_halves_become_one_rename() -> None:
    joiner = RenameJoiner()
    joiner.feed(FROM, 5, now=0)
    assert joiner.take(0) == []
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED]
    assert joiner.deadline is None


def test_a_directory_stays_a_directory() -> None:
    joiner = RenameJoiner()
    joiner.feed(HostEvent(1, Event.MOVED_FROM | Event.ISDIR, b"old"), 5, now=0)
    joiner.feed(HostEvent(1, Event.MOVED_TO | Event.ISDIR, b"new"), 5, now=0)
    assert joiner.take(0) == [
        HostEvent(1, Event.RENAME | Event.ISDIR, b"old", newkey=1, newname=b"new")
    ]


def test_what_comes_after_a_held_half_waits_behind_it() -> None:
    joiner = RenameJoiner()
    joiner.feed(OTHER, 0, now=0)
    joiner.feed(FROM, 5, now=0)
    joiner.feed(OTHER, 0, now=0)
    assert joiner.take(0) == [OTHER]
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, OTHER]


def test_a_half_is_given_up_when_its_time_is_over() -> None:
    joiner = RenameJoiner(hold=0.01)
    joiner.feed(FROM, 5, now=1)
    joiner.feed(OTHER, 0, now=1)
    assert joiner.deadline == 1.01
    assert joiner.take(1.009) == []
    assert joiner.take(1.01) == [HALF_FROM, OTHER]
    joiner.feed(TO, 5, now=1.02)
    assert joiner.take(1.02) == [HALF_TO]


def test_a_half_is_given_up_when_its_directory_has_another_entry_event() -> None:
    joiner = RenameJoiner()
    created = HostEvent(1, Event.CREATE, b"x")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(created, 0, now=0)
    assert joiner.take(0) == [HALF_FROM, created]


def test_an_entry_event_of_another_directory_proves_nothing() -> None:
    joiner = RenameJoiner()
    created = HostEvent(3, Event.CREATE, b"x")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(created, 0, now=0)
    assert joiner.take(0) == []
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, created]


def test_two_renames_may_be_under_way_at_once() -> None:
    joiner = RenameJoiner()
    other_from = HostEvent(3, Event.MOVED_FROM, b"a")
    joiner.feed(FROM, 5, now=0)
    joiner.feed(other_from, 6, now=0)
    joiner.feed(HostEvent(4, Event.MOVED_TO, b"b"), 6, now=0)
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [RENAMED, HostEvent(3, Event.RENAME, b"a", newkey=4, newname=b"b")]


def test_a_lone_second_half_is_marked() -> None:
    joiner = RenameJoiner()
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [HALF_TO]


def test_what_waits_is_bounded() -> None:
    joiner = RenameJoiner(limit=10)
    joiner.feed(FROM, 5, now=0)
    for _ in range(10):
        joiner.feed(OTHER, 0, now=0)
    assert joiner.take(0) == [HALF_FROM] + [OTHER] * 10


def test_events_that_need_not_wait_do_not_count_as_waiting() -> None:
    joiner = RenameJoiner(limit=10)
    for _ in range(20):
        joiner.feed(OTHER, 0, now=0)
    joiner.feed(FROM, 5, now=0)
    joiner.feed(TO, 5, now=0)
    assert joiner.take(0) == [OTHER] * 20 + [RENAMED]


def test_clear_forgets_what_was_held() -> None:
    joiner = RenameJoiner()
    joiner.feed(FROM, 5, now=0)
    joiner.clear()
    assert joiner.deadline is None
    assert joiner.take(100) == []
