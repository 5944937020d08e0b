# SPDX-License-Identifier: Apache-2.0
"""The load of one round: writers on the host and in the guest, and watchers in the guest."""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from farwatch_harness.oracle.script_runners import HostScriptRunners
from farwatch_harness.soak.stream import MARKER, Counter, Tally, burst
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest, GuestProcess
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
#: Seconds for a program in the guest to start, for a burst to arrive, and for a program to end.
START_LIMIT, BURST_LIMIT, END_LIMIT = 60.0, 60.0, 90.0
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

    problems: the programs that failed, and how.
    notes: the first faults in words.
    """

    steady: Tally = field(default_factory=Tally)
    passing: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Load:
    """The directories of the load and its writers on the host; close() ends them."""

    def __init__(self, guest: Guest, root: Share, random: Random) -> None:
        self.guest = guest
        self.random = random
        self.rounds = 0
        self.stack = contextlib.ExitStack()
        self.paced = [self.stream(root, f"host-{number}") for number in range(PACED)]
        self.free = self.stream(root, "host-free")
        self.own = directory(root, "guest-own")

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
        steady = [self.started("steady", stream.share.guest, stream.next) for stream in self.paced]
        first = self.rounds * NUMBERS_OF_A_ROUND
        # The guest sets the counter from then on.
        with contextlib.closing(Counter(self.own.host)) as counter:
            counter.set(first)
        own = self.started("own", self.own.guest, first, seconds)
        everywhere = [
            share.guest
            for share in (self.own, *(stream.share for stream in (*self.paced, self.free)))
        ]
        passers = [
            self.started("passing", seconds, self.random.random(), *everywhere)
            for _ in range(PASSERS)
        ]
        self.rounds += 1
        programs = (*steady, own, *passers)
        early = [self.lines_after_start(program) for program in programs]
        stop = threading.Event()
        with ThreadPoolExecutor() as pool:
            work = [
                *(
                    pool.submit(
                        self.write_paced, stream, watcher, Random(self.random.random()), stop
                    )
                    for stream, watcher in zip(self.paced, steady, strict=True)
                ),
                pool.submit(self.write_freely, stop),
            ]
            try:
                yield result
            finally:
                stop.set()
        result.problems += failures(work)
        ends = self.guest.call(
            "processes_ask",
            END_LIMIT,
            texts=[(watcher.handle, "end\n") for watcher in steady],
            limit=END_LIMIT,
        )
        ends += [program.lines(until="{", limit=END_LIMIT) for program in (own, *passers)]
        for number, program in enumerate(programs):
            program.stop()
            take([*early[number], *ends[number]], result, passing=number > len(steady))

    def started(self, *words: object) -> GuestProcess:
        """Start a program of soak.guest in the guest."""
        argv = [sys.executable, "-m", "farwatch_harness.soak.guest", *map(str, words)]
        answer = self.guest.call("spawn", argv=argv, stdin=True)
        return GuestProcess(self.guest, answer["handle"], answer["pid"])

    @staticmethod
    def lines_after_start(program: GuestProcess) -> list[str]:
        """Wait for a program's start, and return what it has printed since then.

        A program of a short round may end before the others have started.
        """
        output = program.lines(until="ready", limit=START_LIMIT)
        if "ready" not in output:
            raise HarnessError(
                f"a program of the stress test did not start in the guest: {' / '.join(output)}"
            )
        return output[output.index("ready") + 1 :]

    @staticmethod
    def write_paced(
        stream: Stream, watcher: GuestProcess, random: Random, stop: threading.Event
    ) -> None:
        """Write bursts, each after the steady watcher has seen the previous one."""
        while not stop.is_set():
            marker = stream.write(random.randint(SMALLEST_BURST, LARGEST_BURST))
            output = watcher.lines(until=marker, limit=BURST_LIMIT)
            if marker not in output:
                raise HarnessError(
                    f"{stream.share.host.name}: {marker} was not reported:"
                    f" {' / '.join(output[-2:])}"
                )
            stop.wait(random.uniform(0, LONGEST_PAUSE))

    def write_freely(self, stop: threading.Event) -> None:
        """Write bursts in fixed intervals."""
        while not stop.wait(FREE_INTERVAL):
            self.free.write(FREE_BURST)


def take(lines: Sequence[str], result: RoundResult, *, passing: bool) -> None:
    """Add the report that a program in the guest prints as its last line."""
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
    if passing:
        result.passing += Tally(**report["tally"])
    else:
        result.steady += Tally(**report["tally"])


def directory(root: Share, name: str) -> Share:
    """Make a directory of the share."""
    (root.host / name).mkdir()
    return Share(root.host / name, root.guest / name)


def failures(work: Sequence[Future[None]]) -> list[str]:
    """Return the errors of the threads."""
    return [str(error) for each in work if (error := each.exception()) is not None]
