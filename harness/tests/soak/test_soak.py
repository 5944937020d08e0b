# SPDX-License-Identifier: Apache-2.0
"""The stress test's checks, and its programs with this machine instead of a guest."""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from random import Random
from typing import cast

import pytest
from farwatch_harness.oracle.file_operations import perform
from farwatch_harness.oracle.native_inotify import In, NativeInotify
from farwatch_harness.soak.guest import check_for
from farwatch_harness.soak.load import Load
from farwatch_harness.soak.migrating import console_problems
from farwatch_harness.soak.replacing import NextDaemon
from farwatch_harness.soak.result import (
    MAX_MEMORY_GROWTH,
    ResourceSample,
    StressResult,
    faults,
    growth,
    summary,
)
from farwatch_harness.soak.run import add_options, plan_of
from farwatch_harness.soak.stream import (
    ALL,
    MARKER,
    FileStage,
    StreamChecker,
    Tally,
    WatcherReport,
    burst,
    mask_of,
)
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest, GuestInotifyEvent
from farwatch_harness.vm.testbed import Share
from tests.support.local_agent import local_agent

MIB = 1024 * 1024


def stream(first: int, count: int, stages: Sequence[FileStage] = ALL) -> list[GuestInotifyEvent]:
    """Return the events that a watch reports of `count` files."""
    return [
        GuestInotifyEvent(1, int(stage.event), 0, f"{stage.letter}{number}", 0.0)
        for number in range(first, first + count)
        for stage in stages
    ]


def marker(number: int) -> GuestInotifyEvent:
    return GuestInotifyEvent(1, int(In.CREATE), 0, f"{MARKER}{number}", 0.0)


def check_stream(
    events: Sequence[GuestInotifyEvent], stages: Sequence[FileStage] = ALL, sure: int = 0
) -> Tally:
    checker = StreamChecker(sure, stages)
    for event in events:
        checker.see(event)
    return checker.tally


@pytest.mark.parametrize("stages", [ALL, (FileStage.CREATED,), (FileStage.LEFT, FileStage.CAME)])
def test_complete_stream_is_clean(stages: Sequence[FileStage]) -> None:
    events = stream(7, 5, stages)
    assert check_stream([*events, marker(12)], stages, sure=7) == Tally(1, len(events))


def test_events_from_before_the_watch_may_be_reported_or_missing() -> None:
    sure = stream(10, 3)
    for before in (
        [],
        stream(8, 2),
        stream(8, 2)[5:],
        [stream(4, 1)[0], *stream(6, 1)[2:], stream(9, 1)[1]],
    ):
        assert check_stream([*before, *sure], sure=10).clean
        assert check_stream([*before, *sure[1:]], sure=10).lost == 1
    assert check_stream([*reversed(stream(8, 1)), *sure], sure=10).duplicate == 3


def test_missing_event_counts_as_lost() -> None:
    events = stream(0, 5)
    for missing in range(len(events) - 1):
        assert check_stream(events[:missing] + events[missing + 1 :]).lost == 1
    assert check_stream([*stream(0, 1), *stream(3, 1)]).lost == 8


def test_missing_last_event_counts_as_lost_at_the_marker() -> None:
    assert check_stream([*stream(0, 5)[:-1], marker(5)]).lost == 1


def test_repeated_event_counts_as_duplicate() -> None:
    events = stream(0, 5)
    for again in range(len(events)):
        tally = check_stream([*events, events[again]], sure=0)
        assert (tally.duplicate, tally.lost) == (1, 0)


def test_reordered_stream_is_not_clean() -> None:
    events = stream(0, 2)
    assert not check_stream([*events[:2], events[3], events[2], *events[4:]]).clean


def test_fault_is_described_in_a_note() -> None:
    checker, report = StreamChecker(3), WatcherReport()
    for event in [*stream(3, 1), *stream(5, 1)]:
        checker.see(event)
    report.add("dir", checker)
    assert report.notes == [
        "dir: 4 lost before CREATE 'f5', number 5 of a watch for CREATED,LEFT,CAME,DELETED",
    ]
    assert report.tally == checker.tally


OVERFLOW = GuestInotifyEvent(-1, int(In.Q_OVERFLOW), 0, "", 0.0)


@pytest.mark.parametrize(("later", "lost"), [(0.0, 0), (4.9, 0), (5.1, 4)])
def test_overflow_reports_a_gap_that_is_seen_shortly_before_it(later: float, lost: int) -> None:
    now = 100.0
    checker = StreamChecker(0, clock=lambda: now)
    for event in [*stream(0, 1), *stream(2, 1)]:
        checker.see(event)
    assert checker.tally.lost == 4
    now += later
    checker.see(OVERFLOW)
    assert (checker.tally.lost, checker.tally.overflows) == (lost, 1)
    checker.see(stream(5, 1)[0])
    assert checker.tally.lost == lost
    checker.see(stream(7, 1)[0])
    assert checker.tally.lost == lost + 7


def test_faults_and_overflows_are_described_apart() -> None:
    checker = StreamChecker(0)
    for event in [OVERFLOW, *stream(0, 1), *[OVERFLOW] * 3, stream(0, 1)[0]]:
        checker.see(event)
    report = WatcherReport()
    report.add("dir", checker)
    assert [note.split()[1] for note in report.notes] == ["reported"]
    assert [note.split()[1] for note in report.overflow_notes] == ["an"] * 3


class ScriptedInotify:
    """Gives one event at a time."""

    def __init__(self) -> None:
        self.events: list[GuestInotifyEvent] = []

    def read_ready(self, _limit: float) -> list[GuestInotifyEvent]:
        assert self.events, "there is nothing to wait for"
        return [self.events.pop(0)]


def of_watch(wd: int, event: GuestInotifyEvent) -> GuestInotifyEvent:
    return dataclasses.replace(event, wd=wd)


def test_overflow_is_for_all_watches_and_awaited_where_one_has_a_gap() -> None:
    events = [of_watch(wd, each) for wd in (1, 2, 3) for each in stream(wd, 1)]
    native = ScriptedInotify()
    checkers = {wd: (f"{wd}", StreamChecker(0)) for wd in (1, 2, 3)}
    checkers[3] = "3", StreamChecker(3)
    check_for(60.0, cast(NativeInotify, native), checkers, only_gaps=True)
    for event in events:
        checkers[event.wd][1].see(event)
    native.events = [OVERFLOW, OVERFLOW]
    assert [checker.tally.lost for _, checker in checkers.values()] == [4, 8, 0]
    check_for(60.0, cast(NativeInotify, native), checkers, only_gaps=True)
    assert native.events == [OVERFLOW]
    assert [checker.tally.lost for _, checker in checkers.values()] == [0, 0, 0]
    assert [checker.tally.overflows for _, checker in checkers.values()] == [1, 1, 1]


def test_overflows_and_strange_events_are_counted() -> None:
    assert check_stream([GuestInotifyEvent(-1, int(In.Q_OVERFLOW), 0, "", 0.0)]).overflows == 1
    for mask, name in (
        (In.MODIFY, "f1"),
        (In.CREATE, "x1"),
        (In.CREATE, "m1"),
        (In.IGNORED, ""),
        (In.CREATE, "f"),
    ):
        assert check_stream([GuestInotifyEvent(1, int(mask), 0, name, 0.0)]).strange == 1


def test_native_inotify_reports_a_clean_stream(tmp_path: Path) -> None:
    checker = StreamChecker(100)
    with NativeInotify() as native:
        native.add(tmp_path, mask_of(ALL))
        for operation in burst(100, 50):
            assert perform(str(tmp_path), operation)
        markers = [checker.see(event) for event in native.read(f"{MARKER}150")]
    assert checker.tally == Tally(1, 200)
    assert markers[-1] == f"{MARKER}150"


def sample(descriptors: int = 20, memory: int = 20 * MIB, watches: int = 0) -> ResourceSample:
    return ResourceSample(descriptors, memory, watches)


GOOD = StressResult(
    steady=Tally(3, 1000),
    passing=Tally(50, 500),
    scripts=10,
    differences=(),
    samples=((sample(),) * 8,),
    dropped=0,
    daemon_warnings=(),
    problems=(),
)


def test_good_result_has_no_fault_and_a_short_summary() -> None:
    assert faults(GOOD) == []
    assert len(summary(GOOD)) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"steady": Tally(3, 1000, lost=1)},
        {"steady": Tally(3, 0)},
        {"passing": Tally(3, 1000, duplicate=1)},
        {"passing": Tally(3, 1000, overflows=1)},
        {"passing": Tally(3, 1000, strange=1)},
        {"scripts": 0},
        {"differences": ("script 1: ...",)},
        {"dropped": 1},
        {"daemon_warnings": ("WARNING",)},
        {"problems": ("guest kernel: BUG",)},
        {"across": Tally(1, 0)},
        {"across": Tally(1, 10, duplicate=1)},
        {"samples": ((sample(),) * 3,)},
        {"samples": ((sample(),) * 8, (sample(),) * 3)},
        {"samples": ((*(sample(),) * 7, sample(watches=1)),)},
        {"samples": (tuple(sample(descriptors=20 + 3 * number) for number in range(8)),)},
        {"samples": (tuple(sample(memory=(20 + number) * MIB) for number in range(8)),)},
    ],
    ids=str,
)
def test_each_fault_is_found_once(change: dict[str, object]) -> None:
    assert len(faults(dataclasses.replace(GOOD, **change))) == 1  # type: ignore[arg-type]


def test_warm_up_and_a_single_peak_are_no_growth() -> None:
    assert growth([1, 90, 100, 100, 100, 100, 100, 100]).amount == 0
    assert growth([100, 100, 100, 100, 100, 100, 900, 100, 100]).amount == 0
    assert growth([100, 100, 100, 110]).amount == 10


def test_leak_of_a_record_per_event_is_found_in_a_minute() -> None:
    events, size = 60 * 500, 300
    leaking = tuple(sample(memory=20 * MIB + number * events // 8 * size) for number in range(8))
    assert leaking[-1].memory - leaking[0].memory > MAX_MEMORY_GROWTH
    assert faults(dataclasses.replace(GOOD, samples=(leaking,)))


def test_plan_that_would_show_nothing_is_refused() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert plan_of(parser.parse_args(["--minutes", "2", "--seed", "x"])).seed == "x"
    assert plan_of(parser.parse_args([])).seed
    assert plan_of(parser.parse_args(["--guests", "2"])).guests == 2
    with pytest.raises(HarnessError, match="leaves out own events"):
        plan_of(parser.parse_args(["--guests", "2", "--mode", "remote"]))
    with pytest.raises(HarnessError, match="--minutes"):
        plan_of(parser.parse_args(["--minutes", "0"]))


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], None),
        (["--replace"], NextDaemon.REPLACED),
        (["--kill-daemon"], NextDaemon.KILLED),
        (["--migrate", "--mode", "wait"], NextDaemon.MIGRATED),
    ],
)
def test_guest_comes_to_its_next_daemon_in_one_way(
    words: list[str], chosen: NextDaemon | None
) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert plan_of(parser.parse_args(words)).next_daemon is chosen
    for more, reason in (
        (["--replace", "--kill-daemon"], "exclude each other"),
        (["--migrate"], "needs --mode wait"),
        (["--migrate", "--mode", "wait", "--guests", "2"], "exclude --guests 2"),
    ):
        with pytest.raises(HarnessError, match=reason):
            plan_of(parser.parse_args(more))


def test_faults_of_a_guest_s_console_are_found() -> None:
    text = "[    1.0] Linux version 6.12\n[    2.0] WARNING: CPU: 0 PID: 1 at fs/x.c:1\n"
    assert console_problems(text) == ["[    2.0] WARNING: CPU: 0 PID: 1 at fs/x.c:1"]


@pytest.fixture
def here() -> Iterator[Guest]:
    """Yield a client of an agent that runs on this machine instead of in a guest."""
    with local_agent() as client:
        yield client


def test_round_of_load_ends_without_a_fault(here: Guest, tmp_path: Path) -> None:
    root = Share(tmp_path, PurePosixPath(tmp_path))
    with contextlib.closing(Load(here, root, Random("seed"))) as load, load.round(1.0) as outcome:
        load.paced[0].share.host.joinpath("f-is-no-number").mkdir()
    assert outcome.problems == []
    assert outcome.steady.strange == 1
    assert dataclasses.replace(outcome.steady, strange=0).clean
    assert outcome.steady.seen > 100
    assert outcome.passing.watchers >= 2
    assert outcome.passing.seen > 0


def test_two_guests_see_each_other_s_streams(here: Guest, tmp_path: Path) -> None:
    # There is no daemon that refuses.
    root = Share(tmp_path, PurePosixPath(tmp_path))
    load = Load(here, root, Random("seed"), second=here)
    with contextlib.closing(load), load.round(1.0) as outcome:
        pass
    (problem,) = outcome.problems
    assert "opens was refused" in problem
    assert outcome.across.watchers == 2
    assert outcome.steady.clean and outcome.across.clean
    assert outcome.across.seen > 100


def test_report_of_a_program_that_ends_before_the_others_start_is_counted(
    here: Guest, tmp_path: Path
) -> None:
    root = Share(tmp_path, PurePosixPath(tmp_path))
    with contextlib.closing(Load(here, root, Random("seed"))) as load, load.round(0.0) as outcome:
        pass
    assert outcome.problems == []
    assert outcome.steady.watchers == 3
