# SPDX-License-Identifier: Apache-2.0
"""Adaptive busy polling: poll for the next request for a moment before sleeping until a kick.

Waking up costs more than most requests: the CPU leaves an idle state and the guest must send a
kick. Under back-to-back requests, polling finds the next request earlier. Polling does not help
where requests are far apart, or where it takes the CPU from the guest or from others. So both
strategies are tried now and then, and measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Requests served with the better strategy, and then with the other, to compare.
_ROUND = 256
_TRIAL = 16
#: Polling must shorten the mean wait to less than this part, since it uses a CPU.
_MIN_GAIN = 0.9


class _MeanWait:
    """The mean time until there was something to do, in nanoseconds."""

    __slots__ = ("_count", "_total")

    def __init__(self) -> None:
        self._count = self._total = 0

    def decay(self) -> None:
        """Weigh past samples by 1/4."""
        self._count >>= 2
        self._total >>= 2

    def add(self, elapsed_ns: int) -> None:
        self._count += 1
        self._total += elapsed_ns

    @property
    def mean(self) -> float:
        return self._total / self._count if self._count else 0.0


class BusyPoll:
    """Decides whether to poll, and polls, for all queues of a device."""

    def __init__(
        self,
        longest_ns: int,
        other_work: Callable[[], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``longest_ns``: limit of one poll; 0 disables polling.

        ``other_work()``: true if the event loop has other ready work; ends polling.
        """
        self._longest = longest_ns
        self._other_work = other_work
        self._clock = clock
        self._polling, self._sleeping = _MeanWait(), _MeanWait()
        self._idle_since = 0
        self._polls = False
        self._trial = False
        self._left = _TRIAL
        self._sleeps = False

    def record_wakeup(self, now_ns: int) -> None:
        """Record a wakeup at ``now_ns`` that busy polling did not catch."""
        if self._sleeps:
            self._sleeps = False
            # A much later wakeup says nothing about a guest that waits for the daemon.
            self._sleeping.add(min(now_ns - self._idle_since, self._longest))

    def should_poll(self) -> bool:
        """Record that the queue is idle; return whether to poll for more."""
        if not self._longest:
            return False
        self._idle_since = self._clock()
        self._left -= 1
        if not self._left:
            self._choose()
        self._sleeps = not self._polls
        return self._polls

    def poll(self, more: Callable[[], bool]) -> bool:
        """Poll until ``more()``; return false at the limit, or if there is other work."""
        clock, other_work = self._clock, self._other_work
        until = self._idle_since + self._longest
        while not (found := more()) and clock() < until and not other_work():
            pass
        # Much more than the limit if the host ran something else on this CPU.
        self._polling.add(clock() - self._idle_since)
        return found

    def _choose(self) -> None:
        self._trial = not self._trial
        if self._trial:
            self._polls = not self._polls
            self._left = _TRIAL
        else:
            self._polls = self._polling.mean < _MIN_GAIN * self._sleeping.mean
            self._polling.decay()
            self._sleeping.decay()
            self._left = _ROUND
