# SPDX-License-Identifier: Apache-2.0
"""Log the path of each event from the host to the guest, and why one is left out: --trace-events.

It answers "why did my watcher not fire?". One line for each step: ``watch`` is a mask that the
guest has set, ``host`` an event that the host has reported, ``queue`` a record for the guest,
``guest`` records that the guest has taken.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from farwatchd.log_limit import UNLIMITED
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

#: Lines in each second; a host that changes many files must not fill its disk.
LINES_PER_SECOND = 200


class EventTrace:
    """Logs steps of events, at most LINES_PER_SECOND, and how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds."""
        self._clock = clock
        self._second = clock()
        self._lines = 0
        self._left_out = 0

    def step(self, where: str, what: str, path: str = "", outcome: str = "") -> None:
        """Log one step.

        ``where`` is one of watch, host, queue, guest; ``outcome`` what becomes of it.
        """
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._lines = now, 0
            if self._left_out:
                left_out, self._left_out = self._left_out, 0
                self._write(f"trace: {left_out} lines were left out")
        if self._lines >= LINES_PER_SECOND:
            self._left_out += 1
            return
        self._lines += 1
        text = f"trace: {where}: {what}"
        if path:
            text += f" {path}"
        self._write(f"{text}: {outcome}" if outcome else text)

    def _write(self, text: str) -> None:
        # The limit of repetitions would leave out all but twenty lines a minute.
        _log.info("%s", text, extra=UNLIMITED)


def bits(mask: int) -> str:
    """Return the names of the event bits of a mask."""
    names = [str(event.name) for event in Event if int(event) & mask]
    return "|".join(names) or "nothing"


def printable(name: bytes) -> str:
    """Return a file name as it can be in one line of a log."""
    return repr(os.fsdecode(name))
