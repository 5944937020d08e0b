# SPDX-License-Identifier: Apache-2.0
"""A ring all of whose writes into guest memory are in the front-end's log of dirty pages.

The device can write into guest memory by two kinds of views: those of the used ring, which the ring
has, and those of the writable part of chains, which the ring has given out. All others are
read-only. So the ring logs each of its own writes, and the whole writable part of a chain when the
chain is completed, put back, or still in flight at the end of the ring.
"""

from __future__ import annotations

from collections.abc import Callable

from farwatchd.virtqueue.chains import Chain
from farwatchd.virtqueue.dirty_log import DirtyLog
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory
from farwatchd.virtqueue.ring import RingMemory, SplitRing


class LoggedRing(SplitRing):
    """Does as ``SplitRing``, and logs."""

    def __init__(
        self,
        memory: GuestMemory,
        ring: RingMemory,
        base: int,
        event_idx: bool,
        indirect: bool,
        used: int | None,
        log: DirtyLog,
        used_log_address: int | None,
    ) -> None:
        """Serve ``ring``, which lies in ``memory``; ``log`` covers that.

        ``used_log_address``: the guest address by which the front-end wants the used ring to be
        logged, beside its own; None if there is none. ``VirtqueueError``: it is not in the log.
        """
        if used_log_address is not None and not log.covers_range(used_log_address, len(ring.used)):
            # The log, or the ring's size, was another one when the address was set.
            raise VirtqueueError(f"the used ring at {used_log_address:#x} is not in the log")
        super().__init__(memory, ring, base, event_idx, indirect, used)
        self._memory = memory
        self._log = log
        own, self._used_size = memory.guest_addresses(ring.used)
        self._used_addresses = {own} if used_log_address is None else {own, used_log_address}
        #: Chains that were given out, by their heads; the one that was popped last.
        self._given: dict[int, list[Chain]] = {}
        self._last_head = 0
        self._chain = _recording(self._chain, self._given)

    def pop(self) -> tuple[int, Chain] | None:
        """Take the next available chain; see ``SplitRing``."""
        popped = super().pop()
        if popped is not None:
            self._last_head = popped[0]
        return popped

    def add_used(self, head: int, written: int) -> None:
        """Complete a popped chain; see ``SplitRing``."""
        self._log_chain(head)
        super().add_used(head, written)
        self._log_used()

    def go_to_previous_position(self) -> None:
        """Put back the chain that was popped last; see ``SplitRing``."""
        super().go_to_previous_position()
        self._log_chain(self._last_head)

    def enable_notification(self) -> bool:
        """Ask the driver to kick; see ``SplitRing``."""
        more = super().enable_notification()
        self._log_used()
        return more

    def go_idle(self) -> tuple[bool, bool]:
        """Ask the driver to kick; see ``SplitRing``."""
        result = super().go_idle()
        self._log_used()
        return result

    def disable_notification(self) -> None:
        """Ask the driver not to kick; see ``SplitRing``."""
        super().disable_notification()
        if not self._event_idx:
            self._log_used()

    def end(self) -> None:
        """Log the chains that are in flight: nothing of this ring is used from now on."""
        for head in list(self._given):
            self._log_chain(head)
        self._log.announce()

    def _log_chain(self, head: int) -> None:
        for chain in self._given.pop(head, ()):
            for view in chain.writable:
                self._log.mark(*self._memory.guest_addresses(view))

    def _log_used(self) -> None:
        for address in self._used_addresses:
            self._log.mark(address, self._used_size)
        self._log.announce()


def _recording(
    read: Callable[[int], Chain], given: dict[int, list[Chain]]
) -> Callable[[int], Chain]:
    """Return what does as ``read``, and adds each chain to ``given``.

    It does not refer to the ring, which would keep the guest's memory alive.
    """

    def give(head: int) -> Chain:
        chain = read(head)
        known = given.setdefault(head, [])
        if not any(each is chain for each in known):
            known.append(chain)
        return chain

    return give
