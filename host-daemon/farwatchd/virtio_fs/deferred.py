# SPDX-License-Identifier: Apache-2.0
"""Requests whose reply comes later, by ticket: keeps their chains until then."""

from __future__ import annotations

import logging
from typing import NamedTuple

from farwatchd.iovec import scatter
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.interfaces import LateReplies
from farwatchd.virtqueue import Chain, VirtqueueError

log = logging.getLogger(__name__)


class _Held(NamedTuple):
    vring: Vring
    head: int
    chain: Chain


class Outstanding:
    """The chains whose replies are outstanding."""

    def __init__(self, source: LateReplies | None) -> None:
        self._source = source
        self._held: dict[int, _Held] = {}
        if source is not None:
            source.set_answer(self._answer)

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, ticket: int, vring: Vring, head: int, chain: Chain) -> None:
        """Keep a request that the handler gave a ticket for."""
        self._held[ticket] = _Held(vring, head, chain)

    def release(self, vring: Vring) -> None:
        """Have all answered that came by this ring: it stops, and what it holds would be lost."""
        if self._source is not None:
            for ticket in [ticket for ticket, held in self._held.items() if held.vring is vring]:
                self._source.abandon(ticket)

    def _answer(self, ticket: int, reply: bytes, length: int) -> None:
        held = self._held.pop(ticket, None)
        # Not the ring that the chain came from: there is another one since the memory has changed.
        if held is None or held.vring.ring is None:
            return
        try:
            scatter(held.chain.writable, 0, reply)
            held.vring.ring.push(held.head, length)
            held.vring.signal_if_wanted()
        except VirtqueueError as error:
            log.debug("queue %d: a late reply is not given: %s", held.vring.index, error)
