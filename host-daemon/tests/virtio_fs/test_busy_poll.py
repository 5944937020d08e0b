# SPDX-License-Identifier: Apache-2.0
"""Looking for requests before waiting for them: where it pays, and nowhere else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import INTERRUPT_DELAY_NS
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.wire.fuse import Opcode, attr_out, getattr_in
from tests.daemon.test_daemon import ROOT, Guest
from tests.support.daemon_process import running
from tests.support.device_fixture import AlwaysPoll, DeviceFixture, device_fixture, posted_echo
from tests.support.driver import DriverQueue
from tests.support.frontend import OUT_HEADER, FrontEnd

US = 1000
LOOK = US // 2


@dataclass
class Asker:
    """Its next request comes ``thinks`` after the reply; noticing takes ``wakes`` longer when it is
    waited for.

    While it is looked for the guest takes ``hindered`` longer, and of each ``loses`` requests (0:
    of none) the processor is lost for 3 ms. ``looked`` is the time that was spent looking.
    """

    thinks: int
    wakes: int
    hindered: int = 0
    loses: int = 0
    now: int = 10**12
    comes: int = 0
    looked: int = 0
    elsewhere: bool = False
    looks: list[bool] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def look(self) -> bool:
        """Look once."""
        if self.now >= self.comes:
            return True
        self.now += LOOK
        self.looked += LOOK
        return False

    def serve(self, busy: BusyPoll, requests: int) -> None:
        """So many requests; says in ``looks`` which were looked for, and checks what came of it."""
        for _ in range(requests):
            self.now += 10 * US
            self.comes = self.now + self.thinks
            looks = busy.should_poll()
            self.looks.append(looks)
            if looks:
                self.comes += self.hindered
                if self.loses and len(self.looks) % self.loses == 0:
                    self.now += 3000 * US
                if busy.poll(self.look):
                    assert self.now >= self.comes
                    continue
            self.now = max(self.now, self.comes + self.wakes)
            busy.record_wakeup(self.now)


def busy_for(guest: Asker, longest_us: int = 200) -> BusyPoll:
    return BusyPoll(longest_us * US, lambda: guest.elsewhere, guest.clock)


def share(looks: list[bool]) -> float:
    return sum(looks) / len(looks)


def test_requests_that_come_closely_are_looked_for() -> None:
    guest = Asker(thinks=50 * US, wakes=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert share(guest.looks) > 0.9


@pytest.mark.parametrize("thinks", [199, 300, 5000, 10**6])
def test_requests_that_come_later_are_not(thinks: int) -> None:
    guest = Asker(thinks=thinks * US, wakes=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert 0 < share(guest.looks) < 0.1
    assert guest.looked < 0.1 * guest.thinks * 2000


def test_nobody_looks_where_it_makes_the_guest_slower() -> None:
    guest = Asker(thinks=50 * US, wakes=20 * US, hindered=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert share(guest.looks) < 0.1


def test_nobody_looks_where_the_processor_is_lost_meanwhile() -> None:
    guest = Asker(thinks=50 * US, wakes=20 * US, loses=50)
    guest.serve(busy_for(guest), 20_000)
    assert share(guest.looks) < 0.3


def test_it_is_tried_again_when_the_guest_changes() -> None:
    guest = Asker(thinks=5000 * US, wakes=20 * US)
    busy = busy_for(guest)
    guest.serve(busy, 1000)
    guest.thinks = 50 * US
    guest.serve(busy, 600)
    guest.looks.clear()
    guest.serve(busy, 1000)
    assert share(guest.looks) > 0.9
    guest.thinks = 5000 * US
    guest.serve(busy, 600)
    guest.looks.clear()
    guest.serve(busy, 1000)
    assert share(guest.looks) < 0.1


def test_nothing_is_looked_for_without_time_for_it() -> None:
    guest = Asker(thinks=5 * US, wakes=20 * US)
    guest.serve(busy_for(guest, 0), 2000)
    assert not any(guest.looks)


def test_other_work_ends_the_looking() -> None:
    guest = Asker(thinks=50 * US, wakes=20 * US)
    busy = busy_for(guest)
    guest.serve(busy, 2000)
    assert busy.should_poll()
    guest.elsewhere = True
    before = guest.now
    assert not busy.poll(lambda: False)
    assert guest.now == before


@pytest.fixture
def fixture() -> Iterator[DeviceFixture]:
    with device_fixture() as fixture:
        yield fixture


@pytest.mark.parametrize("event_idx", [True, False])
def test_what_is_looked_for_needs_no_kick_and_has_been_answered_before(
    fixture: DeviceFixture, event_idx: bool
) -> None:
    busy = AlwaysPoll(fixture.loop.has_work)
    front_end = fixture.connect(event_idx=event_idx, busy_poll=busy)
    front_end.negotiate()
    channel = front_end.requests()
    answered: list[int] = []

    def another() -> None:
        # The reply to the one before has been told of: the driver waits for it before it sends the
        # next one.
        assert channel.interrupts()
        answered.append(answer(front_end))
        if len(answered) < 4:
            posted_echo(front_end, channel)
            assert not channel.queue.publish(), "the driver is to kick though somebody looks"

    busy.during = another
    posted_echo(front_end, channel)
    front_end.publish(channel)
    fixture.loop.run_once(0)
    assert answered == 4 * [OUT_HEADER.size]
    assert busy.found == 3
    busy.during = lambda: None
    posted_echo(front_end, channel)
    assert channel.queue.publish(), "nobody looks, and the driver is not to kick"
    os.eventfd_write(channel.kick, 1)
    fixture.loop.run_once(0)
    assert answer(front_end) == OUT_HEADER.size


def test_replies_after_looking_are_told_of_together(fixture: DeviceFixture) -> None:
    busy = AlwaysPoll(fixture.loop.has_work)
    front_end = fixture.connect(event_idx=False, busy_poll=busy)
    front_end.negotiate()
    channel = front_end.requests()

    def three() -> None:
        busy.during = lambda: None
        assert channel.interrupts()
        began = time.monotonic_ns()
        while time.monotonic_ns() < began + 2 * INTERRUPT_DELAY_NS:
            pass
        for _ in range(3):
            posted_echo(front_end, channel)
        channel.queue.publish()

    busy.during = three
    posted_echo(front_end, channel)
    front_end.publish(channel)
    fixture.loop.run_once(0)
    assert channel.queue.used_count() == 4
    assert channel.interrupts() == 1


@pytest.mark.parametrize("in_thread", [True, False])
def test_device_does_not_poll_while_a_thread_works_on_a_reply(
    fixture: DeviceFixture, monkeypatch: pytest.MonkeyPatch, in_thread: bool
) -> None:
    busy = AlwaysPoll(fixture.loop.has_work)
    polled: list[int] = []
    busy.during = lambda: polled.append(1)
    front_end = fixture.connect(busy_poll=busy)
    front_end.negotiate()
    assert polled
    polled.clear()
    reply = DeferredReply(9, in_thread=in_thread)
    with monkeypatch.context() as patch:
        patch.setattr(fixture.handler, "handle", lambda chain: reply)
        channel = front_end.requests()
        posted_echo(front_end, channel)
        front_end.publish(channel)
        front_end.settle()
    assert bool(polled) is not in_thread
    reply.complete()
    assert answer(front_end) == OUT_HEADER.size
    polled.clear()
    posted_echo(front_end, channel)
    front_end.publish(channel)
    front_end.settle()
    assert polled


def answer(front_end: FrontEnd) -> int:
    """The bytes of the one answer that there is."""
    queue = front_end.requests().queue
    assert queue.used_count() == 1
    used = queue.take_used()
    assert used is not None
    queue.want_interrupts(True)
    return used[1]


REQUESTS = 2000
#: Of so many requests a daemon that looks would find more without a kick, and one that does not by
#: accident fewer.
UNKICKED = 50


def unkicked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: set[int], option: str
) -> int:
    """How many of ``REQUESTS`` to a daemon that may use ``processors`` needed no kick."""
    wanted: list[bool] = []
    publish = DriverQueue.publish

    def counted(queue: DriverQueue) -> bool:
        wanted.append(publish(queue))
        return wanted[-1]

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        with running(tmp_path / "socket", tmp_path, option) as daemon:
            os.sched_setaffinity(0, before)
            guest = Guest(daemon)
            monkeypatch.setattr(DriverQueue, "publish", counted)
            for _ in range(REQUESTS):
                guest.ask(Opcode.GETATTR, ROOT, bytes(getattr_in.size), attr_out.size)
            monkeypatch.undo()
            guest.leave()
    finally:
        os.sched_setaffinity(0, before)
    return wanted.count(False)


def test_the_daemon_looks_where_it_has_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = os.sched_getaffinity(0)
    found = unkicked(tmp_path, monkeypatch, processors, "--busy-poll=1000")
    assert (found > UNKICKED) == (len(processors) > 1), found


def test_the_daemon_does_not_look_with_one_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        unkicked(tmp_path, monkeypatch, {min(os.sched_getaffinity(0))}, "--busy-poll=1000")
        < UNKICKED
    )


def test_the_daemon_does_not_look_when_it_is_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unkicked(tmp_path, monkeypatch, os.sched_getaffinity(0), "--busy-poll=0") < UNKICKED
