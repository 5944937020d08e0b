# SPDX-License-Identifier: Apache-2.0
"""Chains as Linux writes them, which are cached, and any others.

Both are decoded alike.
"""

from __future__ import annotations

import gc
import mmap
import os
import struct

import pytest
from farwatchd.virtqueue import Chain, GuestMemory, Region, VirtqueueError
from farwatchd.virtqueue.chains import ChainReader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.driver import INDIRECT, NEXT, WRITE

_DESCRIPTOR = struct.Struct("<QIHH")
#: Two regions that meet and one apart.
_MEMORY = GuestMemory(
    [
        Region(0x1000, 0x1000, 0x1000, memoryview(bytearray(0x1000))),
        Region(0x2000, 0x1000, 0x2000, memoryview(bytearray(0x1000))),
        Region(0x8000, 0x1000, 0x8000, memoryview(bytearray(0x1000))),
    ]
)
_TABLE = 0x8800

Descriptor = tuple[int, int, int, int]

_addresses = st.sampled_from(
    [0x1000, 0x1010, 0x1FF0, 0x2000, 0x2FF0, 0x8000, 0x8FFF, 0x0, 0x5000, (1 << 64) - 8]
)
_lengths = st.sampled_from([0, 1, 16, 16, 40, 0x800, 0xFFFFFFFF])
_any_descriptor = st.tuples(
    _addresses,
    _lengths,
    st.sampled_from([0, NEXT, NEXT, WRITE, NEXT | WRITE, 8]),
    st.integers(0, 9),
)


@st.composite
def _linux_tables(draw: st.DrawFn) -> list[Descriptor]:
    """In order, as Linux writes them, though with any addresses."""
    readable, writable = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    flags = [NEXT] * readable + [NEXT | WRITE] * writable or [NEXT]
    flags[-1] &= ~NEXT
    return [
        (draw(_addresses), draw(_lengths), flag, number) for number, flag in enumerate(flags, 1)
    ]


def _read(descriptors: list[Descriptor], indirect: bool) -> tuple[bytes, bytes, int] | None:
    """Return the slices of the chain, by address; None when it is refused.

    The table is the ring's, or an indirect one.
    """
    table = b"".join(_DESCRIPTOR.pack(*descriptor) for descriptor in descriptors)
    size = len(descriptors)
    if indirect:
        _MEMORY.slices(_TABLE, len(table), writable=True)[0][:] = table
        table, size = _DESCRIPTOR.pack(_TABLE, len(table), INDIRECT, 0), 1
    reader = ChainReader(_MEMORY, size, memoryview(table), indirect=True)
    try:
        chain = reader.chain(0)
    except VirtqueueError:
        return None
    assert chain == Chain.of(chain.readable, chain.writable)
    return b"".join(chain.readable), b"".join(chain.writable), chain.writable_size


def setup_module() -> None:
    """Return memory in which nearly every byte depends on its address."""
    for region in _MEMORY.regions:
        region.view[:] = bytes(
            (n * 7 + n // 256 + region.guest_addr // 4096) % 256 for n in range(region.size)
        )


@given(st.one_of(_linux_tables(), st.lists(_any_descriptor, min_size=1, max_size=8)))
@settings(max_examples=400)
@example(
    [
        (0x1000, 40, NEXT, 1),
        (0x1040, 16, NEXT, 2),
        (0x8000, 16, NEXT | WRITE, 3),
        (0x2000, 104, WRITE, 4),
    ]
)
@example([(0x1FF0, 32, NEXT, 1), (0x2000, 16, WRITE, 0)])
@example([(0x1000, 16, NEXT | WRITE, 1), (0x1000, 16, 0, 0)])
@example([(0x1000, 16, NEXT, 1), (0x1000, 16, NEXT | WRITE, 2)])
@example([(0x1000, 16, 0, 1), (0x1000, 16, WRITE, 0)])
@example([(0x1000, 16, NEXT, 2), (0x1000, 17, NEXT, 2), (0x1000, 18, WRITE, 0)])
def test_table_is_decoded_alike_in_the_ring_and_indirectly(descriptors: list[Descriptor]) -> None:
    # What a chain in the ring's own table means is never cached.
    assert _read(descriptors, indirect=True) == _read(descriptors, indirect=False)


@pytest.mark.parametrize("length", [0, 15, 17, 40])
def test_a_table_of_broken_length_is_refused(length: int) -> None:
    table = memoryview(_DESCRIPTOR.pack(_TABLE, length, INDIRECT, 0))
    with pytest.raises(VirtqueueError, match=f"an indirect table of {length} bytes"):
        ChainReader(_MEMORY, 1, table, indirect=True).chain(0)


def test_chain_longer_than_a_used_length_is_refused() -> None:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 1 << 32)
    mapped = memoryview(mmap.mmap(fd, 1 << 32))
    os.close(fd)
    memory = GuestMemory([Region(1 << 32, 1 << 32, 1 << 32, mapped), *_MEMORY.regions])
    descriptors = [(1 << 32, 1 << 31, NEXT | WRITE, 1), (1 << 32, 1 << 31, WRITE, 0)]
    table = b"".join(_DESCRIPTOR.pack(*descriptor) for descriptor in descriptors)
    _MEMORY.slices(_TABLE, len(table), writable=True)[0][:] = table
    ring = memoryview(_DESCRIPTOR.pack(_TABLE, len(table), INDIRECT, 0))
    with pytest.raises(VirtqueueError, match=f"{1 << 32} bytes in one chain"):
        ChainReader(memory, 1, ring, indirect=True).chain(0)


def test_cached_chains_are_found_by_the_content_of_their_table() -> None:
    ring = memoryview(_DESCRIPTOR.pack(_TABLE, 2 * _DESCRIPTOR.size, INDIRECT, 0))
    reader = ChainReader(_MEMORY, 1, ring, indirect=True)
    table = _MEMORY.slices(_TABLE, 2 * _DESCRIPTOR.size, writable=True)[0]
    before = _views()
    # More than are cached.
    for addr in (0x1000, 0x1010, 0x1020) * 2:
        for length in range(1, 1500):
            table[:] = _DESCRIPTOR.pack(addr, 7, NEXT, 1) + _DESCRIPTOR.pack(
                0x2000, length, WRITE, 0
            )
            chain = reader.chain(0)
            assert [len(view) for view in (*chain.readable, *chain.writable)] == [7, length]
            assert chain.writable_size == length
    assert _views() - before <= 8192


def _views() -> int:
    """How many views of memory there are in this process."""
    return sum(1 for each in gc.get_objects() if isinstance(each, memoryview))
