# SPDX-License-Identifier: Apache-2.0
"""The bounded queue of event records on their way to the guest. Pure: no I/O, no clock."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from farwatchd.watch.event_record import OVERFLOW, RECORD_MAX, EventRecord
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)
_OVERFLOW = OVERFLOW.encode()


class OutgoingQueue:
    """Keeps at most ``limit`` records, oldest first, each at most RECORD_MAX bytes.

    A record equal to the last one queued is merged into it, as inotify does. What does not fit is
    dropped and counted, and one overflow record stands where the loss happened; the last place is
    kept for it.
    """

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise ValueError(
                f"an event queue of {limit} is too short; it needs room for an event and an"
                " overflow"
            )
        self._limit = limit
        self._records: deque[bytes] = deque()
        self._wakeup: Callable[[], None] | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._records)

    def push(self, event: EventRecord) -> None:
        """Queue one event; whoever pushes calls ``announce`` once after a batch, so that batches
        travel together."""
        encoded = event.encode()
        records = self._records
        # Two renames are two moves with two cookies, however equal they look.
        if records and records[-1] == encoded and Event.RENAME not in event.mask:
            return
        if len(records) < self._limit - 1:
            records.append(encoded)
            return
        if not self.dropped:
            _log.warning(
                "event queue is full (%d records): events are lost, watchers are told", self._limit
            )
        self.push_overflow()

    def push_overflow(self, lost: int = 1) -> None:
        """Note that ``lost`` events are missing at this place: one overflow record for the whole
        run."""
        self.dropped += lost
        if not self._records or self._records[-1] != _OVERFLOW:
            self._records.append(_OVERFLOW)

    def announce(self) -> None:
        """Tell the transport when there is something to take."""
        if self._records and self._wakeup is not None:
            self._wakeup()

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called whenever a batch was queued; at once when something waits
        already."""
        self._wakeup = callback
        self.announce()

    def take(self, max_bytes: int) -> bytes | None:
        """Return the oldest records, as many whole ones as fit ``max_bytes``; None when there is
        nothing to send.

        A record that is longer than the buffer itself can never travel: an overflow takes its
        place.
        """
        records = self._records
        if not records or max_bytes < len(_OVERFLOW):
            return None
        if len(records[0]) > max_bytes:
            if not self.dropped:
                _log.warning(
                    "a notification payload of %d bytes is too small for an event of %d:"
                    " events are lost, watchers are "
                    "told; the longest event has %d bytes", max_bytes, len(records[0]), RECORD_MAX
                )  # fmt: skip
            records.popleft()
            self.dropped += 1
            if not records or records[0] != _OVERFLOW:
                records.appendleft(_OVERFLOW)
        taken = []
        room = max_bytes
        while records and len(records[0]) <= room:
            room -= len(records[0])
            taken.append(records.popleft())
        return b"".join(taken)

    def clear(self) -> None:
        """Drop everything: the guest that these events were for is gone."""
        self._records.clear()
        self.dropped = 0
