# SPDX-License-Identifier: Apache-2.0
"""Pending WAIT requests, whose replies carry events to a guest without a notification queue.

See "without a queue" in docs/protocol.md.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from farwatchd.fuse.reply import EMPTY, Reply
from farwatchd.virtio_fs.headers import OUT_HEADER_SIZE
from farwatchd.virtio_fs.interfaces import DeferredReply, NotificationSource
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE

#: If more are pending the oldest gets an empty reply; Linux sends one.
MAX_PENDING = 8
#: The longest payload: that of a notification.
MAX_PAYLOAD = NOTIFY_BUF_SIZE - OUT_HEADER_SIZE


class _Pending(NamedTuple):
    reply: DeferredReply
    size: int


class WaitRequests:
    """The pending requests, oldest first."""

    def __init__(self, source: NotificationSource | None) -> None:
        """``source``: the queue of events; without it the requests stay pending until ``end``."""
        self._source = source
        self._pending: deque[_Pending] = deque()
        #: Whether requests may be pending; if not, each gets an empty reply immediately.
        self.accepting = False

    def __len__(self) -> int:
        return len(self._pending)

    def start(self) -> None:
        """Let requests be pending from now on."""
        self.accepting = True

    def end(self) -> None:
        """Complete all requests, and those to come, with empty replies."""
        self.accepting = False
        while self._pending:
            self._pending.popleft().reply.complete()

    def add(self, unique: int, size: int) -> Reply:
        """Reply to the request ``unique`` with at most ``size`` bytes of records.

        The reply is deferred until there are records.
        """
        if not self.accepting:
            return EMPTY
        if not self._pending and (payload := self._take(size)) is not None:
            return payload
        reply = DeferredReply(unique)
        self._pending.append(_Pending(reply, size))
        if len(self._pending) > MAX_PENDING:
            self._pending.popleft().reply.complete()
        return reply

    def events_available(self) -> None:
        """Complete as many requests as there are events for."""
        while self._pending and (payload := self._take(self._pending[0].size)) is not None:
            self._pending.popleft().reply.complete(0, payload)

    def _take(self, size: int) -> bytes | None:
        return self._source.take(min(size, MAX_PAYLOAD)) if self._source is not None else None
