# SPDX-License-Identifier: Apache-2.0
"""Looking for the next request for a moment before waiting to be woken for it.

Being woken takes longer than most requests: the processor has slept, and the driver has to kick.
Where requests follow each other closely the next one is found while it is looked for. Where they do
not, or where who looks takes the processor from the guest or from others, it does not come sooner:
so both are tried now and then, and measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: How often in a row it is done the better way, and then the other way, to compare.
_ROUND = 256
_TRIAL = 16
#: Looking must shorten the time until there is something to do to less than this part, since it
#: takes a processor.
_WORTH = 0.9


class _Way:
    """How long it took on the average until there was something to do."""

    __slots__ = ("_count", "_total")

    def __init__(self) -> None:
        self._count = self._total = 0

    def fade(self) -> None:
        """What has been counts for a quarter from now on."""
        self._count >>= 2
        self._total >>= 2

    def add(self, elapsed: int) -> None:
        self._count += 1
        self._total += elapsed

    @property
    def mean(self) -> float:
        return self._total / self._count if self._count else 0.0


class BusyPoll:
    """Says whether to look, and does it, for all queues of a device; for ``longest_ns`` at most, 0
    is never.

    ``elsewhere``: whether something else is to be done than what is looked for.
    """

    def __init__(
        self,
        longest_ns: int,
        elsewhere: Callable[[], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._longest = longest_ns
        self._elsewhere = elsewhere
        self._clock = clock
        self._looking, self._waiting = _Way(), _Way()
        self._ended = 0
        self._looks = False
        self._tries = False
        self._left = _TRIAL
        self._waits = False

    def woken(self, now: int) -> None:
        """Take note of there being something to do, at ``now`` of the clock, that nobody looked
        for."""
        if self._waits:
            self._waits = False
            # What comes much later says nothing about the guest's waiting for us.
            self._waiting.add(min(now - self._ended, self._longest))

    def ends(self) -> bool:
        """Take note of there being nothing more to do; says whether to look for more."""
        if not self._longest:
            return False
        self._ended = self._clock()
        self._left -= 1
        if not self._left:
            self._turn()
        self._waits = not self._looks
        return self._looks

    def finds(self, more: Callable[[], bool]) -> bool:
        """Look until there is ``more``; False when that took too long, or when there is something
        else to do."""
        clock, elsewhere = self._clock, self._elsewhere
        until = self._ended + self._longest
        while not (found := more()) and clock() < until and not elsewhere():
            pass
        # Much more than the longest if the processor was lost to somebody else meanwhile.
        self._looking.add(clock() - self._ended)
        return found

    def _turn(self) -> None:
        self._tries = not self._tries
        if self._tries:
            self._looks = not self._looks
            self._left = _TRIAL
        else:
            self._looks = self._looking.mean < _WORTH * self._waiting.mean
            self._looking.fade()
            self._waiting.fade()
            self._left = _ROUND
