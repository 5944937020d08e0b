# SPDX-License-Identifier: Apache-2.0
"""Bounds the log: a guest that repeats a request must not fill the host's disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Messages of one place in the code that are logged in each interval.
BURST = 20
#: Seconds.
INTERVAL = 60.0
#: What ``extra`` is in messages that have a limit of their own.
UNLIMITED = {"unlimited": True}


@dataclass(slots=True)
class _Window:
    began: float
    count: int = 0
    dropped: int = 0


class RepetitionLimit(logging.Filter):
    """Limits the messages of one place in the code to ``BURST`` in each ``INTERVAL``.

    It logs how many were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, int], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a message; append to its text what is left out."""
        if record.levelno <= logging.DEBUG or hasattr(record, "unlimited"):
            return True
        now = self._clock()
        window = self._windows.setdefault((record.pathname, record.lineno), _Window(now))
        dropped = 0
        if now - window.began >= INTERVAL:
            dropped = window.dropped
            window.began, window.count, window.dropped = now, 0, 0
        if window.count >= BURST:
            window.dropped += 1
            return False
        window.count += 1
        if dropped:
            _append(record, f"({dropped} similar messages were left out)")
        if window.count == BURST:
            left = INTERVAL - (now - window.began)
            _append(record, f"(similar messages are left out for {left:.0f} s)")
        return True


def _append(record: logging.LogRecord, text: str) -> None:
    record.msg = f"{record.getMessage()} {text}"
    record.args = ()
