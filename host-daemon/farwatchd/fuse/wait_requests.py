# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for events, where the guest has no notification queue (docs/protocol.md,
"without a queue")."""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from farwatchd.iovec import gather, scatter
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.headers import OUT_HEADER_SIZE
from farwatchd.virtio_fs.interfaces import NotificationSource, RequestHandler
from farwatchd.virtqueue import Chain, VirtqueueError
from farwatchd.wire.fuse import in_header, out_header
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE

log = logging.getLogger(__name__)

#: More than wait at once are answered with nothing; Linux sends one.
MAX_PARKED = 8


class _Parked(NamedTuple):
    vring: Vring
    head: int
    chain: Chain
    unique: int


class Parking:
    """Holds the chains of waiting requests and answers them, first come first served."""

    def __init__(self, handler: RequestHandler, source: NotificationSource | None) -> None:
        self._handler = handler
        self._source = source
        #: The requests that wait.
        self.parked: deque[_Parked] = deque()

    def park(self, vring: Vring, head: int, chain: Chain) -> None:
        """Keep a request that the handler calls PARKED."""
        unique = in_header.unpack_from(gather(chain.readable, 0, in_header.size)).unique
        self.parked.append(_Parked(vring, head, chain, unique))
        if len(self.parked) > MAX_PARKED:
            self._reply(self.parked.popleft(), b"")

    def answer(self) -> None:
        """Answer as many as there is something to tell, or all when they must not wait any more."""
        while self.parked:
            payload: bytes | None = b""
            if self._handler.parks:
                room = min(self.parked[0].chain.writable_size - OUT_HEADER_SIZE, NOTIFY_BUF_SIZE)
                payload = self._source.take(room) if self._source is not None else None
            if payload is None:
                return
            self._reply(self.parked.popleft(), payload)

    def release(self, vring: Vring) -> None:
        """Answer all that came by this ring with nothing: it stops, and what it holds would be
        lost."""
        leaving = [parked for parked in self.parked if parked.vring is vring]
        self.parked = deque(parked for parked in self.parked if parked.vring is not vring)
        for parked in leaving:
            self._reply(parked, b"")

    def _reply(self, parked: _Parked, payload: bytes) -> None:
        # Not the ring that the chain came from: there is another one since the memory has changed.
        ring = parked.vring.ring
        if ring is None:
            return
        reply = out_header.pack_values(OUT_HEADER_SIZE + len(payload), 0, parked.unique) + payload
        try:
            scatter(parked.chain.writable, 0, reply)
            ring.push(parked.head, len(reply))
            parked.vring.signal_if_wanted()
        except VirtqueueError as error:
            log.debug("queue %d: a waiting request is not answered: %s", parked.vring.index, error)
