# SPDX-License-Identifier: Apache-2.0
"""The watch table: which nodeid has which watch. It turns events of watches into event records."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.inode_store.store import ExportedInodes, HostInode
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import NAME_MAX, EventRecord
from farwatchd.watch.event_trace import EventTrace, bits
from farwatchd.watch.watch_backend import HostEvent, WatchBackend
from farwatchd.watch.watch_tree import shared
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import Descriptors, GuestWatchState, State, StateError

_log = logging.getLogger(__name__)
#: Reads before a mask changes: enough for a host queue of the usual limit (16384 events) with long
#: names. Each read of a longer queue has _EVENTS_PER_READ or more.
_MAX_READS = 80
_EVENTS_PER_READ = 200
_RENAME = int(Event.RENAME)
_ON_CHILD = int(Event.ON_CHILD)
_OVERFLOW = int(Event.OVERFLOW)
_ISDIR = int(Event.ISDIR)
_MOVED_FROM, _MOVED_TO = int(Event.MOVED_FROM), int(Event.MOVED_TO)
_FROM, _TO = _MOVED_FROM | _RENAME, _MOVED_TO | _RENAME
_ALWAYS = int(Event.DELETE_SELF | Event.WATCH_ENDED)


@dataclass(frozen=True, slots=True)
class _GuestWatch:
    """A watch of the guest: ``mask`` of the inode ``nodeid``, served by the host's ``watch_id``."""

    nodeid: int
    generation: int
    watch_id: int
    mask: int

    def wants(self, event: int) -> bool:
        """Return whether the guest gets this event. It always gets the end of a watch."""
        mask = self.mask
        if event & _ON_CHILD and not mask & _ON_CHILD:
            return False
        return bool(event & (mask & ~_ON_CHILD | _ALWAYS))


class WatchTable:
    """Implements the session's ``GuestWatches`` with at most ``max_watches`` host watches.

    ``backend`` and ``queue`` stay the caller's. ``call_later(seconds, callback)`` is the event
    loop's, which must also call ``process`` when ``backend.fileno()`` is readable.
    """

    def __init__(
        self,
        backend: WatchBackend,
        queue: EventQueue,
        max_watches: int,
        call_later: Callable[[float, Callable[[], None]], object],
        trace: EventTrace | None = None,
    ) -> None:
        """``trace``: logs each mask that the guest sets, and what becomes of each event."""
        self._backend = backend
        self._queue = queue
        self._max_watches = max_watches
        self._max_reads = max(_MAX_READS, queue.limit // _EVENTS_PER_READ)
        self._call_later = call_later
        self._by_nodeid: dict[int, _GuestWatch] = {}
        # One host inode has several nodeids when it is reached through several mounts of the share.
        self._by_watch_id: dict[int, tuple[_GuestWatch, ...]] = {}
        self._trace = trace
        if trace is not None:
            backend.trace_to(trace)
        self._timer_runs = False
        self._overflows = 0

    def __len__(self) -> int:
        return len(self._by_nodeid)

    @property
    def supported(self) -> Event:
        """The bits that can be watched, for the INIT reply."""
        return self._backend.supported

    def report_own(self, report: bool) -> None:
        """Choose whether the guest gets the events of its own operations; see ``GuestWatches``."""
        self._backend.report_own(report)

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        """Replace the mask of an inode and return what is watched; see ``GuestWatches``."""
        wanted = mask & self.supported
        if not wanted & ~Event.ON_CHILD:
            self.forget(nodeid)
            return Event(0)
        # Reading events opens other inodes, for which the inode store may close the caller's.
        with _duplicate(fd) as own_fd:
            # Earlier events belong to the former masks.
            for _ in range(self._max_reads):
                if not self._read():
                    break
            if len(self._queue):
                self._call_later(0, self._queue.announce)
            former = self._by_nodeid.get(nodeid)
            if former is None:
                watch_id = self._start(own_fd, is_dir, wanted)
            else:
                watch_id = former.watch_id
                self._backend.modify(watch_id, self._union(watch_id, nodeid, wanted))
        watch = _GuestWatch(nodeid, generation, watch_id, shared(int(wanted)))
        self._by_nodeid[nodeid] = watch
        self._by_watch_id[watch_id] = (*self._others(watch_id, nodeid), watch)
        if self._trace is not None:
            path = f"{self._backend.path_of(watch_id)} as nodeid {nodeid}"
            self._trace.step("watch", bits(wanted), path)
        self._arm_timer()
        return wanted

    def forget(self, nodeid: int) -> None:
        """End the watch of an inode, if it has one. Queued records are still sent."""
        watch = self._by_nodeid.get(nodeid)
        if watch is None:
            return
        if self._trace is not None:
            self._trace.step("watch", "ends", f"nodeid {nodeid}")
        self._remove(watch)
        if watch.watch_id not in self._by_watch_id:
            self._backend.unwatch(watch.watch_id)
            return
        try:
            self._backend.modify(watch.watch_id, self._union(watch.watch_id, nodeid, Event(0)))
        except OSError as error:
            _log.warning("cannot reduce the mask of a host watch: %s", error.strerror)

    def reset(self) -> None:
        """End all watches and drop all queued records, at the end of a session."""
        self._by_nodeid.clear()
        self._by_watch_id.clear()
        self._backend.reset()
        self._queue.clear()

    def process(self) -> None:
        """Move a bounded number of events from the back end to the queue.

        The event loop calls this when the back end is readable.
        """
        self._read()
        self._queue.announce()

    def settle(self) -> None:
        """Move to the queue what has happened until now, with all own events.

        It takes a limited time. Later events of other processes stay unread.
        """
        for _ in range(self._max_reads):
            if self._read() or self._backend.unread():
                continue
            delay = self._backend.delay()
            if delay is None:
                break
            time.sleep(delay)
        self._take(self._backend.settle())

    def export_state(self, state: State, fds: Descriptors, host_inodes: ExportedInodes) -> int:
        """Add watches and queued records to a state; return the next watch id."""
        state.events += self._queue.export_state()
        state.watches += [
            GuestWatchState(each.nodeid, each.generation, each.watch_id, each.mask)
            for each in self._by_nodeid.values()
        ]
        return self._backend.export_state(state, fds, host_inodes)

    def restore_state(self, state: State, host_inodes: list[HostInode]) -> None:
        """Add the watches and records of a state; ``StateError``.

        Nothing is read from the host before ``resume``.
        """
        self._backend.restore_state(state, host_inodes)
        (session,) = state.session
        self._queue.restore_state(state.events, session.dropped_records)
        for record in state.watches:
            watch = _GuestWatch(
                record.nodeid, record.generation, record.watch_id, shared(record.mask)
            )
            if watch.nodeid in self._by_nodeid:
                raise StateError("an inode has two watches")
            self._by_nodeid[watch.nodeid] = watch
            self._by_watch_id[watch.watch_id] = (
                *self._others(watch.watch_id, watch.nodeid),
                watch,
            )

    def resume(self) -> None:
        """Go on after ``restore_state``."""
        self._queue.announce()
        self._arm_timer()

    def _start(self, fd: int, is_dir: bool, wanted: Event) -> int:
        if self._is_full():
            raise self._no_watch_left()
        with _lack_of_descriptors_is_enospc():
            watch_id = self._backend.watch(fd, wanted, is_dir)
        if watch_id not in self._by_watch_id and self._backend.count > self._max_watches:
            self._backend.unwatch(watch_id)
            raise self._no_watch_left()
        return watch_id

    def _is_full(self) -> bool:
        return max(len(self._by_nodeid), self._backend.count) >= self._max_watches

    def _no_watch_left(self) -> OSError:
        _log.debug("all %d watches are in use", self._max_watches)
        return OSError(
            errno.ENOSPC,
            f"all {self._max_watches} watches are in use; --max-watches raises the limit",
        )

    def _union(self, watch_id: int, nodeid: int, wanted: Event) -> Event:
        for other in self._others(watch_id, nodeid):
            wanted |= other.mask
        return wanted

    def _others(self, watch_id: int, nodeid: int) -> tuple[_GuestWatch, ...]:
        return tuple(
            watch for watch in self._by_watch_id.get(watch_id, ()) if watch.nodeid != nodeid
        )

    def _remove(self, watch: _GuestWatch) -> None:
        del self._by_nodeid[watch.nodeid]
        others = self._others(watch.watch_id, watch.nodeid)
        if others:
            self._by_watch_id[watch.watch_id] = others
        else:
            del self._by_watch_id[watch.watch_id]

    def _read(self) -> bool:
        """Read once from the back end; return whether it had events."""
        events = self._backend.read()
        self._take(events)
        self._arm_timer()
        return bool(events)

    def _take(self, events: list[HostEvent]) -> None:
        """Move events to the queue, as records."""
        for event in events:
            if event.mask & _OVERFLOW:
                if event.lost_by_host:
                    # A process that causes many events on the host must not fill the log.
                    _log.log(
                        logging.DEBUG if self._overflows else logging.WARNING,
                        "the host's event queue overflowed: events are lost, the guest gets an"
                        " overflow; this is logged once",
                    )
                    self._overflows += 1
                self._queue.push_overflow()
                continue
            for record in self._records(event):
                if max(len(record.name), len(record.newname)) > NAME_MAX:
                    _log.warning(
                        "an event's name is longer than %d bytes: the guest gets an overflow"
                        " instead",
                        NAME_MAX,
                    )
                    self._queue.push_overflow()
                else:
                    self._queue.push(record)
            if event.ended:
                for watch in self._by_watch_id.get(event.watch_id, ()):
                    self._remove(watch)

    def _arm_timer(self) -> None:
        delay = self._backend.delay()
        if delay is not None and not self._timer_runs:
            self._timer_runs = True
            self._call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_runs = False
        self.process()

    def _records(self, event: HostEvent) -> Iterator[EventRecord]:
        """Yield the records of one event, one for each nodeid that wants it."""
        if event.mask & _RENAME:
            yield from self._rename_records(event)
            return
        for watch in self._by_watch_id.get(event.watch_id, ()):
            if watch.wants(event.mask):
                yield EventRecord(
                    watch.nodeid, watch.generation, event.mask, event.name, event.unpaired,
                    unlinked=event.unlinked,
                )  # fmt: skip

    def _rename_records(self, event: HostEvent) -> Iterator[EventRecord]:
        """Yield a rename as pairs of nodeids of both sides.

        A nodeid without a partner gets its side unpaired. A pair is reported when one of its sides
        wants it, because the guest invalidates both names.
        """
        isdir = event.mask & _ISDIR
        sources = self._interested_first(event.watch_id, _FROM)
        targets = self._interested_first(event.new_watch_id, _TO)
        for source, target in itertools.zip_longest(sources, targets):
            if source is not None and target is not None:
                if source.wants(_FROM) or target.wants(_TO):
                    yield EventRecord(
                        source.nodeid, source.generation, event.mask, event.name,
                        newdir=target.nodeid, newdir_generation=target.generation,
                        newname=event.new_name,
                    )  # fmt: skip
            elif source is not None and source.wants(_FROM):
                yield EventRecord(
                    source.nodeid,
                    source.generation,
                    _MOVED_FROM | isdir,
                    event.name,
                    unpaired=True,
                )
            elif target is not None and target.wants(_TO):
                yield EventRecord(
                    target.nodeid,
                    target.generation,
                    _MOVED_TO | isdir,
                    event.new_name,
                    unpaired=True,
                )

    def _interested_first(self, watch_id: int, side: int) -> list[_GuestWatch]:
        return sorted(self._by_watch_id.get(watch_id, ()), key=lambda watch: not watch.wants(side))


@contextlib.contextmanager
def _lack_of_descriptors_is_enospc() -> Iterator[None]:
    """EMFILE of inotify_add_watch(2) would mean something else to the guest."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_DESCRIPTORS:
            raise OSError(
                errno.ENOSPC, "no descriptor left for a watch; raise --rlimit-nofile"
            ) from error
        raise


@contextlib.contextmanager
def _duplicate(fd: int) -> Iterator[int]:
    """Give a duplicate of a descriptor; ENOSPC when no descriptor is left."""
    with _lack_of_descriptors_is_enospc():
        own_fd = os.dup(fd)
    try:
        yield own_fd
    finally:
        os.close(own_fd)
