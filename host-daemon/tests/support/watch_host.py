# SPDX-License-Identifier: Apache-2.0
"""A watch table on a real directory, for the tests.

It does what the session and the loop do in the daemon.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from pathlib import Path

from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.event_trace import EventTrace
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.fsnotify import Event
from tests.support.event_records import decode_all

#: All that inotify knows.
ALL = Event(0xFFF) | Event.ON_CHILD
MAX_WATCHES = 8


class Host:
    """A watch table on a share, with an inode store of its own."""

    def __init__(
        self,
        share: Path,
        max_watches: int = MAX_WATCHES,
        open_backend: Callable[[int], WatchBackend] = InotifyBackend,
        trace: EventTrace | None = None,
    ) -> None:
        self.share = share
        root_fd = os.open(share, os.O_PATH)
        self.backend = open_backend(root_fd)
        os.close(root_fd)
        self.queue = EventQueue(100_000, trace)
        self.timers: list[Callable[[], None]] = []
        self.table = WatchTable(self.backend, self.queue, max_watches, self._call_later, trace)

    def _call_later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def watch(self, nodeid: int, path: Path, mask: Event = ALL, generation: int = 0) -> Event:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self.table.set_mask(
                nodeid, generation, fd, stat.S_ISDIR(os.fstat(fd).st_mode), mask
            )
        finally:
            os.close(fd)

    def records(self) -> list[EventRecord]:
        """All records, once nothing is pending and nothing is held any more."""
        while True:
            self.table.process()
            delay = self.backend.delay()
            if not select.select([self.backend.fileno()], [], [], delay or 0)[0] and delay is None:
                break
        return self.queued()

    def queued(self) -> list[EventRecord]:
        records = []
        while (payload := self.queue.take(4080)) is not None:
            records += decode_all(payload)
        return records

    def host_watches(self) -> int:
        """How many watches the kernel counts for the back end's descriptor."""
        info = Path(f"/proc/self/fdinfo/{self.backend.fileno()}").read_text()
        return sum(line.startswith(("inotify wd:", "fanotify ino:")) for line in info.splitlines())

    def close(self) -> None:
        self.backend.close()


def by_handle(kind: Callable[[int, InodeStore], WatchBackend]) -> Callable[[int], WatchBackend]:
    """Return how to open a back end whose inodes are referenced by handle, with few descriptors."""
    return lambda root_fd: kind(root_fd, InodeStore(InodeFileHandles.PREFER, most_open=1))


BACKENDS: dict[str, Callable[[int], WatchBackend]] = {
    "inotify": InotifyBackend,
    "fanotify": FanotifyBackend,
    "inotify, handles": by_handle(InotifyBackend),
    "fanotify, handles": by_handle(FanotifyBackend),
}
