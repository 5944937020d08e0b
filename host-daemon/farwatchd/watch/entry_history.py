# SPDX-License-Identifier: Apache-2.0
"""Finds the entry events that fanotify's coalescing has hidden.

fanotify adds an event to an equal unread event of the same process, which may be any number of
events earlier. Of the renames a to b, b to a, a to b, two are reported, and a watcher that follows
them ends at a. The hidden event is always equal to an earlier one. So the events of each name are
recorded until the host's queue is empty; then the names of several events are looked up, and the
events that are missing at the end are repeated.
"""

from __future__ import annotations

from collections.abc import Callable

from farwatchd.linux.inotify import InotifyBit
from farwatchd.watch.event_stream import MarkEvent
from farwatchd.watch.watch_backend import Entry

_MOVED_FROM, _MOVED_TO = int(InotifyBit.MOVED_FROM), int(InotifyBit.MOVED_TO)
_REMOVES = int(InotifyBit.DELETE) | _MOVED_FROM
_ADDS = int(InotifyBit.CREATE) | _MOVED_TO
#: With more recorded events than this, names are looked up before the host's queue is empty.
_LIMIT = 16384


class EntryHistory:
    """The entry events since the host's queue was empty.

    ``look_up(mark_id, name)`` returns the identity of the inode of a name, None when the name does
    not exist; ``OSError`` when that is unknown.
    """

    def __init__(self, look_up: Callable[[int, bytes], bytes | None], limit: int = _LIMIT) -> None:
        self._look_up = look_up
        self._limit = limit
        self._count = 0
        # The inode of each name by the recorded events, and the names that had several events.
        self._inodes: dict[Entry, bytes | None] = {}
        self._suspects: dict[Entry, None] = {}
        # The last event that made a name of an inode, and the last that removed it; with its
        # position.
        self._added: dict[tuple[Entry, bytes], tuple[int, MarkEvent]] = {}
        self._removed: dict[tuple[Entry, bytes], tuple[int, MarkEvent]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def has_suspects(self) -> bool:
        """Whether a name had several events, so that another one may be hidden."""
        return bool(self._suspects)

    @property
    def is_full(self) -> bool:
        """Whether the recorded events must be checked although more are unread."""
        return self._count >= self._limit

    def record(self, event: MarkEvent, inode: bytes) -> None:
        """Record the next entry event; ``inode`` is the identity of the inode that it names."""
        if event.mask & _REMOVES:
            entry = event.mark_id, event.name
            self._touch(entry)
            if self._inodes[entry] == inode:
                self._inodes[entry] = None
            self._remember(self._removed, entry, event, inode)
        if event.mask & _ADDS:
            if event.is_rename:
                entry = event.new_mark_id, event.new_name
            else:
                entry = event.mark_id, event.name
            self._touch(entry)
            self._inodes[entry] = inode
            self._remember(self._added, entry, event, inode)
        self._count += 1

    def missing(self) -> list[MarkEvent]:
        """Look up the names that had several events, and return the events to repeat, in order."""
        found: dict[Entry, bytes | None] = {}
        for entry in self._suspects:
            try:
                found[entry] = self._look_up(*entry)
            except OSError:
                continue
        added: list[tuple[int, MarkEvent]] = []
        moved_away: set[Entry] = set()
        for entry, inode in found.items():
            if inode is None or inode == self._inodes[entry]:
                continue
            position, event = self._added.get((entry, inode), (-1, None))
            if event is None:
                continue
            if event.is_rename:
                source = event.mark_id, event.name
                if self._inodes[source] == inode and found.get(source, inode) != inode:
                    moved_away.add(source)
                else:
                    # By the reported events the inode is not at the source any more.
                    event = MarkEvent(entry[0], event.mask & ~_MOVED_FROM, entry[1], event.own)
            added.append((position, event))
        removed: list[tuple[int, MarkEvent]] = []
        for entry, inode in found.items():
            reported = self._inodes[entry]
            if inode is not None or reported is None or entry in moved_away:
                continue
            position, event = self._removed.get((entry, reported), (-1, None))
            if event is not None:
                event = MarkEvent(entry[0], event.mask & ~_MOVED_TO, entry[1], event.own)
                removed.append((position, event))
        return [event for _, event in (*sorted(added), *sorted(removed))]

    def clear(self) -> None:
        """Drop all recorded events."""
        self._count = 0
        for table in (self._inodes, self._suspects, self._added, self._removed):
            table.clear()

    def _touch(self, entry: Entry) -> None:
        if entry in self._inodes:
            self._suspects[entry] = None
        else:
            self._inodes[entry] = None

    def _remember(
        self,
        table: dict[tuple[Entry, bytes], tuple[int, MarkEvent]],
        entry: Entry,
        event: MarkEvent,
        inode: bytes,
    ) -> None:
        """Record the last event; one of this process does not replace another process's.

        Which of two equal events is the hidden one is unknown then, and a duplicate report is
        better than a lost one.
        """
        former = table.get((entry, inode))
        if former is None or former[1].own or not event.own:
            table[entry, inode] = self._count, event
