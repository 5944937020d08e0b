# SPDX-License-Identifier: Apache-2.0
"""The ring of the native part. Importing this fails where that was not built."""

from __future__ import annotations

from collections.abc import Callable

from farwatchd import _native
from farwatchd.virtqueue.chains import Chain, ChainReader
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory
from farwatchd.virtqueue.ring import Ring, RingMemory, SplitRing


class NativeRing(_native.Ring):
    """Does what ``SplitRing`` does, with barriers that hold on every machine.

    For a front-end that logs dirty pages there is ``LoggedRing`` instead.
    """

    __slots__ = ("_size", "chain")
    _size: int
    chain: Callable[[int], Chain]

    def __new__(
        cls,
        memory: GuestMemory,
        ring: RingMemory,
        base: int,
        event_idx: bool,
        indirect: bool,
        used: int | None = None,
    ) -> NativeRing:
        """Make a ring of the arguments of ``SplitRing``.

        ``ValueError``: the front-end has mapped it so that it is misaligned here.
        """
        reader = ChainReader(memory, ring.size, ring.descriptors, indirect)
        self = super().__new__(
            cls,
            (ring.descriptors, ring.available, ring.used, *[each.view for each in memory.regions]),
            tuple(each.guest_addr for each in memory.regions),
            ring.size,
            base & 0xFFFF,
            -1 if used is None else used & 0xFFFF,
            event_idx,
            indirect,
            reader.chain,
            VirtqueueError,
        )
        assert isinstance(self, NativeRing)
        self._size = ring.size
        self.chain = reader.chain
        if used is None and 0 < (self.base - self.used) & 0xFFFF <= ring.size:
            # A former back-end has not completed these chains: pop them again.
            self.base = self.seen = self.used
        return self

    def end(self) -> None:
        """See ``SplitRing``."""

    def go_on_after(self, in_flight: int) -> None:
        """See ``SplitRing``."""
        if in_flight > self._size:
            raise VirtqueueError(f"{in_flight} chains in flight in a ring of {self._size}")
        self.base = self.seen = (self.used + in_flight) & 0xFFFF

    def go_to_previous_position(self) -> None:
        """See ``SplitRing``."""
        self.base = (self.base - 1) & 0xFFFF

    def peek(self) -> Chain | None:
        """See ``SplitRing``."""
        # Without what the index has shown before.
        self.seen = self.base
        popped = self.pop()
        if popped is None:
            return None
        self.go_to_previous_position()
        return popped[1]


def native_ring(
    memory: GuestMemory,
    ring: RingMemory,
    base: int,
    event_idx: bool,
    indirect: bool,
    used: int | None = None,
) -> Ring:
    """Return a ring of the native part; a ``SplitRing`` where that is misaligned here."""
    try:
        return NativeRing(memory, ring, base, event_idx, indirect, used)
    except ValueError:
        return SplitRing(memory, ring, base, event_idx, indirect, used)
