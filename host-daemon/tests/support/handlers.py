# SPDX-License-Identifier: Apache-2.0
"""A request handler for tests of the device: answers nothing and counts."""

from __future__ import annotations

from farwatchd.virtio_fs.interfaces import DeferredReply, RequestHandler
from farwatchd.virtqueue import Chain


class CountingHandler(RequestHandler):
    """Takes every request without a reply. ``drained``: what ``drain`` returns."""

    def __init__(self) -> None:
        self.served = 0
        self.resets = 0
        self.drains: list[float] = []
        self.drained = True

    def handle(self, chain: Chain) -> int | DeferredReply:
        self.served += 1
        return 0

    def events_available(self) -> None:
        """Ignore events: no request waits for them."""

    def drain(self, timeout: float) -> bool:
        self.drains.append(timeout)
        return self.drained

    def reset(self) -> None:
        self.resets += 1
