# SPDX-License-Identifier: Apache-2.0
"""Storms of events as people cause them, and a program that watches the whole tree meanwhile.

Each storm runs three times: watched by nobody, by native inotify on the host, and in a guest.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.event_readers import Place, started
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.testbed import Share

END = "end-of-the-storm"
#: Seconds until the watcher has everything.
LIMIT = 120.0
CHANGED, INSTALLED, BUILT = 10_000, 30_000, 2000
IN_DIRECTORY = 100
LINES_PER_SECOND, LOG_SECONDS, LOG_TICK = 10_000, 3.0, 0.01


@dataclass(frozen=True)
class StormCost:
    """One storm and one watcher.

    mode: a mode of events, "native", or "nobody".
    host_s: seconds of the work on the host.
    lag_s: seconds from the end of that work until the watcher had read all events.
    events, overflows: what the watcher has read.
    cpu_s: the daemon's CPU time.
    """

    storm: str
    mode: str
    host_s: float
    lag_s: float
    events: int
    overflows: int
    cpu_s: float


@dataclass(frozen=True)
class EventStorm:
    """A kind of work. prepare: makes what it needs in a directory; work: causes the events."""

    title: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], None]


def files(directory: Path, count: int, content: bytes) -> None:
    """Write `count` files, a hundred in each directory."""
    for number in range(count):
        if number % IN_DIRECTORY == 0:
            folder = directory / f"d{number // IN_DIRECTORY}"
            folder.mkdir(exist_ok=True, parents=True)
        (folder / f"f{number}").write_bytes(content)


def git(directory: Path, *words: str) -> None:
    """Have git do something in a repository, as nobody in particular."""
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    subprocesses.run(["git", "-C", directory, *identity, *words])


def prepare_checkout(directory: Path) -> None:
    """Make a repository with two branches that differ in each of CHANGED files."""
    git(directory, "init", "--quiet", "--initial-branch=one")
    for branch in ("one", "two"):
        if branch == "two":
            git(directory, "checkout", "--quiet", "-b", branch)
        files(directory, CHANGED, branch.encode())
        git(directory, "add", "--all")
        git(directory, "commit", "--quiet", "--message", branch)


def checkout(directory: Path) -> None:
    """Check out the other branch."""
    git(directory, "checkout", "--quiet", "one")


def prepare_nothing(_directory: Path) -> None:
    """Make nothing."""


def install(directory: Path) -> None:
    """Write a tree of INSTALLED files, as a package manager does."""
    files(directory / "modules", INSTALLED, b"module")


def remove(directory: Path) -> None:
    """Remove that tree, as rm -rf does."""
    subprocesses.run(["rm", "-rf", directory / "modules"])


def prepare_build(directory: Path) -> None:
    """Make BUILT sources and a makefile that copies each to an object."""
    (directory / "src").mkdir()
    (directory / "obj").mkdir()
    for number in range(BUILT):
        (directory / "src" / f"{number}.c").write_bytes(b"x" * 1000)
    (directory / "Makefile").write_text(
        "all: $(patsubst src/%.c,obj/%.o,$(wildcard src/*.c))\n"
        "obj/%.o: src/%.c\n\t@cp $< $@.tmp && mv $@.tmp $@\n"
    )


def build(directory: Path) -> None:
    """Make all objects, two at a time."""
    subprocesses.run(["make", "-s", "-j2", "-C", directory])


def log(directory: Path) -> None:
    """Append lines to a file, each with a write(2) of its own, at LINES_PER_SECOND."""
    count = int(LINES_PER_SECOND * LOG_SECONDS)
    fd = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    began = time.monotonic()
    try:
        for number in range(count):
            ahead = number / LINES_PER_SECOND - (time.monotonic() - began)
            if ahead > LOG_TICK:
                # This sleep makes the rate.
                time.sleep(ahead)
            os.write(fd, b"a line of a log\n")
    finally:
        os.close(fd)


STORMS = (
    EventStorm(f"git checkout, {CHANGED} files differ", prepare_checkout, checkout),
    EventStorm(f"{INSTALLED} files installed", prepare_nothing, install),
    EventStorm(f"rm -rf of {INSTALLED} files", install, remove),
    EventStorm(f"make -j2, {BUILT} objects", prepare_build, build),
    EventStorm(f"a log of {LINES_PER_SECOND} lines a second", prepare_nothing, log),
)


def measure(
    place: Place, programs: Programs, storms: Sequence[EventStorm] = STORMS
) -> list[StormCost]:
    """Run each storm with a watcher in `place`."""
    costs = []
    for number, storm in enumerate(storms):
        share = place.directory(f"storm-{number}")
        with step(f"{storm.title}, mode {place.mode}"):
            storm.prepare(share.host)
            costs.append(watched(place, programs, storm, share))
        shutil.rmtree(share.host)
    return costs


def watched(place: Place, programs: Programs, storm: EventStorm, share: Share) -> StormCost:
    """Run a storm in a directory that a program watches."""
    process = started(place, programs.events, "tree", share.guest, END)
    before = place.daemon_cpu_ns()
    began = time.monotonic()
    storm.work(share.host)
    ended = time.monotonic()
    (share.host / END).touch()
    output = process.lines(limit=LIMIT, until="end ")
    seen = time.monotonic()
    used = place.daemon_cpu_ns() - before
    process.stop()
    words = output[-1].split() if output else []
    if words[:1] != ["end"]:
        raise HarnessError(
            f"{storm.title}, mode {place.mode}: the watcher did not see the end in {LIMIT:.0f} s:"
            f" {' / '.join(output) or 'no output'}"
        )
    return StormCost(
        storm.title,
        place.mode,
        ended - began,
        seen - ended,
        int(words[1]),
        int(words[2]),
        used / 1e9,
    )


def measure_unwatched(folder: Path, storms: Sequence[EventStorm] = STORMS) -> list[StormCost]:
    """Run each storm in a directory that nobody watches."""
    costs = []
    for number, storm in enumerate(storms):
        directory = folder / f"unwatched-{number}"
        directory.mkdir()
        storm.prepare(directory)
        began = time.monotonic()
        storm.work(directory)
        costs.append(StormCost(storm.title, "nobody", time.monotonic() - began, 0.0, 0, 0, 0.0))
        shutil.rmtree(directory)
    return costs
