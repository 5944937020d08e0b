# SPDX-License-Identifier: Apache-2.0
"""The load of one round: writers on the host and in the guest, and watchers in the guest."""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

from farwatch_harness.oracle.script_runners import HostScriptRunners
from farwatch_harness.soak.stream import FILE, MARKER, SYMLINK, Counter, Tally, burst
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest, GuestProcess
from farwatch_harness.vm.initramfs import HARNESS
from farwatch_harness.vm.testbed import Share

#: The number of streams that the host writes as fast as a steady watcher in the guest reads them.
#: Each has its own writer.
PACED = 2
#: Files of a burst; the queues of daemon and guest have room for a few bursts.
SMALLEST_BURST, LARGEST_BURST = 10, 200
#: Seconds from one burst to the next; a random time up to this.
LONGEST_PAUSE = 0.3
#: A stream that no steady watcher paces: the files of a burst, and the seconds between two bursts.
FREE_BURST, FREE_INTERVAL = 10, 0.1
#: The number of processes whose watchers come and go.
PASSERS = 3
#: Seconds for a program in the guest to start, for a burst to arrive, and for a program to end: an
#: emulated guest beside others may get a small part of a CPU.
START_LIMIT, BURST_LIMIT, END_LIMIT = 300.0, 120.0, 180.0
#: Seconds to wait for a burst that may have come into a gap.
GAP_LIMIT = 3.0
#: A program of soak.guest in the guest, whose root may have this interpreter and the harness only.
GUEST_PROGRAM = (
    *(str(Path(sys.executable).resolve()), "-X", "utf8", "-ISB", "-c"),
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1));"
    " runpy.run_module('farwatch_harness.soak.guest', run_name='__main__', alter_sys=True)",
    HARNESS,
)
#: The files that the guest's writer may create in one round.
NUMBERS_OF_A_ROUND = 1_000_000


@dataclass
class Stream:
    """A numbered stream that a process on the host writes; `next` is the next file's number."""

    share: Share
    writer: HostScriptRunners
    counter: Counter
    next: int = 0

    def write(self, count: int) -> str:
        """Write `count` files and the marker after them; return the marker's name."""
        self.counter.set(self.next + count)
        self.writer.perform([[(self.share.host, burst(self.next, count))]])
        self.next += count
        return f"{MARKER}{self.next}"


@dataclass
class RoundResult:
    """What the watchers of one round saw.

    across: of the other guest's stream.
    problems: the programs that failed, and how.
    notes: the first faults in words.
    """

    steady: Tally = field(default_factory=Tally)
    passing: Tally = field(default_factory=Tally)
    across: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class WatcherKind(Enum):
    """The part of a round's result that a program's report is added to."""

    STEADY = "steady"
    PASSING = "passing"
    ACROSS = "across"


@dataclass
class LoadProgram:
    """A program of soak.guest, and what it has printed after its start."""

    process: GuestProcess
    kind: WatcherKind
    #: Whether it ends on input, not by itself.
    asked_to_end: bool
    lines: list[str] = field(default_factory=list)


class Load:
    """The directories of the load and its writers on the host; close() ends them.

    second: another guest, with a daemon of its own on the same directory. Each guest watches what
    the other one writes. The second one opens files until its daemon refuses.
    gaps: events may be missing, with an overflow: a marker need not be reported.
    """

    def __init__(
        self,
        guest: Guest,
        root: Share,
        random: Random,
        second: Guest | None = None,
        *,
        gaps: bool = False,
    ) -> None:
        self.gaps = gaps
        self.guest = guest
        self.second = second
        self.random = random
        self.rounds = 0
        self.stack = contextlib.ExitStack()
        self.paced = [self.stream(root, f"host-{number}") for number in range(PACED)]
        self.free = self.stream(root, "host-free")
        self.own = directory(root, "guest-own")
        self.data = directory(root, "guest-data")
        if second is not None:
            self.second_own = directory(root, "second-own")
            self.leaked = directory(root, "leaked")

    def stream(self, root: Share, name: str) -> Stream:
        """Make the directory of a stream, its writer and its counter."""
        share = directory(root, name)
        writer = self.stack.enter_context(contextlib.closing(HostScriptRunners(1)))
        counter = self.stack.enter_context(contextlib.closing(Counter(share.host)))
        counter.set(0)
        return Stream(share, writer, counter)

    def close(self) -> None:
        """End the writers."""
        self.stack.close()

    @contextlib.contextmanager
    def round(self, seconds: float) -> Iterator[RoundResult]:
        """Apply the load while the block runs, which should take `seconds`.

        The yielded result is complete after the block.
        """
        result = RoundResult()
        first = self.rounds * NUMBERS_OF_A_ROUND
        self.rounds += 1
        for share in [self.own] if self.second is None else [self.own, self.second_own]:
            # The guest sets the counter from then on.
            with contextlib.closing(Counter(share.host)) as counter:
                counter.set(first)
        paced = [
            self.started(
                self.guest, WatcherKind.STEADY, "steady", stream.share.guest, stream.next, ask=True
            )
            for stream in self.paced
        ]
        programs = [*paced, *self.watchers_across(first)]
        self.await_start(programs)
        programs += (more := self.writers_and_passers(first, seconds))
        self.await_start(more)
        if self.second is not None:
            # The others of its guest have opened their files.
            leaking = self.started(
                self.second, WatcherKind.STEADY, "leaking", self.leaked.guest, ask=True
            )
            self.await_start([leaking])
            programs.append(leaking)
        stop = threading.Event()
        with ThreadPoolExecutor() as pool:
            work = [
                *(
                    pool.submit(
                        self.write_paced,
                        stream,
                        watcher.process,
                        Random(self.random.random()),
                        stop,
                    )
                    for stream, watcher in zip(self.paced, paced, strict=True)
                ),
                pool.submit(self.write_freely, stop),
            ]
            try:
                yield result
            finally:
                stop.set()
        result.problems += failures(work)
        for program in programs:
            # First what ends by itself: what it writes is watched.
            if not program.asked_to_end:
                program.lines += program.process.lines(until="{", limit=END_LIMIT)
        for guest in dict.fromkeys((self.guest, self.second)):
            asked = [each for each in programs if each.asked_to_end and each.process.guest is guest]
            if guest is None or not asked:
                continue
            ends = guest.call(
                "processes_ask",
                END_LIMIT,
                texts=[(each.process.handle, "end\n") for each in asked],
                limit=END_LIMIT,
            )
            for program, lines in zip(asked, ends, strict=True):
                program.lines += lines
                if not any("{" in line for line in lines):
                    # Markers that nobody has waited for come first.
                    program.lines += program.process.lines(until="{", limit=END_LIMIT)
        for program in programs:
            program.process.stop()
            take(program.lines, result, program.kind, gaps=self.gaps)

    def watchers_across(self, first: int) -> list[LoadProgram]:
        """Start the watchers of what the other guest writes, and of a stream of the host."""
        if self.second is None:
            return []
        watched = self.paced[0]
        return [
            self.started(guest, kind, "steady", share.guest, number, ask=True)
            for guest, kind, share, number in (
                (self.second, WatcherKind.STEADY, watched.share, watched.next),
                (self.second, WatcherKind.ACROSS, self.own, first),
                (self.guest, WatcherKind.ACROSS, self.second_own, first),
            )
        ]

    def writers_and_passers(self, first: int, seconds: float) -> list[LoadProgram]:
        """Start what writes in the guests, and what comes and goes."""
        everywhere = [
            share.guest
            for share in (self.own, *(stream.share for stream in (*self.paced, self.free)))
        ]
        programs = [
            self.started(
                self.guest, WatcherKind.STEADY, "own", self.own.guest, first, seconds, FILE
            ),
            *(
                self.started(
                    self.guest,
                    WatcherKind.PASSING,
                    "passing",
                    seconds,
                    self.random.random(),
                    *everywhere,
                )
                for _ in range(PASSERS)
            ),
        ]
        programs.append(
            self.started(
                self.guest,
                WatcherKind.PASSING,
                "data",
                seconds,
                self.random.random(),
                self.data.guest,
            )
        )
        if self.second is not None:
            programs += [
                self.started(
                    self.second,
                    WatcherKind.STEADY,
                    "own",
                    self.second_own.guest,
                    first,
                    seconds,
                    # It can make them though it can open nothing.
                    SYMLINK,
                ),
            ]
        return programs

    @staticmethod
    def started(guest: Guest, kind: WatcherKind, *words: object, ask: bool = False) -> LoadProgram:
        """Start a program of soak.guest in a guest.

        ask: whether it ends on input.
        """
        argv = [*GUEST_PROGRAM, *map(str, words)]
        answer = guest.call("spawn", argv=argv, stdin=True)
        return LoadProgram(GuestProcess(guest, answer["handle"], answer["pid"]), kind, ask)

    @staticmethod
    def await_start(programs: Sequence[LoadProgram]) -> None:
        """Wait for the start of programs, and keep what they have printed since then.

        A program of a short round may end before the others have started.
        """
        for program in programs:
            output = program.process.lines(until="ready", limit=START_LIMIT)
            if "ready" not in output:
                raise HarnessError(
                    f"a program of the stress test did not start in the guest: {' / '.join(output)}"
                )
            program.lines = output[output.index("ready") + 1 :]

    def write_paced(
        self, stream: Stream, watcher: GuestProcess, random: Random, stop: threading.Event
    ) -> None:
        """Write bursts, each after the steady watcher has seen the previous one."""
        while not stop.is_set():
            marker = stream.write(random.randint(SMALLEST_BURST, LARGEST_BURST))
            output = watcher.lines(until=marker, limit=GAP_LIMIT if self.gaps else BURST_LIMIT)
            if marker not in output and not self.gaps:
                raise HarnessError(
                    f"{stream.share.host.name}: {marker} was not reported:"
                    f" {' / '.join(output[-2:])}"
                )
            stop.wait(random.uniform(0, LONGEST_PAUSE))

    def write_freely(self, stop: threading.Event) -> None:
        """Write bursts in fixed intervals."""
        while not stop.wait(FREE_INTERVAL):
            self.free.write(FREE_BURST)


def take(lines: Sequence[str], result: RoundResult, kind: WatcherKind, *, gaps: bool) -> None:
    """Add the report that a program in the guest prints as its last line.

    gaps: an overflow is no fault.
    """
    try:
        report = json.loads(lines[-1]) if lines else {}
    except ValueError:
        report = {}
    if "tally" not in report:
        result.problems.append(
            f"a watcher in the guest failed: {report.get('error') or ' / '.join(lines[-3:])}"
        )
        return
    result.notes += report["notes"]
    if not gaps:
        result.notes += report["overflow_notes"]
    tally = getattr(result, kind.value) + Tally(**report["tally"])
    setattr(result, kind.value, tally)


def directory(root: Share, name: str) -> Share:
    """Make a directory of the share."""
    (root.host / name).mkdir()
    return Share(root.host / name, root.guest / name)


def failures(work: Sequence[Future[None]]) -> list[str]:
    """Return the errors of the threads."""
    return [str(error) for each in work if (error := each.exception()) is not None]
