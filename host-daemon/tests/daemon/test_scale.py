# SPDX-License-Identifier: Apache-2.0
"""The cost of an operation does not depend on the number of known inodes and of watches.

Each is timed with few and with many in one run, by CPU time, the least of some rounds. A cost
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.fsnotify import Event
from tests.support.passthrough_share import open_descriptors

FEW = 500
MANY = 8000
#: Much less than MANY / FEW.
FACTOR = 4.0
ROUNDS = 5
BATCH = 100
MOST_OPEN = 64


@dataclass
class Served:
    """A share of which ``nodeids`` are known and watched."""

    path: Path
    fs: PassthroughFs
    backend: WatchBackend
    queue: EventQueue
    table: WatchTable
    nodeids: list[int]

    def know(self, count: int) -> None:
        """Look up and watch files until there are ``count``."""
        for number in range(len(self.nodeids), count):
            (self.path / f"{number}").touch()
            nodeid = self.find(number)
            self.nodeids.append(nodeid)
            self.watch(nodeid, Event.ATTRIB)

    def find(self, number: int) -> int:
        entry = self.fs.lookup(ROOT, b"%d" % number)
        assert entry is not None
        return entry.nodeid

    def watch(self, nodeid: int, mask: Event) -> None:
        watched = self.fs.watch_target(nodeid)
        assert (
            self.table.set_mask(nodeid, watched.generation, watched.fd, watched.is_dir, mask)
            == mask
        )

    def spread(self) -> list[int]:
        """Return some numbers of files, from the first to the last."""
        return list(range(0, len(self.nodeids), len(self.nodeids) // BATCH))[:BATCH]

    def getattr(self) -> None:
        for number in self.spread():
            self.fs.getattr(self.nodeids[number], None)

    def lookup(self) -> None:
        for number in self.spread():
            self.fs.lookup(ROOT, b"%d" % number)

    def forget_and_lookup(self) -> None:
        for number in self.spread():
            nodeid = self.nodeids[number]
            assert self.fs.forget(nodeid, 1 << 63)
            self.table.forget(nodeid)
            self.nodeids[number] = self.find(number)
            self.watch(self.nodeids[number], Event.ATTRIB)

    def set_mask(self) -> None:
        for number in self.spread():
            self.watch(self.nodeids[number], Event.ATTRIB | Event.MODIFY)
            self.watch(self.nodeids[number], Event.ATTRIB)

    def dispatch(self) -> None:
        for number in self.spread():
            os.chmod(f"{self.path}/{number}", 0o600)  # noqa: PTH101
        self.table.process()
        assert len(self.queue) == BATCH
        self.queue.clear()


@pytest.fixture(params=[InotifyBackend, FanotifyBackend])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    store = InodeStore(InodeFileHandles.PREFER, MOST_OPEN)
    fs = PassthroughFs(tmp_path, ShareOptions(), store)
    backend = request.param(fs.watch_target(ROOT).fd, store)
    queue = EventQueue(10 * BATCH)
    served = Served(
        tmp_path, fs, backend, queue, WatchTable(backend, queue, 10 * MANY, lambda _s, _c: None), []
    )
    yield served
    backend.close()
    fs.close()


def least_time(call: Callable[[], None]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


@pytest.mark.root
def test_no_operation_costs_more_with_many_inodes_and_watches(served: Served) -> None:
    operations = (
        served.getattr,
        served.lookup,
        served.set_mask,
        served.dispatch,
        served.forget_and_lookup,
    )
    before = open_descriptors()
    served.know(FEW)
    few = {call.__name__: least_time(call) for call in operations}
    served.know(MANY)
    many = {call.__name__: least_time(call) for call in operations}
    grown = {name: many[name] / few[name] for name in few if many[name] > FACTOR * few[name]}
    assert grown == {}
    assert open_descriptors() <= before + MOST_OPEN


def test_releasing_everything_takes_linear_time(served: Served) -> None:
    def seconds(count: int) -> float:
        served.know(count)
        began = time.process_time()
        served.fs.reset()
        served.table.reset()
        served.nodeids.clear()
        return (time.process_time() - began) / count

    few = min(seconds(FEW) for _ in range(ROUNDS))
    assert seconds(MANY) < FACTOR * few
    assert served.backend.count == 0
