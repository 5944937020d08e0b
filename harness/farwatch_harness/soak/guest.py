# SPDX-License-Identifier: Apache-2.0
"""The programs of the stress test in the guest: watchers of streams, and a writer of one.

    steady DIR FIRST           watch a stream that the host writes, print each marker, end on input
    own DIR FIRST SECONDS KIND write a stream in a process of its own, and watch it
    passing SECONDS SEED DIR.. run watchers that come and go
    leaking DIR                open files until none can be opened, and go on so, until input
    data SECONDS SEED DIR      change files, and compare them with what was written

FIRST is the number of the stream's next file. Each program first prints "ready"; its last line is
JSON: {"tally": {...}, "notes": [...]} or {"error": "..."}.
"""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import select
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from farwatch_harness.oracle.native_inotify import In, NativeInotify
from farwatch_harness.oracle.script_runners import HostScriptRunners
from farwatch_harness.soak.stream import (
    ALL,
    LATE_OVERFLOW,
    MARKER,
    Counter,
    FileStage,
    StreamChecker,
    WatcherReport,
    burst,
    mask_of,
    next_file,
)
from farwatch_harness.util.errors import HarnessError

#: Seconds without an event after which a stream counts as lost.
LIMIT = 60.0
#: Seconds to wait for surplus events.
SURPLUS_LIMIT = 0.2
BURST = 50
#: A marker is created and deleted.
MARKER_EVENTS = 2
#: The masks of watchers that come and go.
CHOICES: Sequence[Sequence[FileStage]] = (
    ALL,
    (FileStage.CREATED,),
    (FileStage.LEFT, FileStage.CAME),
    (FileStage.CREATED, FileStage.DELETED),
)
#: Seconds that such a watcher stays at most, before and after it removes a watch.
STAY = 0.5
#: Files that are changed and compared; bytes of a file, of a write, and of a gap before it.
CHECKED_FILES, LARGEST_FILE, LARGEST_WRITE, LARGEST_GAP = 5, 300_000, 20_000, 5000
MOST_DIRECTORIES = 3
#: Each is opened again and again. Seconds between two tries once an open was refused.
LEAKED_FILES, LEAK_INTERVAL = 50, 0.05
#: More than the second daemon's descriptors.
LEAK_LIMIT = 4096


def steady(directory: Path, first: int, report: WatcherReport) -> None:
    """Watch a stream that another process writes, until there is input."""
    checker = StreamChecker(first)
    with NativeInotify() as native:
        native.add(directory, mask_of(ALL))
        print("ready", flush=True)
        while True:
            ready = select.select([native.fd, sys.stdin], [], [], LIMIT)[0]
            if not ready:
                raise HarnessError(f"no event in {directory} for {LIMIT:.0f} s")
            # The host ends this program after the last marker was seen: later events are surplus.
            events = native.read_ready(SURPLUS_LIMIT if sys.stdin in ready else 0)
            for event in events:
                if (marker := checker.see(event)) and event.mask & In.DELETE:
                    print(marker, flush=True)
            if sys.stdin in ready and not events:
                report.add(directory.name, checker)
                return


def own(directory: Path, first: int, seconds: float, kind: str, report: WatcherReport) -> None:
    """Write a stream of files of this kind for `seconds`, and watch it."""
    checker = StreamChecker(first)
    end = time.monotonic() + seconds
    with (
        NativeInotify() as native,
        contextlib.closing(HostScriptRunners(1)) as runners,
        contextlib.closing(Counter(directory)) as counter,
    ):
        native.add(directory, mask_of(ALL))
        print("ready", flush=True)
        while time.monotonic() < end:
            counter.set(first + BURST)
            runners.start([[(directory, burst(first, BURST, kind))]])
            first += BURST
            markers = 0
            while markers < MARKER_EVENTS:
                events = native.read_ready(LIMIT)
                if not events:
                    raise HarnessError(f"no event in {directory} for {LIMIT:.0f} s")
                markers += sum(checker.see(event) == f"{MARKER}{first}" for event in events)
                if checker.after_overflow:
                    # The markers may be among what is missing.
                    break
            runners.finish(1)
    report.add(directory.name, checker)


def passing(
    seconds: float, random: Random, directories: Sequence[Path], report: WatcherReport
) -> None:
    """Run watchers for `seconds`, each on some of the directories, for some of the events."""
    end = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < end:
        count = random.randint(1, min(MOST_DIRECTORIES, len(directories)))
        passer(random, random.sample(list(directories), count), report)


def passer(random: Random, directories: Sequence[Path], report: WatcherReport) -> None:
    """Run one watcher. It removes one of its watches half-way, and ends with events unread.

    Where events are missing it stays until an overflow reports that, or until that is overdue.
    """
    with NativeInotify() as native:
        checkers = {}
        for directory in directories:
            stages = random.choice(CHOICES)
            wd = native.add(directory, mask_of(stages))
            checkers[wd] = directory.name, StreamChecker(next_file(directory), stages)
        check_for(random.uniform(0, STAY), native, checkers)
        removed = random.choice(list(checkers))
        native.remove(removed)
        check_for(random.uniform(0, STAY), native, checkers, removed)
        check_for(LATE_OVERFLOW, native, checkers, removed, only_gaps=True)
    for name, checker in checkers.values():
        report.add(name, checker)


def check_for(
    seconds: float,
    native: NativeInotify,
    checkers: Mapping[int, tuple[str, StreamChecker]],
    removed: int | None = None,
    *,
    only_gaps: bool = False,
) -> None:
    """Check the events of watches for `seconds`.

    removed: a watch that was removed. only_gaps: end when no checker has a gap.
    """
    everyone = [checker for _name, checker in checkers.values()]
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if only_gaps and not any(checker.gaps for checker in everyone):
            return
        for event in native.read_ready(left):
            if event.mask & In.Q_OVERFLOW:
                for checker in everyone:
                    checker.see(event)
            elif not (event.mask & In.IGNORED and event.wd == removed):
                _name, checker = checkers.get(event.wd) or next(iter(checkers.values()))
                checker.see(event)


def leaking(directory: Path) -> None:
    """Open files without closing them until there is input. HarnessError: all could be opened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, LEAK_LIMIT), hard))
    paths = [directory / f"leak-{number}" for number in range(LEAKED_FILES)]
    for path in paths:
        path.touch()
    print("ready", flush=True)
    opened = refused = 0
    pause = 0.0
    while not select.select([sys.stdin], [], [], pause)[0]:
        try:
            os.open(paths[opened % LEAKED_FILES], os.O_RDONLY)
            opened += 1
        except OSError as error:
            if error.errno not in (errno.ENFILE, errno.EMFILE):
                raise
            # EMFILE is this process's own limit: the daemon has refused nothing.
            refused += error.errno == errno.ENFILE
            pause = LEAK_INTERVAL
    if not refused:
        raise HarnessError(f"none of {opened} opens was refused")


class CheckedFile:
    """A file that is changed, and what it must contain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self.data = b""

    def write(self, random: Random) -> None:
        """Write somewhere, at most a gap behind the end."""
        at = random.randint(0, len(self.data) + LARGEST_GAP)
        new = random.randbytes(random.randint(1, LARGEST_WRITE))
        os.pwrite(self.fd, new, at)
        self.data = self.data[:at].ljust(at, b"\0") + new + self.data[at + len(new) :]

    def append(self, random: Random) -> None:
        """Append by another open file."""
        new = random.randbytes(random.randint(1, LARGEST_WRITE))
        with self.path.open("ab") as file:
            file.write(new)
        self.data += new

    def cut(self, random: Random) -> None:
        """Truncate."""
        size = random.randint(0, len(self.data))
        os.ftruncate(self.fd, size)
        self.data = self.data[:size]

    def rename(self, random: Random) -> None:
        """Give it another name."""
        self.path = self.path.rename(self.path.with_name(f"name-{random.getrandbits(64):x}"))

    def check(self, random: Random) -> None:
        """Compare it by its open file, and by its name. HarnessError: it differs."""
        size = len(self.data) + 1
        for found in (os.pread(self.fd, size, 0), self.path.read_bytes()):
            if found != self.data:
                raise HarnessError(
                    f"{self.path} has {len(found)} bytes that are not the {len(self.data)} written"
                )


def data(seconds: float, random: Random, directory: Path) -> None:
    """Change files for `seconds`, and compare them with what was written."""
    place = directory / f"data-{random.getrandbits(64):x}"
    place.mkdir()
    files = [CheckedFile(place / f"file-{number}") for number in range(CHECKED_FILES)]
    end = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < end:
        file = random.choice(files)
        random.choice([file.write, file.append, file.cut, file.rename, file.check])(random)
        if len(file.data) > LARGEST_FILE:
            file.cut(random)
    for file in files:
        file.check(random)
        os.close(file.fd)
        file.path.unlink()
    place.rmdir()


def main(arguments: Sequence[str]) -> None:
    """Run the program that the arguments name."""
    program, *words = arguments
    report = WatcherReport()
    try:
        if program == "steady":
            steady(Path(words[0]), int(words[1]), report)
        elif program == "own":
            own(Path(words[0]), int(words[1]), float(words[2]), words[3], report)
        elif program == "leaking":
            leaking(Path(words[0]))
        elif program == "data":
            data(float(words[0]), Random(words[1]), Path(words[2]))
        else:
            passing(float(words[0]), Random(words[1]), [Path(word) for word in words[2:]], report)
        print(json.dumps(dataclasses.asdict(report)), flush=True)
    except (HarnessError, OSError) as error:
        print(json.dumps({"error": f"{program}: {error}"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
