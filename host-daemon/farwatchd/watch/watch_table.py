# SPDX-License-Identifier: Apache-2.0
"""The watch table: which nodeid has which watch; turns the back end's events into records for the
guest."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from farwatchd.watch.backend import Backend, HostEvent
from farwatchd.watch.event_queue import OutgoingQueue
from farwatchd.watch.event_record import NAME_MAX, EventRecord
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)
#: Reads before a mask changes: as much as a host queue of the usual limit (16384 events) holds,
#: with long names.
_MAX_READS = 80
_RENAME = int(Event.RENAME)
_ON_CHILD = int(Event.ON_CHILD)
_FROM = Event.MOVED_FROM | Event.RENAME
_TO = Event.MOVED_TO | Event.RENAME
_ALWAYS = int(Event.DELETE_SELF | Event.OVERFLOW)


@dataclass(frozen=True, slots=True)
class _Watch:
    nodeid: int
    generation: int
    key: int
    mask: Event

    def wants(self, event: Event) -> bool:
        """Whether the guest asked for this event; it is always told that a watch is over."""
        bits = int(event)
        if bits & _ON_CHILD and not int(self.mask) & _ON_CHILD:
            return False
        return bool(bits & (int(self.mask) & ~_ON_CHILD | _ALWAYS))


class WatchTable:
    """Implements the session's ``Watches``: at most ``max_watches`` watches, host watches that
    serve them included.

    ``call_later(seconds, callback)`` is the loop's. Put ``process`` on the loop for
    ``backend.fileno()``.
    """

    def __init__(
        self,
        backend: Backend,
        queue: OutgoingQueue,
        max_watches: int,
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._backend = backend
        self._queue = queue
        self._max_watches = max_watches
        self._call_later = call_later
        self._by_nodeid: dict[int, _Watch] = {}
        # One host object may have several nodeids: the same inode seen through two mounts inside
        # the share.
        self._by_key: dict[int, tuple[_Watch, ...]] = {}
        self._timer_runs = False

    def __len__(self) -> int:
        return len(self._by_nodeid)

    @property
    def supported(self) -> Event:
        """The bits that can be watched, for the INIT reply."""
        return self._backend.supported

    def tell_own(self, tell: bool) -> None:
        """Whether the guest is told what this process does on its behalf: not if it tells its users
        so itself."""
        self._backend.tell_own(tell)

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        """Watch ``mask`` of an inode, instead of what was watched before; 0 ends the watch. Live on
        return.

        Returns what is really watched. ``OSError``: ENOSPC no watch left here or on the host,
        ENOENT no name leads to the object any more, EACCES may not be watched. On an error the
        former mask still holds.
        """
        wanted = mask & self.supported
        if not wanted & ~Event.ON_CHILD:
            self.forget(nodeid)
            return Event(0)
        # What happened up to now belongs to the masks that held up to now.
        for _ in range(_MAX_READS):
            if not self._read():
                break
        if len(self._queue):
            self._call_later(0, self._queue.announce)
        former = self._by_nodeid.get(nodeid)
        if former is None:
            key = self._start(nodeid, fd, is_dir, wanted)
        else:
            key = former.key
            self._backend.modify(key, self._union(key, nodeid, wanted))
        watch = _Watch(nodeid, generation, key, wanted)
        self._by_nodeid[nodeid] = watch
        self._by_key[key] = (*self._others(key, nodeid), watch)
        return wanted

    def forget(self, nodeid: int) -> None:
        """End the watch of an inode, if it has one; events that are queued already still go out."""
        watch = self._by_nodeid.get(nodeid)
        if watch is None:
            return
        self._remove(watch)
        if watch.key not in self._by_key:
            self._backend.unwatch(watch.key)
            return
        try:
            self._backend.modify(watch.key, self._union(watch.key, nodeid, Event(0)))
        except OSError as error:
            _log.warning("cannot narrow a host watch: %s; it stays as it was", error.strerror)

    def reset(self) -> None:
        """End all watches and drop what waits for the guest: it has gone, or starts anew."""
        self._by_nodeid.clear()
        self._by_key.clear()
        self._backend.reset()
        self._queue.clear()

    def process(self) -> None:
        """Take a bounded number of events from the back end into the queue: the loop's callback."""
        self._read()
        self._queue.announce()

    def _start(self, nodeid: int, fd: int, is_dir: bool, wanted: Event) -> int:
        if self._full():
            raise self._no_watch_left()
        try:
            key = self._backend.watch(fd, wanted, is_dir)
        except OSError as error:
            # Watches cost descriptors; for who adds a watch, EMFILE would speak of something else.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise OSError(
                    errno.ENOSPC, "no descriptor left for a watch; raise --rlimit-nofile"
                ) from error
            raise
        if key not in self._by_key and self._backend.count > self._max_watches:
            self._backend.unwatch(key)
            raise self._no_watch_left()
        return key

    def _full(self) -> bool:
        return max(len(self._by_nodeid), self._backend.count) >= self._max_watches

    def _no_watch_left(self) -> OSError:
        _log.debug("no watch left of %d", self._max_watches)
        return OSError(
            errno.ENOSPC,
            f"all {self._max_watches} watches are in use; --max-watches raises the limit",
        )

    def _union(self, key: int, nodeid: int, wanted: Event) -> Event:
        for other in self._others(key, nodeid):
            wanted |= other.mask
        return wanted

    def _others(self, key: int, nodeid: int) -> tuple[_Watch, ...]:
        return tuple(watch for watch in self._by_key.get(key, ()) if watch.nodeid != nodeid)

    def _remove(self, watch: _Watch) -> None:
        del self._by_nodeid[watch.nodeid]
        others = self._others(watch.key, watch.nodeid)
        if others:
            self._by_key[watch.key] = others
        else:
            del self._by_key[watch.key]

    def _read(self) -> bool:
        """Read once; True when there were events."""
        events = self._backend.read()
        for event in events:
            if event.mask & Event.OVERFLOW:
                _log.warning(
                    "the host's event queue overflowed: events are lost, watchers are told"
                )
                self._queue.push_overflow()
                continue
            for record in self._records(event):
                if max(len(record.name), len(record.newname)) > NAME_MAX:
                    _log.warning(
                        "an event's name is longer than %d bytes; watchers are told of a loss",
                        NAME_MAX,
                    )
                    self._queue.push_overflow()
                else:
                    self._queue.push(record)
            if event.ended:
                for watch in self._by_key.get(event.key, ()):
                    self._remove(watch)
        self._arm_timer()
        return bool(events)

    def _arm_timer(self) -> None:
        delay = self._backend.delay()
        if delay is not None and not self._timer_runs:
            self._timer_runs = True
            self._call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_runs = False
        self.process()

    def _records(self, event: HostEvent) -> Iterator[EventRecord]:
        """The records of one event, one for each nodeid that wants it."""
        if int(event.mask) & _RENAME:
            yield from self._rename_records(event)
            return
        for watch in self._by_key.get(event.key, ()):
            if watch.wants(event.mask):
                yield EventRecord(
                    watch.nodeid, watch.generation, event.mask, event.name, event.half
                )

    def _rename_records(self, event: HostEvent) -> Iterator[EventRecord]:
        """Pair the watches of both sides; a side that is left over gets its half.

        One side that wants it is enough for a pair: the guest drops what it has cached of both
        names.
        """
        isdir = event.mask & Event.ISDIR
        sources = self._interested_first(event.key, _FROM)
        targets = self._interested_first(event.newkey, _TO)
        for source, target in itertools.zip_longest(sources, targets):
            if source is not None and target is not None:
                if source.wants(_FROM) or target.wants(_TO):
                    yield EventRecord(
                        source.nodeid, source.generation, event.mask, event.name,
                        newdir=target.nodeid, newdir_generation=target.generation,
                        newname=event.newname,
                    )  # fmt: skip
            elif source is not None and source.wants(_FROM):
                yield EventRecord(
                    source.nodeid,
                    source.generation,
                    Event.MOVED_FROM | isdir,
                    event.name,
                    half=True,
                )
            elif target is not None and target.wants(_TO):
                yield EventRecord(
                    target.nodeid,
                    target.generation,
                    Event.MOVED_TO | isdir,
                    event.newname,
                    half=True,
                )

    def _interested_first(self, key: int, side: Event) -> list[_Watch]:
        return sorted(self._by_key.get(key, ()), key=lambda watch: not watch.wants(side))
