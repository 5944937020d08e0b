# SPDX-License-Identifier: Apache-2.0
"""Counts of requests and how long they take, cheap enough to be always on."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping

from farwatchd.fuse.reply import Handler, Reply
from farwatchd.fuse.request import Request
from farwatchd.virtio_fs.interfaces import DeferredReply

#: One in N requests of an opcode is timed, N a power of two: reading the clock twice would take a
#: twentieth of a small request.
SAMPLED = 64
SAMPLED_MASK = SAMPLED - 1
#: Upper bounds in nanoseconds: 1 us to 1 s.
BOUNDS_NS = tuple(1000 * 4**power for power in range(11))


class Durations:
    """How often something took how long."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        #: How many were at most ``BOUNDS_NS[index]`` and more than the bound before; the last ones
        #: were longer than all.
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = 0

    @property
    def count(self) -> int:
        """How many were timed."""
        return sum(self.counts)

    def add(self, ns: int) -> None:
        """Count a duration in nanoseconds."""
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.total_ns += ns


class RequestMetrics:
    """Counts by opcode, of the opcodes that are served."""

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        """Make metrics of ``handlers``, by opcode."""
        self._handlers = handlers
        #: Requests of opcodes that are not served.
        self.unknown = 0
        self.durations: dict[int, Durations] = {}

    @property
    def counts(self) -> dict[int, int]:
        """The numbers of requests."""
        return {opcode: handler.requests for opcode, handler in self._handlers.items()}

    @property
    def errors(self) -> dict[int, int]:
        """The numbers of requests whose reply was an errno."""
        return {opcode: handler.errors for opcode, handler in self._handlers.items()}

    def add(self, opcode: int, ns: int) -> None:
        """Count a request's duration in nanoseconds."""
        self.durations.setdefault(opcode, Durations()).add(ns)

    def timed(self, opcode: int, handle: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
        """Return a handler that does what ``handle`` does, and counts how long it takes.

        What is deferred is not counted: the thread pool times its tasks, and waiting for an event
        or a lock is no work.
        """

        def timed(request: Request) -> Reply:
            began = time.monotonic_ns()
            reply = handle(request)
            took = time.monotonic_ns() - began
            if not isinstance(reply, DeferredReply):
                self.add(opcode, took)
            return reply

        return timed
