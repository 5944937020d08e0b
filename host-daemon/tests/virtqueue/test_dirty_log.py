# SPDX-License-Identifier: Apache-2.0
"""The log of dirty pages, and the ring that marks there what it writes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator

import pytest
from farwatchd.linux.futex import set_bit
from farwatchd.virtqueue import DirtyLog, GuestMemory, LoggedRing, Region, RingAddress, RingMemory
from farwatchd.virtqueue.dirty_log import PAGE_SIZE
from tests.support.driver import Buffer, DriverQueue, GuestRam
from tests.support.shared_log import Log, log_size

THREADS = 4
WORDS = 2000


def test_bits_that_others_set_at_the_same_time_are_kept() -> None:
    words = (ctypes.c_uint32 * WORDS)()
    start = threading.Barrier(THREADS)

    def set_mine(mine: int) -> None:
        start.wait()
        for index in range(WORDS):
            for bit in range(mine, 32, THREADS):
                set_bit(ctypes.addressof(words) + 4 * index, bit)

    threads = [threading.Thread(target=set_mine, args=(mine,)) for mine in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(words) == {0xFFFFFFFF}


@pytest.mark.parametrize("offset", [0, 4, 4096 + 8])
def test_every_page_of_a_range_is_marked_and_no_other(offset: int) -> None:
    log = Log(64, offset)
    mapped = DirtyLog(log.fd, offset, 64)
    for addr, size, pages in (
        (0, 1, [0]),
        (PAGE_SIZE - 1, 2, [0, 1]),
        (7 * PAGE_SIZE, 2 * PAGE_SIZE, [7, 8]),
        (31 * PAGE_SIZE + 5, PAGE_SIZE, [31, 32]),
        (511 * PAGE_SIZE, PAGE_SIZE, [511]),
    ):
        mapped.mark(addr, size)
        assert log.take() == {page * PAGE_SIZE for page in pages}
    assert mapped.covers_range(511 * PAGE_SIZE, PAGE_SIZE)
    assert not mapped.covers_range(511 * PAGE_SIZE, PAGE_SIZE + 1)
    mapped.close()
    log.close()


@pytest.mark.parametrize(
    ("first", "count"), [(0, 1), (0, 16), (3, 4), (3, 5), (3, 40), (8, 8), (7, 2), (160, 24)]
)
def test_all_of_the_memory_is_marked_and_nothing_else(first: int, count: int) -> None:
    log = Log(64)
    mapped = DirtyLog(log.fd, 0, 64)
    size = count * PAGE_SIZE
    mapped.mark_all(GuestMemory([Region(first * PAGE_SIZE, size, 0, memoryview(bytearray(size)))]))
    assert log.take() == {page * PAGE_SIZE for page in range(first, first + count)}
    mapped.close()
    log.close()


@pytest.mark.parametrize(
    ("size", "offset", "reason"),
    [
        (0, 0, "empty"),
        (8, 2, "not aligned"),
        (1 << 40, 0, "its file is shorter"),
        (8, 1 << 62, "its file is shorter"),
    ],
)
def test_impossible_log_is_refused(size: int, offset: int, reason: str) -> None:
    log = Log(64)
    with pytest.raises(ValueError, match=reason):
        DirtyLog(log.fd, offset, size)
    log.close()


def test_descriptor_that_cannot_be_mapped_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="its file is shorter"):
        DirtyLog(reader, 0, 8)
    os.close(reader)
    os.close(writer)


class LoggedQueue:
    """A logged ring of this thread, with its driver."""

    def __init__(self, event_idx: bool, indirect: bool, log_used_at: int | None = None) -> None:
        self.ram = GuestRam(1 << 20)
        self.driver = DriverQueue(self.ram, 8, event_idx)
        shared = self.ram.share()
        memory = GuestMemory(
            Region(r.guest_addr, r.size, r.user_addr, shared[r.offset : r.offset + r.size])
            for r in self.ram.regions
        )
        self.log = Log(log_size(self.ram))
        self.mapped = DirtyLog(self.log.fd, 0, self.log.size)
        where = RingAddress(
            *(
                self.ram.user_addr(each)
                for each in (self.driver.descriptors, self.driver.available, self.driver.used)
            )
        )
        parts = RingMemory.at_user_addresses(memory, 8, where, event_idx)
        self.ring = LoggedRing(
            memory, parts, 0, event_idx, indirect, None, self.mapped, log_used_at
        )
        self.indirect = indirect
        self.used_page = self.driver.used // PAGE_SIZE * PAGE_SIZE
        self.readable = Buffer(self.ram.allocate(40, PAGE_SIZE), 40)
        self.writable = [
            Buffer(self.ram.allocate(16, PAGE_SIZE), 16),
            # Where the regions meet, too.
            Buffer(self.ram.regions[1].guest_addr - 100, PAGE_SIZE + 200),
        ]
        self.pages = {
            page * PAGE_SIZE
            for each in self.writable
            for page in range(
                each.addr // PAGE_SIZE, (each.addr + each.length - 1) // PAGE_SIZE + 1
            )
        }

    def publish(self) -> int:
        head = self.driver.add([self.readable], self.writable, self.indirect)
        self.driver.publish()
        return head

    def close(self) -> None:
        self.mapped.close()
        self.log.close()
        self.ram.close()


@pytest.fixture(params=[(True, True), (True, False), (False, True), (False, False)])
def queue(request: pytest.FixtureRequest) -> Iterator[LoggedQueue]:
    queue = LoggedQueue(*request.param)
    yield queue
    queue.close()


def test_all_of_a_completed_chain_is_marked(queue: LoggedQueue) -> None:
    queue.publish()
    popped = queue.ring.pop()
    assert popped is not None
    head, _ = popped
    assert queue.log.take() == set()
    # A handler may have written more than the reply has.
    queue.ring.add_used(head, 16)
    assert queue.log.take() == {queue.used_page, *queue.pages}


def test_chain_that_is_put_back_is_marked(queue: LoggedQueue) -> None:
    queue.publish()
    assert queue.ring.pop() is not None
    queue.ring.go_to_previous_position()
    assert queue.log.take() == queue.pages


def test_chain_in_flight_is_marked_at_the_end_of_the_ring(queue: LoggedQueue) -> None:
    head = queue.publish()
    assert queue.ring.pop() is not None
    queue.ring.chain(head)
    queue.ring.end()
    assert queue.log.take() == queue.pages
    queue.ring.end()
    assert queue.log.take() == set()


def test_notification_suppression_is_marked(queue: LoggedQueue) -> None:
    queue.ring.enable_notification()
    assert queue.log.take() == {queue.used_page}
    queue.ring.go_idle()
    assert queue.log.take() == {queue.used_page}
    before = queue.ram.read(queue.driver.used, 4)
    queue.ring.disable_notification()
    changed = queue.ram.read(queue.driver.used, 4) != before
    assert queue.log.take() == ({queue.used_page} if changed else set())


def test_used_ring_is_marked_where_the_front_end_wants_it_as_well() -> None:
    queue = LoggedQueue(True, True, log_used_at=0x5000)
    queue.ring.enable_notification()
    assert queue.log.take() == {queue.used_page, 0x5000}
    queue.close()


def test_only_the_writable_part_of_a_chain_can_be_written(queue: LoggedQueue) -> None:
    queue.publish()
    popped = queue.ring.pop()
    assert popped is not None
    _, chain = popped
    for view in chain.readable:
        with pytest.raises(TypeError):
            view[:1] = b"x"
        with pytest.raises(BufferError):
            os.preadv(queue.ram.fd, [view], 0)
    assert all(not view.readonly for view in chain.writable)
