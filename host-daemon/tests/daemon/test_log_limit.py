# SPDX-License-Identifier: Apache-2.0
"""The log is bounded, whatever a guest repeats, and says how much was left out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from farwatchd.log_limit import BURST, INTERVAL, RepetitionLimit
from tests.support.daemon_guest import MountedGuest
from tests.support.daemon_process import running


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """Collects messages that pass the limit."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.addFilter(RepetitionLimit(clock))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logged(clock: Clock, request: pytest.FixtureRequest) -> Lines:
    handler = Lines(clock)
    logger = logging.getLogger("farwatchd.test")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    request.addfinalizer(lambda: logger.removeHandler(handler))
    return handler


def say(number: int, level: int = logging.INFO) -> None:
    logging.getLogger("farwatchd.test").log(level, "message %d", number)


def test_repeated_message_is_limited_and_counted(logged: Lines, clock: Clock) -> None:
    for number in range(BURST + 30):
        say(number)
    assert logged.lines[0] == "message 0"
    assert logged.lines[-1] == f"message {BURST - 1} (similar messages are left out for 60 s)"
    assert len(logged.lines) == BURST
    clock.now += INTERVAL
    say(99)
    assert logged.lines[-1] == "message 99 (30 similar messages were left out)"
    say(100)
    assert logged.lines[-1] == "message 100"


def test_other_messages_and_debug_messages_pass(logged: Lines) -> None:
    for number in range(2 * BURST):
        say(number)
    logging.getLogger("farwatchd.test").error("another")
    assert logged.lines[-1] == "another"
    for number in range(2 * BURST):
        say(number, logging.DEBUG)
    assert len(logged.lines) == BURST + 1 + 2 * BURST


def test_guest_that_repeats_init_does_not_fill_the_log(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with running(tmp_path / "socket", tmp_path / "shared") as daemon:
        guest = MountedGuest(daemon)
        for _ in range(10 * BURST):
            guest.mount()
        guest.leave()
        assert daemon.end() == 0
        assert daemon.log.count("the guest speaks FUSE") == BURST
        assert daemon.log.count("similar messages are left out") >= 1
        assert len(daemon.log.splitlines()) < 4 * BURST
