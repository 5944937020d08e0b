# SPDX-License-Identifier: Apache-2.0
"""Joins MOVED_FROM and MOVED_TO of one rename by inotify's cookie. Keeps the order of events."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from farwatchd.linux.inotify import InotifyBit
from farwatchd.watch.event_stream import MarkEvent

_MOVED_FROM, _MOVED_TO = int(InotifyBit.MOVED_FROM), int(InotifyBit.MOVED_TO)
_DIRENT = int(InotifyBit.CREATE | InotifyBit.DELETE) | _MOVED_FROM | _MOVED_TO


@dataclass(slots=True)
class _Queued:
    """An event in the order of the stream. ``deadline`` is in seconds of the clock of ``feed``."""

    event: MarkEvent
    cookie: int
    deadline: float
    matched: bool = True


class RenameJoiner:
    """Queues a MOVED_FROM, and all later events, until its MOVED_TO has come or cannot come.

    A MOVED_TO cannot come any more after another entry event of the same directory, because the
    kernel holds the directory's lock across both events. A MOVED_FROM is also left unpaired after
    ``patience`` seconds, or when more than ``limit`` events are queued.
    """

    def __init__(self, patience: float = 0.010, limit: int = 1024) -> None:
        self._patience = patience
        self._limit = limit
        self._ready: list[MarkEvent] = []
        self._queued: deque[_Queued] = deque()
        self._unmatched: dict[int, _Queued] = {}

    @property
    def deadline(self) -> float | None:
        """When the oldest queued MOVED_FROM stays unpaired, in seconds of the clock of ``feed``.

        None: no MOVED_FROM is queued.
        """
        return min((item.deadline for item in self._unmatched.values()), default=None)

    def feed(self, event: MarkEvent, cookie: int, now: float) -> None:
        """Add the next event of the stream.

        ``cookie`` is 0 for an event that is not part of a rename, ``now`` is in seconds.
        """
        mask = event.mask
        if not self._unmatched and not mask & _MOVED_FROM:
            self._ready.append(event)
            return
        if mask & _MOVED_TO and cookie in self._unmatched:
            item = self._unmatched.pop(cookie)
            item.event = item.event._replace(
                mask=item.event.mask | _MOVED_TO,
                new_mark_id=event.mark_id,
                new_name=event.name,
            )
            item.matched = True
            self._flush()
            return
        if mask & _DIRENT and self._unmatched:
            for other in [
                cookie
                for cookie, item in self._unmatched.items()
                if item.event.mark_id == event.mark_id
            ]:
                self._leave_unpaired(other)
        item = _Queued(event, cookie, now + self._patience)
        if mask & _MOVED_FROM and cookie:
            item.matched = False
            self._unmatched[cookie] = item
        self._queued.append(item)
        self._flush()
        if len(self._queued) > self._limit:
            self._leave_unpaired(self._queued[0].cookie)

    def take(self, now: float) -> list[MarkEvent]:
        """Remove and return the events before the oldest queued MOVED_FROM.

        ``now`` is in seconds.
        """
        for cookie in [c for c, item in self._unmatched.items() if item.deadline <= now]:
            self._leave_unpaired(cookie)
        ready, self._ready = self._ready, []
        return ready

    def clear(self) -> None:
        """Drop all events."""
        self._ready.clear()
        self._queued.clear()
        self._unmatched.clear()

    def _leave_unpaired(self, cookie: int) -> None:
        self._unmatched.pop(cookie).matched = True
        self._flush()

    def _flush(self) -> None:
        while self._queued and self._queued[0].matched:
            self._ready.append(self._queued.popleft().event)
