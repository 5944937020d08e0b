# SPDX-License-Identifier: Apache-2.0
"""Joins the halves of a rename in inotify's stream by their cookie, without changing the order of
other events."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from farwatchd.watch.backend import DIRENT, HostEvent
from farwatchd.wire.fsnotify import Event

_DIRENT = int(DIRENT)
_MOVED_FROM = int(Event.MOVED_FROM)
_MOVED_TO = int(Event.MOVED_TO)
_RENAME = {isdir | Event.MOVED_FROM: isdir | Event.RENAME for isdir in (Event(0), Event.ISDIR)}


@dataclass(slots=True)
class _Waiting:
    event: HostEvent
    cookie: int
    deadline: float
    settled: bool = True


class RenameJoiner:
    """Holds a MOVED_FROM, and all that comes after it, until its MOVED_TO comes or cannot come any
    more.

    It cannot when another entry event of the same directory shows that the rename is over (the
    kernel holds the directory's lock across both halves), when ``hold`` seconds have passed or when
    ``limit`` events wait.
    """

    def __init__(self, hold: float = 0.010, limit: int = 1024) -> None:
        self._hold = hold
        self._limit = limit
        self._ready: list[HostEvent] = []
        self._waiting: deque[_Waiting] = deque()
        self._held: dict[int, _Waiting] = {}

    @property
    def deadline(self) -> float | None:
        """When the oldest held half is to be given up, on the clock of ``feed``; None when nothing
        is held."""
        return min((item.deadline for item in self._held.values()), default=None)

    def feed(self, event: HostEvent, cookie: int, now: float) -> None:
        """Take the next event of the stream, with its cookie (0: none)."""
        mask = int(event.mask)
        if mask & _MOVED_TO and cookie in self._held:
            item = self._held.pop(cookie)
            source = item.event
            item.event = replace(
                source, mask=_RENAME[source.mask], half=False, newkey=event.key, newname=event.name
            )
            item.settled = True
            self._flush()
            return
        if mask & _DIRENT and self._held:
            for other in [c for c, item in self._held.items() if item.event.key == event.key]:
                self._give_up(other)
        if mask & (_MOVED_FROM | _MOVED_TO):
            event = replace(event, half=True)
        item = _Waiting(event, cookie, now + self._hold)
        if mask & _MOVED_FROM and cookie:
            item.settled = False
            self._held[cookie] = item
        self._waiting.append(item)
        self._flush()
        if len(self._waiting) > self._limit:
            self._give_up(self._waiting[0].cookie)

    def take(self, now: float) -> list[HostEvent]:
        """Return, in order, the events that nothing held stands before any more."""
        for cookie in [c for c, item in self._held.items() if item.deadline <= now]:
            self._give_up(cookie)
        ready, self._ready = self._ready, []
        return ready

    def clear(self) -> None:
        """Forget everything."""
        self._ready.clear()
        self._waiting.clear()
        self._held.clear()

    def _give_up(self, cookie: int) -> None:
        self._held.pop(cookie).settled = True
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._waiting[0].settled:
            self._ready.append(self._waiting.popleft().event)
