# SPDX-License-Identifier: Apache-2.0
"""``--trace-events``: each step of an event is logged, each event left out has a reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.log_limit import BURST, RepetitionLimit
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.event_trace import LINES_PER_SECOND, EventTrace
from farwatchd.wire.fsnotify import FUSE_FSNOTIFY_OTHERS_ONLY, Event
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import running
from tests.support.watch_host import ALL, BACKENDS, Host


class Trace(EventTrace):
    """Collects the lines instead of logging them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _write(self, text: str) -> None:
        self.lines.append(text.removeprefix("trace: "))

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def trace() -> Trace:
    return Trace()


@pytest.fixture(params=BACKENDS)
def host(request: pytest.FixtureRequest, share: Path, trace: Trace) -> Iterator[Host]:
    host = Host(share, open_backend=BACKENDS[request.param], trace=trace)
    yield host
    host.close()


def test_event_is_followed_from_the_watch_to_the_guest(
    host: Host, share: Path, trace: Trace
) -> None:
    host.watch(1, share, Event.CREATE | Event.DELETE)
    assert trace.take() == [f"watch: CREATE|DELETE '{share}' as nodeid 1"]
    (share / "a b\n").mkdir()
    host.records()
    path = repr(f"{share}/a b\n")
    assert trace.take() == [
        f"host: CREATE|ISDIR {path}",
        "queue: CREATE|ISDIR nodeid 1 'a b\\n'",
        "guest: 1 records are sent, 0 are left",
    ]
    host.table.forget(1)
    assert trace.take() == ["watch: ends nodeid 1"]


def test_event_that_no_watcher_wants_is_left_out(host: Host, share: Path, trace: Trace) -> None:
    (share / "f").touch()
    # The daemon watches attributes itself, to see the last name go.
    host.watch(2, share / "f", Event.MODIFY)
    trace.take()
    (share / "f").chmod(0o600)
    assert host.records() == []
    assert trace.take() == [f"host: ATTRIB '{share}/f': left out: no watcher in the guest wants it"]


def test_rename_is_one_step(host: Host, share: Path, trace: Trace) -> None:
    (share / "old").touch()
    host.watch(1, share, Event.MOVED_FROM | Event.MOVED_TO | Event.RENAME)
    trace.take()
    (share / "old").rename(share / "new")
    host.records()
    assert trace.take() == [
        f"host: MOVED_FROM|MOVED_TO '{share}/old' to 'new'",
        "queue: RENAME nodeid 1 'old' to 'new'",
        "guest: 1 records are sent, 0 are left",
    ]


def test_deletion_is_a_step(host: Host, share: Path, trace: Trace) -> None:
    (share / "f").touch()
    host.watch(2, share / "f", Event.DELETE_SELF)
    trace.take()
    (share / "f").unlink()
    host.records()
    lines = trace.take()
    assert [line.partition(" '")[0] for line in lines if line.startswith("host: DELETE_SELF")]
    assert lines[-2:] == [
        "queue: DELETE_SELF nodeid 2",
        "guest: 1 records are sent, 0 are left",
    ]


def test_equal_records_and_a_full_queue_are_named(trace: Trace) -> None:
    queue = EventQueue(2, trace)
    for nodeid in (1, 1, 2):
        queue.push(EventRecord(nodeid, 0, Event.MODIFY))
    queue.clear()
    assert trace.take() == [
        "queue: MODIFY nodeid 1",
        "queue: MODIFY nodeid 1: left out: equal to the one before",
        "queue: MODIFY nodeid 2: lost: the queue is full; the guest gets an overflow",
        "queue: 2 records: lost: the guest has left",
    ]


def test_lines_are_limited_each_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(limit := RepetitionLimit())
    now = 100.0
    trace = EventTrace(lambda: now)
    try:
        for number in range(3 * LINES_PER_SECOND):
            trace.step("queue", str(number))
        assert len(caplog.messages) == LINES_PER_SECOND > BURST
        now = 101.0
        trace.step("queue", "next")
    finally:
        caplog.handler.removeFilter(limit)
    assert caplog.messages[LINES_PER_SECOND:] == [
        f"trace: {2 * LINES_PER_SECOND} lines were left out",
        "trace: queue: next",
    ]


@pytest.mark.root
def test_daemon_logs_what_it_leaves_out(tmp_path: Path, share: Path) -> None:
    options = ("--trace-events", "--fsnotify=others", "--tag=t")
    with running(tmp_path / "socket", share, *options) as daemon:
        guest = MountedGuest(daemon, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY)
        guest.watch(ROOT, ALL)
        guest.create(ROOT, b"by the guest")
        (share / "by the host").touch()
        guest.events(1)
        daemon.wait_for("trace: guest: ")
        # In the sandbox the share is the root.
        assert "trace: watch: " in daemon.log and " '/' as nodeid 1\n" in daemon.log
        own = "trace: host: CREATE '/by the guest': left out: the guest itself did it\n"
        assert own in daemon.log, daemon.log
        assert "trace: host: CREATE '/by the host'\n" in daemon.log
        assert "trace: queue: CREATE nodeid 1 'by the host'\n" in daemon.log
        guest.leave()


@pytest.mark.root
def test_daemon_without_the_option_logs_no_event(tmp_path: Path, share: Path) -> None:
    with running(tmp_path / "socket", share, "--tag=t") as daemon:
        guest = MountedGuest(daemon)
        guest.watch(ROOT, ALL)
        (share / "f").touch()
        guest.events(1)
        guest.leave()
        daemon.end()
        assert "trace:" not in daemon.log
