# SPDX-License-Identifier: Apache-2.0
"""The bounded queue of event records for the guest. It does no I/O and reads no clock."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from farwatchd.watch.event_record import OVERFLOW, RECORD_MAX, EventRecord
from farwatchd.watch.event_trace import EventTrace, bits, printable
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import EventRecordState, StateError

_log = logging.getLogger(__name__)
_OVERFLOW = OVERFLOW.encode()
_RENAME = int(Event.RENAME)


class EventQueue:
    """Keeps at most ``limit`` records in order, each of at most RECORD_MAX bytes.

    A record equal to the last one in the queue is left out, as inotify(7) does. When the queue is
    full, records are dropped and counted in ``dropped``, and one OVERFLOW record takes their place;
    the last position is reserved for it.
    """

    def __init__(self, limit: int, trace: EventTrace | None = None) -> None:
        """``trace``: logs what becomes of each record."""
        if limit < 2:
            raise ValueError(
                f"an event queue of {limit} is too short; it needs room for an event and an"
                " overflow"
            )
        self.limit = limit
        self._trace = trace
        self._records: deque[bytes] = deque()
        self._wakeup: Callable[[], None] | None = None
        self.dropped = 0
        #: Records that were queued, dropped, and overflows that were reported, since the start.
        self.queued_total = 0
        self.dropped_total = 0
        self.overflows_total = 0

    def __len__(self) -> int:
        return len(self._records)

    def push(self, event: EventRecord) -> None:
        """Add one record.

        Call ``announce`` once after a batch, so that its records are sent together.
        """
        encoded = event.encode()
        records = self._records
        # Two equal renames are two moves with two cookies.
        if records and records[-1] == encoded and not event.mask & _RENAME:
            self._step(event, "left out: equal to the one before")
            return
        if len(records) < self.limit - 1:
            records.append(encoded)
            self.queued_total += 1
            self._step(event, "")
            return
        self._step(event, "lost: the queue is full; the guest gets an overflow")
        if not self.dropped:
            _log.warning(
                "the event queue is full (%d records): events are lost, the guest gets an"
                " overflow; --event-queue raises the limit", self.limit
            )  # fmt: skip
        self.push_overflow()

    def _step(self, event: EventRecord, outcome: str) -> None:
        if self._trace is None:
            return
        name = " to ".join(printable(part) for part in (event.name, event.newname) if part)
        self._trace.step(
            "queue", bits(event.mask), f"nodeid {event.nodeid} {name}".rstrip(), outcome
        )

    def push_overflow(self, lost: int = 1) -> None:
        """Record that ``lost`` events are missing at this position.

        Successive calls share one OVERFLOW record.
        """
        self.dropped += lost
        self.dropped_total += lost
        if not self._records or self._records[-1] != _OVERFLOW:
            self._records.append(_OVERFLOW)
            self.overflows_total += 1

    def announce(self) -> None:
        """Call the wakeup callback when records are queued."""
        if self._records and self._wakeup is not None:
            self._wakeup()

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        """Set the callback of ``announce``, and call it immediately when records are queued."""
        self._wakeup = callback
        self.announce()

    def take(self, max_bytes: int) -> bytes | None:
        """Remove and return the oldest records: as many whole ones as fit ``max_bytes``.

        Returns None when nothing can be sent. A record that is longer than ``max_bytes`` is
        replaced by an OVERFLOW record, because no buffer would ever hold it.
        """
        records = self._records
        if not records or max_bytes < len(_OVERFLOW):
            return None
        if len(records[0]) > max_bytes:
            if not self.dropped:
                _log.warning(
                    "a notification payload of %d bytes is too small for an event of %d bytes:"
                    " events are lost, the guest gets an overflow; the longest event has %d bytes",
                    max_bytes, len(records[0]), RECORD_MAX
                )  # fmt: skip
            records.popleft()
            self.dropped += 1
            self.dropped_total += 1
            if not records or records[0] != _OVERFLOW:
                records.appendleft(_OVERFLOW)
                self.overflows_total += 1
        taken = []
        room = max_bytes
        while records and len(records[0]) <= room:
            room -= len(records[0])
            taken.append(records.popleft())
        if self._trace is not None and taken:
            self._trace.step("guest", f"{len(taken)} records are sent, {len(records)} are left")
        return b"".join(taken)

    def export_state(self) -> list[EventRecordState]:
        """Return the records, oldest first."""
        return [EventRecordState(record) for record in self._records]

    def restore_state(self, records: list[EventRecordState], dropped: int) -> None:
        """Add the records of a state to the empty queue; ``StateError``."""
        if any(not 0 < len(each.record) <= RECORD_MAX for each in records):
            raise StateError("an event record has a wrong length")
        # More than the limit, if that is smaller now: none is lost for it.
        self._records.extend(each.record for each in records)
        self.dropped = dropped

    def clear(self) -> None:
        """Drop all records: the session for which they were meant has ended."""
        if self._trace is not None and self._records:
            self._trace.step(
                "queue", f"{len(self._records)} records", "", "lost: the guest has left"
            )
        self._records.clear()
        self.dropped = 0
