# SPDX-License-Identifier: Apache-2.0
"""The device's side of a split virtqueue: available chains, the used ring, and who notifies whom
(Virtio 1.2, 2.7)."""

from __future__ import annotations

import struct
import sys
import threading
from dataclasses import dataclass

from farwatchd.virtqueue.chains import Chain, ChainReader
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory

AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

MAX_RING_SIZE = 1 << 15

_put_used = struct.Struct("<II").pack_into


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Where the parts of a ring are, as addresses of the front end."""

    descriptors: int
    available: int
    used: int


@dataclass(frozen=True, slots=True)
class RingMemory:
    """The three parts of a ring of ``size`` descriptors, as views of guest memory."""

    size: int
    descriptors: memoryview
    available: memoryview
    used: memoryview

    @staticmethod
    def lengths(size: int, event_idx: bool) -> tuple[int, int, int]:
        """Return the bytes of descriptor table, available ring and used ring."""
        event = 2 if event_idx else 0
        return 16 * size, 4 + 2 * size + event, 4 + 8 * size + event

    @classmethod
    def at_user_addresses(
        cls, memory: GuestMemory, size: int, at: RingAddress, event_idx: bool
    ) -> RingMemory:
        """Find a ring by the front end's addresses; ``VirtqueueError`` when size, alignment or
        place is wrong."""
        if not 0 < size <= MAX_RING_SIZE or size & (size - 1):
            raise VirtqueueError(f"ring size {size} is not a power of two up to {MAX_RING_SIZE}")
        if at.descriptors % 16 or at.available % 2 or at.used % 4:
            raise VirtqueueError(
                f"misaligned ring: {at.descriptors:#x}, {at.available:#x}, {at.used:#x}"
            )
        descriptors, available, used = cls.lengths(size, event_idx)
        return cls(
            size,
            memory.user_view(at.descriptors, descriptors),
            memory.user_view(at.available, available),
            memory.user_view(at.used, used),
        )


class SplitRing:
    """Takes chains from the available ring and gives them back through the used ring.

    ``base`` is the free-running index of the first chain to take; ``used``, if given, is that of
    the first to give back, of those that were taken through a former object and are still to be
    given back. Chains may be taken and given back in any order, but each exactly once. Every method
    may raise ``VirtqueueError``; after that the ring is not to be touched any more.

    Atomicity: the 16-bit fields that both sides share are read and written through 16-bit views,
    each a single load or store. Order: x86 keeps loads with loads and stores with stores, and the
    interpreter does not reorder either; only "store, then load" needs a fence, which
    ``_fence_stores`` gives.
    """

    def __init__(
        self,
        memory: GuestMemory,
        ring: RingMemory,
        base: int,
        event_idx: bool,
        indirect: bool,
        used: int | None = None,
    ) -> None:
        if sys.byteorder != "little":
            raise VirtqueueError(
                "virtqueues are little-endian, and this host is not: it cannot serve them"
            )
        self._size = ring.size
        self._mask = ring.size - 1
        self._chain = ChainReader(memory, ring.size, ring.descriptors, indirect).chain
        self._available = ring.available.cast("H")
        self._used = ring.used
        self._used_shorts = ring.used.cast("H")
        self._event_idx = event_idx
        self._used_event = 2 + ring.size
        self._avail_event = 2 + 4 * ring.size
        self._fence = threading.Lock()
        self._next_available = base & 0xFFFF
        self._seen_available = self._next_available
        self._next_used = self._used_shorts[1]
        self._signalled: int | None = None
        if used is not None:
            self._next_used = used
            return
        in_flight = (self._next_available - self._next_used) & 0xFFFF
        if 0 < in_flight <= ring.size:
            # Chains are given back in the order they were taken, so these died with a former back
            # end: take them again.
            self._next_available = self._seen_available = self._next_used

    @property
    def base(self) -> int:
        """Free-running index of the next chain to take: where a stopped ring goes on."""
        return self._next_available

    @property
    def used(self) -> int:
        """Free-running index of the next chain to give back."""
        return self._next_used

    def has_more(self) -> bool:
        """Whether the driver has made a chain available that has not been taken; cheap, and checks
        nothing."""
        return self._available[1] != self._next_available

    def peek(self) -> tuple[int, Chain] | None:
        """Return the next available chain and its head, checked, without taking it; ``None`` when
        there is none."""
        if self._next_available == self._seen_available and not self._look():
            return None
        head = self._available[2 + (self._next_available & self._mask)]
        return head, self._chain(head)

    def take(self) -> None:
        """Take the chain that ``peek`` just returned."""
        self._next_available = (self._next_available + 1) & 0xFFFF

    def pop(self) -> tuple[int, Chain] | None:
        """Take and return the next available chain and its head, checked; ``None`` when there is
        none."""
        index = self._next_available
        if index == self._seen_available and not self._look():
            return None
        head = self._available[2 + (index & self._mask)]
        chain = self._chain(head)
        self._next_available = (index + 1) & 0xFFFF
        return head, chain

    def push(self, head: int, written: int) -> None:
        """Give a taken chain back, ``written`` bytes of it being written; the driver can see it
        when this returns."""
        index = self._next_used
        _put_used(self._used, 4 + 8 * (index & self._mask), head, written)
        self._next_used = index = (index + 1) & 0xFFFF
        self._used_shorts[1] = index

    def must_signal(self) -> bool:
        """Say whether the driver wants an interrupt for what was pushed since the last call."""
        new = self._next_used
        old, self._signalled = self._signalled, new
        if old == new:
            return False
        self._fence_stores()
        return self._wants_interrupt(old, new)

    def enable_kicks(self) -> bool:
        """Ask the driver to notify of new chains; says whether some are there already (no kick may
        come for these)."""
        if self._event_idx:
            self._used_shorts[self._avail_event] = self._next_available
        else:
            self._used_shorts[0] = 0
        self._fence_stores()
        return self._look()

    def rest(self) -> tuple[bool, bool]:
        """``must_signal`` and ``enable_kicks`` with one fence; returns (chains are there, an
        interrupt is wanted)."""
        if self._event_idx:
            self._used_shorts[self._avail_event] = self._next_available
        else:
            self._used_shorts[0] = 0
        new = self._next_used
        old, self._signalled = self._signalled, new
        self._fence_stores()
        more = self.has_more() and self._look()
        return more, old != new and self._wants_interrupt(old, new)

    def disable_kicks(self) -> None:
        """Tell the driver that new chains will be found without its notifying; a hint, it may still
        do so."""
        if not self._event_idx:
            self._used_shorts[0] = USED_NO_NOTIFY

    def _look(self) -> bool:
        seen = self._available[1]
        ahead = (seen - self._next_available) & 0xFFFF
        if ahead > self._size:
            raise VirtqueueError(
                f"available index {seen} is {ahead} ahead of {self._next_available} in a ring of"
                f" {self._size}"
            )
        self._seen_available = seen
        return ahead != 0

    def _wants_interrupt(self, old: int | None, new: int) -> bool:
        """Whether the driver wants to hear of what was pushed from ``old`` on; after a fence."""
        if not self._event_idx:
            return not self._available[0] & AVAIL_NO_INTERRUPT
        if old is None:
            return True
        event = self._available[self._used_event]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def _fence_stores(self) -> None:
        # Taking a lock is an atomic read-modify-write, which on x86 orders earlier stores before
        # later loads.
        self._fence.acquire()
        self._fence.release()
