# SPDX-License-Identifier: Apache-2.0
"""Looking for requests before waiting for them: where it pays, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from farwatchd.vhost_user.busy import BusyPoll
from farwatchd.vhost_user.interfaces import late
from tests.device_world import World, device_world, posted_echo
from tests.frontend import OUT_HEADER, FrontEnd

US = 1000
LOOK = US // 2


@dataclass
class Guest:
    """Its next request comes ``thinks`` after the reply; noticing takes ``wakes`` longer when it is waited for.

    While it is looked for the guest takes ``hindered`` longer, and of each ``loses`` requests (0: of none) the
    processor is lost for 3 ms. ``looked`` is the time that was spent looking.
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
            looks = busy.ends()
            self.looks.append(looks)
            if looks:
                self.comes += self.hindered
                if self.loses and len(self.looks) % self.loses == 0:
                    self.now += 3000 * US
                if busy.finds(self.look):
                    assert self.now >= self.comes
                    continue
            self.now = max(self.now, self.comes + self.wakes)
            busy.woken(self.now)


def busy_for(guest: Guest, longest_us: int = 200) -> BusyPoll:
    return BusyPoll(longest_us * US, lambda: guest.elsewhere, guest.clock)


def share(looks: list[bool]) -> float:
    return sum(looks) / len(looks)


def test_requests_that_come_closely_are_looked_for() -> None:
    guest = Guest(thinks=50 * US, wakes=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert share(guest.looks) > 0.9


@pytest.mark.parametrize("thinks", [199, 300, 5000, 10**6])
def test_requests_that_come_later_are_not(thinks: int) -> None:
    guest = Guest(thinks=thinks * US, wakes=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert 0 < share(guest.looks) < 0.1
    assert guest.looked < 0.1 * guest.thinks * 2000


def test_nobody_looks_where_it_makes_the_guest_slower() -> None:
    guest = Guest(thinks=50 * US, wakes=20 * US, hindered=20 * US)
    guest.serve(busy_for(guest), 2000)
    assert share(guest.looks) < 0.1


def test_nobody_looks_where_the_processor_is_lost_meanwhile() -> None:
    guest = Guest(thinks=50 * US, wakes=20 * US, loses=50)
    guest.serve(busy_for(guest), 20_000)
    assert share(guest.looks) < 0.3


def test_it_is_tried_again_when_the_guest_changes() -> None:
    guest = Guest(thinks=5000 * US, wakes=20 * US)
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
    guest = Guest(thinks=5 * US, wakes=20 * US)
    guest.serve(busy_for(guest, 0), 2000)
    assert not any(guest.looks)


def test_other_work_ends_the_looking() -> None:
    guest = Guest(thinks=50 * US, wakes=20 * US)
    busy = busy_for(guest)
    guest.serve(busy, 2000)
    assert busy.ends()
    guest.elsewhere = True
    before = guest.now
    assert not busy.finds(lambda: False)
    assert guest.now == before


class Eager(BusyPoll):
    """Looks every time; ``during`` is called when it does."""

    def __init__(self, elsewhere: Callable[[], bool]) -> None:
        super().__init__(1, elsewhere)
        self.during: Callable[[], None] = lambda: None
        self.found = 0

    def ends(self) -> bool:
        return True

    def finds(self, more: Callable[[], bool]) -> bool:
        self.during()
        found = more()
        self.found += found
        return found


@pytest.fixture
def world() -> Iterator[World]:
    with device_world() as world:
        yield world


@pytest.mark.parametrize("event_idx", [True, False])
def test_what_is_looked_for_needs_no_kick_and_has_been_answered_before(world: World, event_idx: bool) -> None:
    busy = Eager(world.loop.has_work)
    front_end = world.connect(event_idx=event_idx, busy=busy)
    front_end.negotiate()
    channel = front_end.requests()
    answered: list[int] = []

    def another() -> None:
        # The reply to the one before has been told of: the driver waits for it before it sends the next one.
        assert channel.interrupts()
        answered.append(answer(front_end))
        if len(answered) < 4:
            posted_echo(front_end, channel)
            assert not channel.queue.publish(), "the driver is to kick though somebody looks"

    busy.during = another
    posted_echo(front_end, channel)
    front_end.publish(channel)
    world.loop.run_once(0)
    assert answered == 4 * [OUT_HEADER.size]
    assert busy.found == 3
    busy.during = lambda: None
    posted_echo(front_end, channel)
    assert channel.queue.publish(), "nobody looks, and the driver is not to kick"
    os.eventfd_write(channel.kick, 1)
    world.loop.run_once(0)
    assert answer(front_end) == OUT_HEADER.size


class Later:
    """Replies to all when it is told to."""

    def __init__(self) -> None:
        self.answer: Callable[[int, bytes, int], None] = lambda _ticket, _reply, _length: None

    def set_answer(self, answer: Callable[[int, bytes, int], None]) -> None:
        self.answer = answer

    def abandon(self, ticket: int) -> None:
        self.answer(ticket, bytes(OUT_HEADER.size), OUT_HEADER.size)


def test_nobody_looks_while_a_thread_works_on_a_reply(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, later = Eager(world.loop.has_work), Later()
    looked: list[int] = []
    busy.during = lambda: looked.append(1)
    front_end = world.connect(busy=busy, late_replies=later)
    front_end.negotiate()
    assert looked
    looked.clear()
    handle = world.handler.handle
    monkeypatch.setattr(world.handler, "handle", lambda chain: late(1))
    channel = front_end.requests()
    posted_echo(front_end, channel)
    front_end.publish(channel)
    front_end.settle()
    assert not looked
    monkeypatch.setattr(world.handler, "handle", handle)
    later.abandon(1)
    assert answer(front_end) == OUT_HEADER.size
    posted_echo(front_end, channel)
    front_end.publish(channel)
    front_end.settle()
    assert looked


def answer(front_end: FrontEnd) -> int:
    """The bytes of the one answer that there is."""
    queue = front_end.requests().queue
    assert queue.used_count() == 1
    used = queue.take_used()
    assert used is not None
    queue.want_interrupts(True)
    return used[1]
