# SPDX-License-Identifier: Apache-2.0
"""The event loop: readiness, timers, deferred calls, failures, stopping."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.event_loop import MAX_FAILURES_IN_A_ROW, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_callback_runs_while_its_descriptor_is_readable(loop: Loop, event: int) -> None:
    calls: list[int] = []
    loop.add(event, lambda: calls.append(1))
    assert not loop.run_once(0)
    os.eventfd_write(event, 1)
    assert loop.run_once(0)
    assert loop.run_once(0)
    os.eventfd_read(event)
    assert not loop.run_once(0)
    assert calls == [1, 1]


def test_an_eventfd_calls_when_it_is_written_and_needs_no_reading(loop: Loop, event: int) -> None:
    calls: list[int] = []
    os.eventfd_write(event, 1)
    loop.add_eventfd(event, lambda: calls.append(1))
    assert loop.run_once(0), "it was written before"
    assert not loop.run_once(0)
    for _ in range(3):
        os.eventfd_write(event, 1)
        assert loop.run_once(0)
        assert not loop.run_once(0)
    loop.remove(event)
    os.eventfd_write(event, 1)
    assert not loop.run_once(0)
    assert len(calls) == 4


def test_removed_descriptor_is_not_called_even_in_the_same_turn(loop: Loop) -> None:
    fds = [os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    calls: list[int] = []

    def callback(mine: int, other: int) -> None:
        calls.append(mine)
        loop.remove(other)

    loop.add(fds[0], lambda: callback(0, fds[1]))
    loop.add(fds[1], lambda: callback(1, fds[0]))
    loop.run_once(0)
    assert len(calls) == 1
    for fd in fds:
        os.close(fd)


def test_a_descriptor_that_cannot_be_waited_for_is_an_error(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        loop.add(file.fileno(), lambda: None)
    with pytest.raises(KeyError):
        loop.remove(12345)


def test_has_work_does_not_call_back(loop: Loop, event: int) -> None:
    calls: list[str] = []
    assert not loop.has_work()
    loop.add_eventfd(event, lambda: calls.append("event"))
    os.eventfd_write(event, 1)
    assert loop.has_work() and loop.has_work()
    assert not calls
    assert loop.run_once(0)
    assert calls == ["event"]
    assert not loop.has_work()
    loop.call_soon(lambda: calls.append("soon"))
    assert loop.has_work()
    loop.run_once(0)
    loop.call_later(3600, lambda: calls.append("never"))
    assert not loop.has_work()
    loop.call_later(0, lambda: calls.append("now"))
    assert loop.has_work()
    loop.run_once(0)
    assert calls == ["event", "soon", "now"]
    loop.call_from_thread(lambda: calls.append("thread"))
    assert loop.has_work()


def test_no_callback_of_many_threads_is_lost(loop: Loop) -> None:
    threads, count = 8, 2000
    calls: list[int] = []

    def called(number: int) -> None:
        calls.append(number)
        if len(calls) == threads * count:
            loop.stop()

    def call(first: int) -> None:
        for number in range(first, first + count):
            loop.call_from_thread(partial(called, number))

    callers = [threading.Thread(target=call, args=(n * count,)) for n in range(threads)]
    # Ends a loop that has missed a wakeup; the assertion then says what is missing.
    loop.call_later(30, loop.stop)
    for thread in callers:
        thread.start()
    loop.run()
    for thread in callers:
        thread.join(10)
    assert sorted(calls) == list(range(threads * count))


def test_callback_from_a_thread_may_have_another_called(loop: Loop) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        loop.call_from_thread(lambda: calls.append("second"))

    loop.call_from_thread(first)
    assert loop.run_once(1)
    assert loop.run_once(1)
    assert calls == ["first", "second"]


def test_one_wakeup_serves_all_callbacks_of_threads(loop: Loop) -> None:
    calls: list[int] = []
    for number in range(100_000):
        loop.call_from_thread(partial(calls.append, number))
    assert loop.run_once(1)
    assert len(calls) == 100_000
    assert not loop.run_once(0)


def test_timers_run_in_order(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0.02, lambda: calls.append("second"))
    loop.call_later(0.01, lambda: calls.append("first"))
    loop.call_later(0.03, loop.stop)
    start = time.monotonic()
    loop.run()
    assert calls == ["first", "second"]
    assert time.monotonic() - start >= 0.03


def test_a_timer_set_by_a_timer_runs_in_its_turn(loop: Loop) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        loop.call_later(0.02, loop.stop)
        loop.call_later(0, lambda: calls.append("second"))

    loop.call_later(3600, lambda: calls.append("never"))
    loop.call_later(0.01, first)
    loop.run()
    assert calls == ["first", "second"]


def test_deferred_calls_run_once_and_descriptors_are_served_meanwhile(
    loop: Loop, event: int
) -> None:
    calls: list[str] = []

    def again() -> None:
        calls.append("soon")
        loop.call_soon(again)

    def readable() -> None:
        os.eventfd_read(event)
        calls.append("event")

    loop.add(event, readable)
    loop.call_soon(again)
    assert loop.run_once(None)
    os.eventfd_write(event, 1)
    assert loop.run_once(None)
    assert calls == ["soon", "event", "soon"]


def test_a_failing_callback_is_logged_and_the_loop_goes_on(
    loop: Loop, event: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    os.eventfd_write(event, 1)
    loop.add(event, fail)
    loop.call_soon(fail)
    loop.call_later(0, fail)
    loop.run_once(0)
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 3


def test_a_callback_that_always_fails_ends_the_loop_instead_of_spinning(
    loop: Loop, event: int
) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("a bug")

    os.eventfd_write(event, 1)
    loop.add(event, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.run()
    assert len(calls) == MAX_FAILURES_IN_A_ROW


def test_stop_ends_run_from_another_thread_and_before_it(loop: Loop) -> None:
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.stop()
    thread.join(10)
    assert not thread.is_alive()
    loop.stop()
    loop.run()


def test_stop_ends_run_from_a_signal_handler(loop: Loop) -> None:
    old = signal.signal(signal.SIGALRM, lambda *_: loop.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        loop.run()
    finally:
        signal.signal(signal.SIGALRM, old)
