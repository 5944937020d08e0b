# SPDX-License-Identifier: Apache-2.0
"""Guest memory and the split ring by themselves.

The tests check translation, chains against a model, notification, and any table.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from farwatchd.virtqueue import (
    Chain,
    GuestMemory,
    Region,
    Ring,
    RingAddress,
    RingMemory,
    VirtqueueError,
    unsupported_machine,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.driver import INDIRECT, NEXT, WRITE, Buffer, DriverQueue, GuestRam
from tests.support.native_part import make_ring

RAM = 1 << 16
_PLACES = RingAddress(0x7000_0000, 0x7000_0100, 0x7000_0200)


def _memory(*spans: tuple[int, int], step: int = 0x1000) -> GuestMemory:
    return GuestMemory(
        Region(addr, size, 0x7000_0000 + addr + i * step, memoryview(bytearray(size)))
        for i, (addr, size) in enumerate(spans)
    )


class Rings:
    """A driver and a device on one ring, without anything between."""

    def __init__(
        self, size: int = 8, event_idx: bool = True, indirect: bool = True, base: int = 0
    ) -> None:
        self.ram = GuestRam(RAM, regions=2)
        self.driver = DriverQueue(self.ram, size, event_idx, base)
        shared = self.ram.share()
        os.close(self.ram.fd)
        self.memory = GuestMemory(
            Region(r.guest_addr, r.size, r.user_addr, shared[r.offset : r.offset + r.size])
            for r in self.ram.regions
        )
        self.event_idx, self.indirect = event_idx, indirect
        self.ring = self.device(base)

    def device(self, base: int) -> Ring:
        places = (self.driver.descriptors, self.driver.available, self.driver.used)
        where = RingAddress(*map(self.ram.user_addr, places))
        parts = RingMemory.at_user_addresses(self.memory, self.driver.size, where, self.event_idx)
        return make_ring(self.memory, parts, base, self.event_idx, self.indirect)

    def buffer(self, data: bytes) -> Buffer:
        addr = self.ram.allocate(len(data), align=1)
        self.ram.write(addr, data)
        return Buffer(addr, len(data))


# Memory


def test_slices_of_one_region_and_across_adjacent_ones() -> None:
    memory = _memory((0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 16), (0x8000, 0x1000))
    assert [len(s) for s in memory.slices(0x1000, 0x1000)] == [0x1000]
    assert [len(s) for s in memory.slices(0x1FFF, 2)] == [1, 1]
    assert [len(s) for s in memory.slices(0x1800, 0x1810)] == [0x800, 0x1000, 16]
    memory.slices(0x2FFE, 4, writable=True)[1][:] = b"ab"
    assert bytes(memory.slices(0x3000, 2)[0]) == b"ab"


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (0, 1),
        (0xFFF, 2),
        (0x1FFF, 2),
        (0x2000, 1),
        (0x8FFF, 2),
        (0x9000, 1),
        (0x1000, 0x8000),
        ((1 << 64) - 1, 1 << 32),
    ],
)
def test_addresses_outside_guest_memory_are_refused(addr: int, length: int) -> None:
    memory = _memory((0x1000, 0x1000), (0x8000, 0x1000))
    with pytest.raises(VirtqueueError, match="outside"):
        memory.slices(addr, length)
    with pytest.raises(VirtqueueError, match="outside"):
        GuestMemory().slices(addr, length)


def test_regions_must_not_overlap_or_leave_the_address_space() -> None:
    for spans in ([(0, 16), (15, 16)], [(0, 0)], [((1 << 64) - 8, 16)], [(0, 64), (16, 16)]):
        with pytest.raises(ValueError, match="memory region"):
            _memory(*spans)
    with pytest.raises(ValueError, match="front-end"):
        GuestMemory(
            [Region(0, 16, 0, memoryview(bytes(16))), Region(16, 16, 8, memoryview(bytes(16)))]
        )
    with pytest.raises(ValueError, match="mapped"):
        GuestMemory([Region(0, 16, 0, memoryview(bytes(8)))])


def test_front_end_addresses_need_one_region() -> None:
    memory = _memory((0x1000, 0x1000), (0x2000, 0x1000), step=0)
    assert len(memory.user_view(0x7000_1000, 0x1000)) == 0x1000
    for addr, length in ((0x7000_1FFF, 2), (0x7000_0FFF, 1), (0x7000_3000, 1)):
        with pytest.raises(VirtqueueError, match="front-end address"):
            memory.user_view(addr, length)


# Chains


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=6),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 0xFFFF),
)
@settings(max_examples=150)
def test_chains_arrive_as_they_were_made(
    chains: list[list[tuple[int, bool]]], event_idx: bool, indirect: bool, base: int
) -> None:
    rings = Rings(event_idx=event_idx, base=base)
    for number, parts in enumerate(chains):
        readable = [rings.buffer(bytes([number]) * n) for n, write in parts if not write]
        writable = [Buffer(rings.ram.allocate(n), n) for n, write in parts if write]
        head = rings.driver.add(readable, writable, indirect)
        rings.driver.publish()
        popped = rings.ring.pop()
        assert popped is not None
        assert popped[0] == head
        chain = popped[1]
        assert b"".join(chain.readable) == bytes([number]) * sum(p.length for p in readable)
        assert (
            sum(map(len, chain.writable)) == chain.writable_size == sum(p.length for p in writable)
        )
        for view in chain.writable:
            view[:] = b"w" * len(view)
        rings.ring.add_used(head, chain.writable_size)
        assert rings.driver.take_used() == (head, chain.writable_size)
        assert all(rings.ram.read(p.addr, p.length) == b"w" * p.length for p in writable)
    assert rings.ring.pop() is None
    assert rings.ring.base == (base + len(chains)) & 0xFFFF


def test_chain_that_is_put_back_is_popped_again(rings: Rings) -> None:
    head = rings.driver.add([rings.buffer(b"a")], [])
    rings.driver.publish()
    for _ in range(2):
        popped = rings.ring.pop()
        assert popped is not None and popped[0] == head
        rings.ring.go_to_previous_position()
        assert rings.ring.base == 0
    assert rings.ring.pop() is not None
    assert rings.ring.pop() is None


def test_direct_descriptors_may_come_before_an_indirect_one(rings: Rings) -> None:
    first, second = rings.buffer(b"ab"), rings.buffer(b"cd")
    table = rings.ram.allocate(16)
    rings.driver.write_table(table, [(second.addr, 2, 0, 0)])
    rings.driver.set_descriptor(0, first.addr, 2, NEXT, 1)
    # The write flag of the descriptor that holds the table is to be ignored.
    rings.driver.set_descriptor(1, table, 16, INDIRECT | WRITE)
    rings.driver.set_available(0)
    rings.driver.publish()
    chain = popped_from(rings.ring)
    assert b"".join(chain.readable) == b"abcd"


def test_an_indirect_table_may_cross_regions(rings: Rings) -> None:
    buffer = rings.buffer(b"ab")
    border = rings.ram.regions[1].guest_addr
    rings.driver.write_table(border - 8, [(buffer.addr, 2, 0, 0)])
    rings.driver.set_descriptor(0, border - 8, 16, INDIRECT)
    rings.driver.set_available(0)
    rings.driver.publish()
    chain = popped_from(rings.ring)
    assert b"".join(chain.readable) == b"ab"


def test_adjacent_descriptors_are_one_slice(rings: Rings) -> None:
    buffers = [rings.buffer(b"abcd"), rings.buffer(b"ef"), Buffer(0, 0), rings.buffer(b"gh")]
    room = [rings.buffer(bytes(4)), rings.buffer(bytes(4))]
    apart = [rings.buffer(bytes(1)), rings.buffer(bytes(2))][1]
    rings.driver.add(buffers, [*room, apart], indirect=True)
    rings.driver.publish()
    chain = popped_from(rings.ring)
    # What the device reads and what it writes stay apart, though they follow each other too.
    assert [bytes(view) for view in chain.readable] == [b"abcdefgh"]
    assert [len(view) for view in chain.writable] == [8, 2]
    assert chain.writable_size == 10


def test_a_full_ring_in_one_chain_is_no_loop(rings: Rings) -> None:
    buffer = rings.buffer(b"x")
    rings.driver.add([buffer] * rings.driver.size, [])
    rings.driver.publish()
    chain = popped_from(rings.ring)
    assert len(chain.readable) == rings.driver.size


def test_ring_of_a_crashed_back_end_pops_chains_in_flight_again(rings: Rings) -> None:
    heads = [rings.driver.add([rings.buffer(b"x")], []) for _ in range(3)]
    rings.driver.publish()
    for _ in range(3):
        rings.ring.pop()
    rings.ring.add_used(heads[0], 0)
    again = rings.device(base=3)
    assert again.base == 1
    popped = again.pop()
    assert popped is not None
    assert popped[0] == heads[1]


@pytest.mark.parametrize("size", [0, 3, 1 << 16])
def test_impossible_ring_sizes_are_refused(size: int) -> None:
    with pytest.raises(VirtqueueError, match="power of two"):
        RingMemory.at_user_addresses(_memory((0, 0x1000)), size, _PLACES, True)


@pytest.mark.parametrize("shift", [(8, 0, 0), (0, 1, 0), (0, 0, 2)])
def test_misaligned_rings_are_refused(shift: tuple[int, int, int]) -> None:
    where = RingAddress(0x7000_0000 + shift[0], 0x7000_0100 + shift[1], 0x7000_0200 + shift[2])
    with pytest.raises(VirtqueueError, match="misaligned"):
        RingMemory.at_user_addresses(_memory((0, 0x1000)), 8, where, True)


def test_a_ring_must_fit_its_region_to_the_last_byte() -> None:
    _, _, used = RingMemory.lengths(8, True)
    for size, fits in ((0x200 + used, True), (0x200 + used - 1, False)):
        memory = _memory((0, size))
        if fits:
            RingMemory.at_user_addresses(memory, 8, _PLACES, True)
        else:
            with pytest.raises(VirtqueueError, match="front-end address"):
                RingMemory.at_user_addresses(memory, 8, _PLACES, True)


# Who notifies whom


def popped_from(ring: Ring) -> Chain:
    """Return the next chain, which must be available."""
    popped = ring.pop()
    assert popped is not None
    return popped[1]


@pytest.fixture
def rings() -> Iterator[Rings]:
    yield Rings()


def _exchange(rings: Rings, count: int) -> None:
    for _ in range(count):
        head = rings.driver.add([rings.buffer(b"x")], [])
        rings.driver.publish()
        assert rings.ring.pop() is not None
        rings.ring.add_used(head, 0)
        assert rings.driver.take_used() == (head, 0)


@pytest.mark.parametrize("base", [0, 0xFFFC])
def test_event_index_interrupts_once_when_the_index_is_passed(base: int) -> None:
    rings = Rings(base=base)
    rings.driver.want_interrupts(True)
    _exchange(rings, 1)
    assert rings.ring.needs_notification(), "the device does not know yet what the driver has seen"
    rings.driver.want_interrupts(True)
    assert not rings.ring.needs_notification(), "nothing new was pushed"
    _exchange(rings, 3)
    assert rings.ring.needs_notification()
    _exchange(rings, 2)
    assert not rings.ring.needs_notification(), "the driver has not asked again"
    rings.driver.want_interrupts(True)
    _exchange(rings, 1)
    assert rings.ring.needs_notification()


def test_without_event_index_the_flag_decides() -> None:
    rings = Rings(event_idx=False)
    for wanted in (True, False, True):
        rings.driver.want_interrupts(wanted)
        _exchange(rings, 2)
        assert rings.ring.needs_notification() is wanted
        assert not rings.ring.needs_notification()


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("base", [0, 0xFFFE])
def test_kicks_are_wanted_only_while_enabled(event_idx: bool, base: int) -> None:
    rings = Rings(event_idx=event_idx, base=base)
    assert not rings.ring.enable_notification()
    rings.driver.add([rings.buffer(b"x")], [])
    assert rings.driver.publish()
    rings.ring.disable_notification()
    rings.driver.add([rings.buffer(b"x")], [])
    assert not rings.driver.publish()
    assert rings.ring.enable_notification(), "there are chains that nobody will kick for"
    for _ in range(2):
        assert rings.ring.pop() is not None
    assert not rings.ring.enable_notification()
    rings.driver.add([rings.buffer(b"x")], [])
    assert rings.driver.publish()


# Anything


_ADDRESSES = st.one_of(
    st.integers(GuestRam.BASE, GuestRam.BASE + RAM),
    st.integers(0, (1 << 64) - 1),
    st.just(GuestRam.BASE + RAM // 2 - 8),
)
_LENGTHS = st.one_of(st.integers(0, 64), st.integers(0, RAM), st.integers(0, (1 << 32) - 1))
_FLAGS = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
_DESCRIPTORS = st.tuples(
    _ADDRESSES, _LENGTHS, _FLAGS, st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF))
)


@given(
    st.lists(_DESCRIPTORS, min_size=8, max_size=8),
    st.lists(st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), min_size=8, max_size=8),
    st.integers(0, 9),
    st.binary(max_size=256),
)
@settings(max_examples=400)
def test_any_ring_has_chains_in_memory_or_an_error(
    table: list[tuple[int, int, int, int]], heads: list[int], ahead: int, noise: bytes
) -> None:
    rings = Rings()
    rings.ram.write(rings.ram.regions[1].guest_addr - 128, noise)
    for index, descriptor in enumerate(table):
        rings.driver.set_descriptor(index, *descriptor)
    for head in heads:
        rings.driver.set_available(head)
    rings.ram.write_short(rings.driver.available + 2, ahead)
    taken: list[tuple[int, Chain]] = []
    try:
        while (popped := rings.ring.pop()) is not None:
            taken.append(popped)
            rings.ring.add_used(popped[0], 0)
            rings.ring.needs_notification()
    except VirtqueueError as error:
        assert "\n" not in str(error)
    else:
        assert len(taken) == ahead
    assert len(taken) <= rings.driver.size
    for head, chain in taken:
        assert head < rings.driver.size
        assert sum(map(len, chain.writable)) == chain.writable_size
        assert sum(map(len, [*chain.readable, *chain.writable])) < 1 << 32


def test_descriptors_are_read_once_however_the_guest_changes_them(rings: Rings) -> None:
    buffer = rings.buffer(b"abcd")
    head = rings.driver.add([buffer], [])
    rings.driver.publish()
    chain = popped_from(rings.ring)
    rings.driver.set_descriptor(head, 0, 0xFFFF_FFFF, NEXT, 0xFFFF)
    assert b"".join(chain.readable) == b"abcd"
    rings.ring.add_used(head, 0)
    used = rings.ram.read(rings.driver.used + 4, 8)
    assert struct.unpack("<II", used) == (head, 0)


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le", "loongarch64"])
def test_machine_that_may_reorder_memory_accesses_is_refused_in_one_line(machine: str) -> None:
    problem = unsupported_machine(machine)
    assert problem is not None and machine in problem and "\n" not in problem


def test_only_little_endian_x86_is_supported() -> None:
    assert unsupported_machine("x86_64", "little") is None
    assert unsupported_machine("s390x", "big") is not None
    assert unsupported_machine(os.uname().machine) is None
