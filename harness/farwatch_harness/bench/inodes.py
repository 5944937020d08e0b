# SPDX-License-Identifier: Apache-2.0
"""The daemon's cost of an operation with more and more inodes looked up and watched; no guest.

The daemon's file system and watch table are called directly, in a process of their own, with
fanotify and file handles as by default. As a program: python -m farwatch_harness.bench.inodes
DIRECTORY COUNT prints a line of JSON.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.fsnotify import Event

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step

IN_DIRECTORY = 1000
SAMPLE = 500
ROUNDS = 7
LIMIT = 1_000_000_000
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class InodeCost:
    """The cost with `count` inodes looked up and watched.

    Times are microseconds of CPU time per operation; sizes are bytes per inode and per watch.

    getattr_hot: always of the same inode; all other operations are of random inodes.
    event: from the host's queue to the record for the guest.
    renew: FORGET of an inode, its next lookup, and its next watch.
    end: the removal of one inode and its watch, when all are removed.
    descriptors: the number of the process's open files.
    """

    count: int
    getattr_hot: float
    getattr: float
    lookup: float
    open: float
    set_mask: float
    event: float
    renew: float
    end: float
    bytes_known: float
    bytes_watched: float
    descriptors: int


def measure(counts: Sequence[int]) -> list[InodeCost]:
    """Measure each count in a process of its own.

    The files are in the directory for temporary files.
    """
    costs = []
    for count in counts:
        with (
            step(f"{count} inodes looked up and watched") as progress,
            tempfile.TemporaryDirectory(prefix="farwatch-bench-") as shared,
        ):
            progress.update("making files")
            make_files(Path(shared), count)
            progress.update("")
            command = [sys.executable, "-m", "farwatch_harness.bench.inodes", shared, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise HarnessError(
                    f"measuring {count} inodes failed: {done.stderr.strip().splitlines()[-1:]}"
                )
            costs.append(InodeCost(**json.loads(done.stdout)))
    return costs


def make_files(shared: Path, count: int) -> None:
    """Create `count` empty files, in directories of a thousand."""
    for start in range(0, count, IN_DIRECTORY):
        directory = shared / str(start // IN_DIRECTORY)
        directory.mkdir()
        for number in range(start, min(start + IN_DIRECTORY, count)):
            os.close(os.open(directory / str(number), os.O_CREAT | os.O_WRONLY, 0o600))


class WatchedShare:
    """A share whose files the guest has looked up and watches."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        store = InodeStore(InodeFileHandles.MANDATORY)
        self.fs = PassthroughFs(shared, ShareOptions(), store)
        self.backend = FanotifyBackend(self.fs.watch_target(ROOT).fd, store)
        self.queue = EventQueue(10 * SAMPLE)
        self.table = WatchTable(self.backend, self.queue, LIMIT, lambda _seconds, _callback: None)
        self.directories: list[int] = []
        self.nodeids: list[int] = []

    def know(self, count: int) -> None:
        """Look up the first `count` files."""
        for number in range(count):
            if number % IN_DIRECTORY == 0:
                self.directories.append(self.nodeid(ROOT, number // IN_DIRECTORY))
            self.nodeids.append(self.find(number))

    def find(self, number: int) -> int:
        """Look up a file; return its nodeid."""
        return self.nodeid(self.directories[number // IN_DIRECTORY], number)

    def nodeid(self, parent: int, number: int) -> int:
        """Look up an entry of a directory; return its nodeid."""
        entry = self.fs.lookup(parent, b"%d" % number)
        if entry is None:
            raise HarnessError(f"the benchmark's file {number} does not exist")
        return entry.nodeid

    def watch(self, nodeid: int, mask: Event) -> None:
        """Set the guest's mask of an inode."""
        watched = self.fs.watch_target(nodeid)
        self.table.set_mask(nodeid, watched.generation, watched.fd, watched.is_dir, mask)

    def open_and_close(self, number: int) -> None:
        """Open and release a file."""
        nodeid = self.nodeids[number]
        self.fs.release(nodeid, self.fs.open(nodeid, os.O_RDONLY, False).fh)

    def set_mask(self, number: int) -> None:
        """Change the mask of a file, and change it back."""
        self.watch(self.nodeids[number], Event.ATTRIB | Event.MODIFY)
        self.watch(self.nodeids[number], Event.ATTRIB)

    def renew(self, number: int) -> None:
        """Forget a file, then look it up and watch it again."""
        self.fs.forget(self.nodeids[number], LIMIT)
        self.table.forget(self.nodeids[number])
        self.nodeids[number] = self.find(number)
        self.watch(self.nodeids[number], Event.ATTRIB)

    def event_us(self, numbers: Sequence[int]) -> float:
        """Return the time per event, without the time to cause it, in microseconds."""
        for number in numbers:
            (self.shared / str(number // IN_DIRECTORY) / str(number)).chmod(0o600)
        began = time.process_time()
        self.table.process()
        taken = time.process_time() - began
        if len(self.queue) != len(numbers):
            raise HarnessError(f"{len(numbers)} events were caused, {len(self.queue)} reported")
        self.queue.clear()
        return 1e6 * taken / len(numbers)

    def end_us(self) -> float:
        """Remove everything; return the time per inode and watch, in microseconds."""
        began = time.process_time()
        self.fs.reset()
        self.table.reset()
        taken = time.process_time() - began
        if self.backend.count:
            raise HarnessError(f"{self.backend.count} host watches are left")
        return 1e6 * taken / len(self.nodeids)


def cost(shared: Path, count: int) -> InodeCost:
    """Measure in this process."""
    served = WatchedShare(shared)
    empty = resident()
    served.know(count)
    known = resident()
    for nodeid in served.nodeids:
        served.watch(nodeid, Event.ATTRIB)
    watched = resident()
    samples = list(samples_of(count))
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return InodeCost(
        count=count,
        getattr_hot=least_us(
            [[0] * SAMPLE] * ROUNDS, lambda number: served.fs.getattr(served.nodeids[number], None)
        ),
        getattr=least_us(samples, lambda number: served.fs.getattr(served.nodeids[number], None)),
        lookup=least_us(samples, served.find),
        open=least_us(samples, served.open_and_close),
        set_mask=least_us(samples, served.set_mask) / 2,
        event=min(map(served.event_us, samples)),
        renew=least_us(samples, served.renew),
        bytes_known=(known - empty) / count,
        bytes_watched=(watched - known) / count,
        descriptors=descriptors,
        end=served.end_us(),
    )


def samples_of(count: int) -> Iterator[list[int]]:
    """Yield random files for each round; the same ones in each run."""
    choice = random.Random(count)
    for _ in range(ROUNDS):
        yield choice.sample(range(count), min(SAMPLE, count))


def least_us(samples: Sequence[Sequence[int]], call: Callable[[int], object]) -> float:
    """Return the microseconds of CPU time per call, the least of the rounds."""
    least = float("inf")
    for sample in samples:
        began = time.process_time()
        for number in sample:
            call(number)
        least = min(least, (time.process_time() - began) / len(sample))
    return 1e6 * least


def resident() -> int:
    """Return this process's resident memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(cost(Path(sys.argv[1]), int(sys.argv[2])))))
