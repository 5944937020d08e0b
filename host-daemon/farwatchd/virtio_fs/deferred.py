# SPDX-License-Identifier: Apache-2.0
"""The chains in flight of requests whose replies are deferred."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from farwatchd.iovec import scatter
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.headers import OUT_HEADER_SIZE
from farwatchd.virtio_fs.interfaces import DeferredReply, InFlightChains
from farwatchd.virtqueue import Ring, VirtqueueError
from farwatchd.wire.state import PendingReplyState

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Held:
    vring: Vring
    head: int
    #: The reply's header and payload, once it is complete: it waits while the ring is stopped.
    completed: tuple[bytes, bytes] | None = None
    #: Data was read while the ring was stopped. It is not kept.
    again: bool = False


class PendingReplies:
    """Holds each chain's head until its reply is complete and its ring runs.

    A chain outlives a stopped ring: the front-end pauses a VM by stopping its rings, and the
    guest's requests go on when it starts them again at the same index. The chain's memory is not
    held, since the front-end may replace it: it is found again when the reply is sent.
    """

    def __init__(self) -> None:
        self._held: dict[DeferredReply, _Held] = {}
        #: Those of another process, until their rings run here.
        self._restored: list[PendingReplyState] = []
        #: How many threads work on.
        self.in_threads = 0
        #: Where the chains are recorded, unless it is None.
        self.record: InFlightChains | None = None
        #: Called with a request's number before its reply is complete.
        self.before_reply: Callable[[int], None] = _nothing

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, reply: DeferredReply, vring: Vring, head: int) -> None:
        """Keep the chain ``head``, taken from ``vring``, until ``reply`` is complete."""
        self._held[reply] = _Held(vring, head)
        if self.record is not None:
            self.record.add(vring.index, head, reply.unique)
        self.in_threads += reply.in_thread
        reply.hold(partial(self._complete, reply))

    def resume(self, vring: Vring) -> list[int]:
        """Send what was completed while ``vring`` was stopped.

        Return the heads of the chains whose requests are to be handled again.
        """
        again: list[int] = []
        for reply, held in list(self._held.items()):
            if held.vring is not vring:
                continue
            if held.again:
                del self._held[reply]
                again.append(held.head)
            elif held.completed is not None:
                del self._held[reply]
                self._send(held, *held.completed)
        if not self._restored:
            return again
        mine = [each for each in self._restored if each.queue == vring.index]
        self._restored = [each for each in self._restored if each.queue != vring.index]
        for each in mine:
            if each.reply:
                header, payload = each.reply[:OUT_HEADER_SIZE], each.reply[OUT_HEADER_SIZE:]
                self._send(_Held(vring, each.head), header, payload)
        return again + [each.head for each in mine if not each.reply]

    def export_state(self) -> list[PendingReplyState]:
        """Return the chains in flight, in the order of their requests. No thread works on one.

        A request without a complete reply has changed nothing yet: it can be handled again.
        """
        held = [
            PendingReplyState(
                each.vring.index,
                each.head,
                b"" if each.completed is None else b"".join(each.completed),
            )
            for each in self._held.values()
        ]
        return held + self._restored

    def restore_state(self, records: list[PendingReplyState]) -> None:
        """Keep the chains in flight until ``resume``."""
        self._restored += records

    def release(self) -> None:
        """Forget every chain: after a reset its memory may have another use."""
        for reply in self._held:
            reply.drop()
        self._held.clear()
        self._restored.clear()
        self.in_threads = 0

    def _complete(self, reply: DeferredReply, header: bytes, payload: bytes | memoryview) -> None:
        held = self._held[reply]
        self.in_threads -= reply.in_thread
        if held.vring.ring is None and isinstance(payload, memoryview):
            # Of any size, for each chain in flight, until the ring runs again.
            held.again = True
            return
        self.before_reply(reply.unique)
        if held.vring.ring is None:
            held.completed = (header, bytes(payload))
            return
        del self._held[reply]
        self._send(held, header, payload)

    def add_used(self, vring: Vring, ring: Ring, head: int, written: int) -> None:
        """Complete a chain that may be recorded as being in flight."""
        if self.record is None:
            ring.add_used(head, written)
            return
        self.record.completing(vring.index, head, ring.used + 1)
        ring.add_used(head, written)
        self.record.completed(vring.index, head)

    def _send(self, held: _Held, header: bytes, payload: bytes | memoryview) -> None:
        vring = held.vring
        # The vring's present ring: a change of the guest's memory replaces the one that the chain
        # was taken from.
        if vring.ring is None:
            return
        try:
            chain = vring.ring.chain(held.head)
            length = len(header) + len(payload)
            if length > chain.writable_size:
                raise VirtqueueError(
                    f"chain {held.head} has room for {chain.writable_size} bytes of {length} now"
                )
            scatter(chain.writable, 0, header)
            scatter(chain.writable, len(header), payload)
            self.add_used(vring, vring.ring, held.head, length)
            vring.interrupt_if_needed()
        except VirtqueueError as error:
            _log.debug("queue %d: a deferred reply is lost: %s", vring.index, error)


def _nothing(_: int) -> None:
    pass
