# SPDX-License-Identifier: Apache-2.0
"""The device's side of a split virtqueue (Virtio 1.2, 2.7).

These are the available ring, the used ring, and notification.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from farwatchd.virtqueue.chains import Chain, ChainReader
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory

if TYPE_CHECKING:
    from farwatchd.virtqueue.native_ring import NativeRing

AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

MAX_RING_SIZE = 1 << 15

_put_used = struct.Struct("<II").pack_into


#: Machines that keep the order of loads, and that of stores. The ring's code is plain loads and
#: stores of Python; elsewhere a driver could see an index before the element that it announces.
ORDERED_MACHINES = ("x86_64", "i386", "i486", "i586", "i686")


def unsupported_machine(machine: str, byteorder: str = sys.byteorder) -> str | None:
    """Return why virtqueues cannot be served on ``machine`` (``os.uname().machine``), or None."""
    if byteorder != "little":
        return f"virtqueues are little-endian, and {machine} is not; run farwatchd on x86-64"
    if machine not in ORDERED_MACHINES:
        return (
            f"{machine} may reorder memory accesses, and farwatchd has no barriers for that; run"
            " farwatchd on x86-64, or use virtiofsd"
        )
    return None


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Where the parts of a ring are, as addresses of the front-end."""

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
        """Find a ring by the front-end's addresses.

        ``VirtqueueError`` when size, alignment or address is wrong.
        """
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
            memory.user_view(at.used, used, writable=True),
        )


class SplitRing:
    """Takes chains from the available ring and adds them to the used ring.

    Chains may be completed in any order, but each exactly once::

        ring.disable_notification()
        while (popped := ring.pop()) is not None:
            head, chain = popped
            ring.add_used(head, serve(chain))
        more, interrupt = ring.go_idle()

    Every method may raise ``VirtqueueError``; after that the ring must not be used.
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
        """Serve ``ring``, which lies in ``memory``.

        ``base``: free-running index of the first chain to pop. ``event_idx``, ``indirect``: whether
        the feature was negotiated. ``used``: free-running index of the next used element, where
        chains that were popped before are still to be completed.
        """
        self._size = ring.size
        self._mask = ring.size - 1
        self._chain: Callable[[int], Chain] = ChainReader(
            memory, ring.size, ring.descriptors, indirect
        ).chain
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
        self._notified: int | None = None
        if used is not None:
            self._next_used = used
            return
        in_flight = (self._next_available - self._next_used) & 0xFFFF
        if 0 < in_flight <= ring.size:
            # A former back-end popped these chains and ended without completing them: pop them
            # again.
            self._next_available = self._seen_available = self._next_used

    @property
    def base(self) -> int:
        """Free-running index of the next chain to pop: where a stopped ring goes on."""
        return self._next_available

    @property
    def used(self) -> int:
        """Free-running index of the next chain to add to the used ring."""
        return self._next_used

    def go_on_after(self, in_flight: int) -> None:
        """Pop next what comes after the used chains and ``in_flight`` others.

        Those were popped by a former back-end, which has not completed them.
        """
        if in_flight > self._size:
            raise VirtqueueError(f"{in_flight} chains in flight in a ring of {self._size}")
        self._next_available = self._seen_available = (self._next_used + in_flight) & 0xFFFF

    def end(self) -> None:
        """Take note that nothing of this ring is used from now on."""

    def has_more(self) -> bool:
        """Return whether the available ring has a chain that was not popped.

        It is cheap, and checks nothing.
        """
        return self._available[1] != self._next_available

    def pop(self) -> tuple[int, Chain] | None:
        """Take the next available chain.

        Return its head and the checked chain, or ``None`` when there is none.
        """
        index = self._next_available
        if index == self._seen_available and not self._read_available_index():
            return None
        head = self._available[2 + (index & self._mask)]
        chain = self._chain(head)
        self._next_available = (index + 1) & 0xFFFF
        return head, chain

    def peek(self) -> Chain | None:
        """Return the chain that ``pop`` takes next, checked; ``None`` when there is none."""
        if not self._read_available_index():
            return None
        return self._chain(self._available[2 + (self._next_available & self._mask)])

    def chain(self, head: int) -> Chain:
        """Return the checked chain of a popped ``head`` again, as the driver has it now."""
        return self._chain(head)

    def go_to_previous_position(self) -> None:
        """Put back the chain that was popped last; it must not have been added to the used ring."""
        self._next_available = (self._next_available - 1) & 0xFFFF

    def add_used(self, head: int, written: int) -> None:
        """Complete a popped chain of which ``written`` bytes were written.

        The driver can see it when this returns.
        """
        index = self._next_used
        _put_used(self._used, 4 + 8 * (index & self._mask), head, written)
        self._next_used = index = (index + 1) & 0xFFFF
        self._used_shorts[1] = index

    def needs_notification(self) -> bool:
        """Return whether the driver wants an interrupt for what was added since the last call.

        This method has a side effect: once it returns true the interrupt must be sent.
        """
        new = self._next_used
        old, self._notified = self._notified, new
        if old == new:
            return False
        self._fence_stores()
        return self._wants_interrupt(old, new)

    def enable_notification(self) -> bool:
        """Ask the driver to kick for new chains.

        Return whether some are available already, since no kick may come for these.
        """
        if self._event_idx:
            self._used_shorts[self._avail_event] = self._next_available
        else:
            self._used_shorts[0] = 0
        self._fence_stores()
        return self._read_available_index()

    def go_idle(self) -> tuple[bool, bool]:
        """Do ``enable_notification`` and ``needs_notification`` with one fence.

        Return both results.
        """
        if self._event_idx:
            self._used_shorts[self._avail_event] = self._next_available
        else:
            self._used_shorts[0] = 0
        new = self._next_used
        old, self._notified = self._notified, new
        self._fence_stores()
        more = self.has_more() and self._read_available_index()
        return more, old != new and self._wants_interrupt(old, new)

    def disable_notification(self) -> None:
        """Ask the driver not to kick; a hint, it may still do so."""
        if not self._event_idx:
            self._used_shorts[0] = USED_NO_NOTIFY

    def _read_available_index(self) -> bool:
        seen = self._available[1]
        ahead = (seen - self._next_available) & 0xFFFF
        if ahead > self._size:
            raise VirtqueueError(
                f"available index {seen} is {ahead} ahead of {self._next_available} in a ring of"
                f" {self._size}"
            )
        in_flight = (self._next_available - self._next_used) & 0xFFFF
        if ahead and ahead + in_flight > self._size:
            # Each chain in flight takes memory here. A driver could offer one again and again.
            raise VirtqueueError(
                f"available index {seen} is {ahead} ahead, and {in_flight} of {self._size} chains"
                " are in flight"
            )
        self._seen_available = seen
        return ahead != 0

    def _wants_interrupt(self, old: int | None, new: int) -> bool:
        """Return whether the driver wants an interrupt for what was added since ``old``.

        Needs a fence before.
        """
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


#: A ring of the interpreter's code, or of the native part.
Ring: TypeAlias = "SplitRing | NativeRing"
