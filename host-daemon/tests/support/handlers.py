# SPDX-License-Identifier: Apache-2.0
"""Request handlers for tests of the device."""

from __future__ import annotations

from farwatchd.virtio_fs.interfaces import DeferredReply, RequestHandler
from farwatchd.virtqueue import Chain

#: The opcode of a request that ``RawEchoHandler`` replies to as a correct handler would.
RAW_ECHO = 0


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

    def detach_memory(self) -> None:
        pass

    def reset(self) -> None:
        self.resets += 1


class RawEchoHandler(CountingHandler):
    """Writes the request, as it is, to wherever the reply may be.

    RAW_ECHO without arguments thus gets a reply without error.
    """

    def handle(self, chain: Chain) -> int | DeferredReply:
        assert chain == Chain.of(chain.readable, chain.writable)
        for view in chain.readable:
            bytes(view[:16])
        data = b"".join(chain.readable)[:4096]
        done = 0
        for view in chain.writable:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done
