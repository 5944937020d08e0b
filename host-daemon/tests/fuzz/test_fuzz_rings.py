# SPDX-License-Identifier: Apache-2.0
"""Tens of thousands of rings with nearly right or random tables and indices, some that change.

Chains lie in the guest's memory, or the ring is stopped with one line in the log. A ring that is
reset serves again.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from random import Random

import pytest
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue import (
    GuestMemory,
    Region,
    Ring,
    RingAddress,
    RingMemory,
    VirtqueueError,
)
from farwatchd.virtqueue.chains import MAX_INDIRECT
from tests.support.driver import INDIRECT, NEXT, WRITE, Buffer, DriverQueue, GuestRam
from tests.support.frontend import FrontEnd
from tests.support.fuzzing import errors_logged, inputs, number
from tests.support.handlers import RAW_ECHO, RawEchoHandler
from tests.support.native_part import make_ring

RAM = 1 << 16
SIZE = 8
RINGS = 20_000
DEVICE_RINGS = 3_000
CHANGING_RINGS = 300
#: Longest time for one ring, in seconds: none makes the daemon walk for long.
PATIENCE = 5.0


def memory_of(ram: GuestRam) -> GuestMemory:
    """Return the guest's memory as the daemon has it."""
    shared = ram.share()
    return GuestMemory(
        [
            Region(r.guest_addr, r.size, r.user_addr, shared[r.offset : r.offset + r.size])
            for r in ram.regions
        ]
    )


def fill(random: Random, ram: GuestRam, queue: DriverQueue, area: int) -> int:
    """Write anything into a ring and the memory at ``area``; return how many chains it shows."""
    spots = [
        area,
        area + 4096,
        ram.BASE,
        ram.BASE + RAM // 2 - 16,
        ram.BASE + RAM - 16,
        ram.BASE + RAM,
        0,
    ]

    def descriptor(indirect: bool) -> tuple[int, int, int, int]:
        address = random.choice(spots) if random.random() < 0.9 else number(random, 8)
        length = (
            random.choice((0, 16, 32, 64, 128, 2048))
            if random.random() < 0.85
            else number(random, 4)
        )
        flags = random.choice((0, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT if indirect else NEXT))
        flags = flags if random.random() < 0.95 else number(random, 2)
        following = random.randrange(SIZE + 1) if random.random() < 0.95 else number(random, 2)
        return address, length, flags, following

    for index in range(queue.size):
        queue.set_descriptor(index, *descriptor(True))
    queue.write_table(
        area, [descriptor(random.random() < 0.05) for _ in range(random.randrange(1, 20))]
    )
    for position in range(queue.size):
        head = random.randrange(SIZE) if random.random() < 0.97 else number(random, 2)
        ram.write_short(queue.available + 4 + 2 * position, head)
    ahead = random.randrange(SIZE + 1) if random.random() < 0.95 else number(random, 2)
    ram.write_short(queue.available + 2, queue.next_available + ahead)
    ram.write_short(queue.available, number(random, 2) if random.random() < 0.2 else 0)
    ram.write_short(queue.available + 4 + 2 * queue.size, number(random, 2))
    return ahead


def drain(ring: Ring, memory: GuestMemory) -> int:
    """Pop and complete all available chains; return their number."""
    bounds = [region.view for region in memory.regions]
    taken = 0
    while (popped := ring.pop()) is not None:
        head, chain = popped
        total = chain.writable_size
        assert (sum(map(len, chain.readable)), sum(map(len, chain.writable))) == (
            chain.readable_size,
            total,
        )
        assert all(view.obj is bounds[0].obj for view in [*chain.readable, *chain.writable])
        assert len(chain.readable) + len(chain.writable) <= 2 * (SIZE + MAX_INDIRECT)
        ring.add_used(head, min(total, 16))
        ring.needs_notification()
        taken += 1
    return taken


@pytest.mark.parametrize("event_idx", [False, True])
def test_any_ring_is_drained_or_stopped(event_idx: bool) -> None:
    ram = GuestRam(RAM)
    memory = memory_of(ram)
    queue = DriverQueue(ram, SIZE, event_idx)
    area = ram.allocate(8192)
    address = RingAddress(
        *(ram.user_addr(at) for at in (queue.descriptors, queue.available, queue.used))
    )
    given_up = drained = 0
    for _, random in inputs(RINGS):
        ram.write_short(queue.used + 2, 0)
        ahead = fill(random, ram, queue, area)
        parts = RingMemory.at_user_addresses(memory, SIZE, address, event_idx)
        try:
            taken = drain(make_ring(memory, parts, 0, event_idx, random.random() < 0.9), memory)
        except VirtqueueError as error:
            given_up += 1
            assert "\n" not in str(error)
        else:
            drained += 1
            assert taken == ahead <= SIZE
    assert given_up and drained
    ram.close()


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    """Yield a front-end of a device in a loop that the test runs."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    config = DeviceConfig("share", notification=False)
    busy_poll = BusyPoll(20_000, loop.has_work)
    device = Device(loop, RawEchoHandler(), config, None, busy_poll, make_ring)
    server = Server(loop, theirs, device, lambda: None)
    ram = GuestRam(1 << 20)
    # Fuzzed chains write here; what they write must not be another queue.
    ram.allocate(8192)
    front_end = FrontEnd(ours, False, loop=loop, queue_size=SIZE, ram=ram)
    front_end.negotiate()
    yield front_end
    server.close()
    front_end.close()
    loop.close()


def test_device_serves_requests_after_any_ring(front_end: FrontEnd) -> None:
    ram, channel = front_end.ram, front_end.requests()
    index = front_end.channels.index(channel)
    area = ram.allocate(8192)
    mark = ram.mark()
    rings = stopped = 0
    with errors_logged() as lines:
        for _, random in inputs(DEVICE_RINGS):
            lines.clear()
            rings += 1
            fill(random, ram, channel.queue, area)
            os.eventfd_write(channel.kick, 1)
            front_end.settle()
            assert len(lines) <= 1
            assert all(line.startswith(f"queue {index} stopped: ") for line in lines), lines
            stopped += len(lines)
            front_end.stop_ring(index)
            ram.rewind(mark)
            front_end.reset_ring(index)
            front_end.start_ring(index)
            assert front_end.request(RAW_ECHO, 1, b"", 24)[0] == 0
            # The other queue has not been touched by it.
            front_end.forget(1)
    assert 0 < stopped < rings


class Scribbler(threading.Thread):
    """Changes a ring all the time."""

    def __init__(self, random: Random, ram: GuestRam, queue: DriverQueue, area: int) -> None:
        super().__init__()
        self._write = (random, ram, queue, area)
        self.going = True
        self.changed = threading.Event()

    def run(self) -> None:
        while self.going:
            fill(*self._write)
            self.changed.set()


def test_ring_that_changes_while_it_is_read_is_drained_or_stopped() -> None:
    ram = GuestRam(RAM)
    memory = memory_of(ram)
    queue = DriverQueue(ram, SIZE, True)
    area = ram.allocate(8192)
    address = RingAddress(
        *(ram.user_addr(at) for at in (queue.descriptors, queue.available, queue.used))
    )
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    given_up = 0
    scribbler = Scribbler(Random(1), ram, queue, area)
    scribbler.start()
    try:
        for _, _random in inputs(CHANGING_RINGS):
            # A thread that has not had its turn changes nothing.
            assert scribbler.changed.wait(PATIENCE)
            scribbler.changed.clear()
            ram.write_short(queue.used + 2, 0)
            ring = make_ring(
                memory, RingMemory.at_user_addresses(memory, SIZE, address, True), 0, True, True
            )
            try:
                # It never ends by itself: the index is ahead again as soon as it is reached.
                for _ in range(100):
                    popped = ring.pop()
                    if popped is not None:
                        head, chain = popped
                        assert sum(map(len, chain.writable)) == chain.writable_size
                        ring.add_used(head, 0)
                        ring.needs_notification()
            except VirtqueueError:
                given_up += 1
    finally:
        scribbler.going = False
        scribbler.join(PATIENCE)
        sys.setswitchinterval(interval)
    assert given_up
    ram.close()


def test_slices_of_a_chain_are_those_of_the_table(front_end: FrontEnd) -> None:
    # So that the fuzzed rings are known to be read as rings.
    ram = front_end.ram
    first, second = Buffer(ram.allocate(40), 40), Buffer(ram.allocate(64), 64)
    ram.write(first.addr, b"y" * 40)
    assert front_end.submit(front_end.requests(), [first], [second]) == 40
    assert ram.read(second.addr, 40) == b"y" * 40
