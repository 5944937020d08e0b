# SPDX-License-Identifier: Apache-2.0
"""The soak's load for one round: writers on the host and in the guest, watchers in the guest, all
at once."""

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

#: Streams that the host writes as fast as a steady watcher in the guest takes it; each has a writer
#: of its own.
PACED = 2
#: Files at once; the queues of daemon and guest hold a few such bursts.
SMALLEST_BURST, LARGEST_BURST = 10, 200
#: Seconds from one burst to the next at most, by chance.
LONGEST_PAUSE = 0.3
#: A stream that no steady watcher paces: so many files at once, and the seconds from one time to
#: the next.
FREE_BURST, FREE_INTERVAL = 10, 0.1
#: Processes with watchers that come and go.
PASSERS = 3
#: Seconds for a program in the guest to start, for a burst to arrive, and for a program to end.
START_LIMIT, BURST_LIMIT, END_LIMIT = 60.0, 60.0, 90.0
#: Of what a round's writer in the guest may number, as long as it lasts.
NUMBERS_OF_A_ROUND = 1_000_000


@dataclass
class Stream:
    """A numbered stream that a process on the host writes; `next` is the next file's number."""

    share: Share
    writer: HostScriptRunners
    counter: Counter
    next: int = 0

    def write(self, count: int) -> str:
        """So many files, and the marker after them, whose name is returned."""
        self.counter.set(self.next + count)
        self.writer.perform([[(self.share.host, burst(self.next, count))]])
        self.next += count
        return f"{MARKER}{self.next}"


@dataclass
class RoundResult:
    """What the watchers of one round saw; `problems` are those of programs that did not do their
    part.

    `notes` are the first faults in words.
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
        share = directory(root, name)
        writer = self.stack.enter_context(contextlib.closing(HostScriptRunners(1)))
        counter = self.stack.enter_context(contextlib.closing(Counter(share.host)))
        counter.set(0)
        return Stream(share, writer, counter)

    def close(self) -> None:
        self.stack.close()

    @contextlib.contextmanager
    def round(self, seconds: float) -> Iterator[RoundResult]:
        """Load while the block runs, which should be `seconds`; after it the outcome is
        complete."""
        result = RoundResult()
        steady = [self.started("steady", stream.share.guest, stream.next) for stream in self.paced]
        first = self.rounds * NUMBERS_OF_A_ROUND
        # The guest sets it from then on.
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
        for job in (*steady, own, *passers):
            if "ready" not in (said := job.lines(until="ready", limit=START_LIMIT)):
                raise HarnessError(
                    f"a program of the soak did not start in the guest: {' / '.join(said)}"
                )
        stop = threading.Event()
        with ThreadPoolExecutor() as pool:
            work = [
                *(
                    pool.submit(self.write_paced, stream, job, Random(self.random.random()), stop)
                    for stream, job in zip(self.paced, steady, strict=True)
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
            texts=[(job.handle, "end\n") for job in steady],
            limit=END_LIMIT,
        )
        ends += [job.lines(until="{", limit=END_LIMIT) for job in (own, *passers)]
        for number, (job, lines) in enumerate(zip((*steady, own, *passers), ends, strict=True)):
            job.stop()
            take(lines, result, passing=number > len(steady))

    def started(self, *words: object) -> GuestProcess:
        argv = [sys.executable, "-m", "farwatch_harness.soak.guest", *map(str, words)]
        answer = self.guest.call("spawn", argv=argv, stdin=True)
        return GuestProcess(self.guest, answer["handle"], answer["pid"])

    @staticmethod
    def write_paced(
        stream: Stream, job: GuestProcess, random: Random, stop: threading.Event
    ) -> None:
        """Burst after burst, each when the steady watcher has seen the last one."""
        while not stop.is_set():
            marker = stream.write(random.randint(SMALLEST_BURST, LARGEST_BURST))
            said = job.lines(until=marker, limit=BURST_LIMIT)
            if marker not in said:
                raise HarnessError(
                    f"{stream.share.host.name}: {marker} was not told of: {' / '.join(said[-2:])}"
                )
            stop.wait(random.uniform(0, LONGEST_PAUSE))

    def write_freely(self, stop: threading.Event) -> None:
        """Bursts in fixed intervals."""
        while not stop.wait(FREE_INTERVAL):
            self.free.write(FREE_BURST)


def take(lines: Sequence[str], result: RoundResult, *, passing: bool) -> None:
    """Adds what a program in the guest says in its last line."""
    try:
        said = json.loads(lines[-1]) if lines else {}
    except ValueError:
        said = {}
    if "tally" not in said:
        result.problems.append(
            f"a watcher in the guest failed: {said.get('error') or ' / '.join(lines[-3:])}"
        )
        return
    result.notes += said["notes"]
    if passing:
        result.passing += Tally(**said["tally"])
    else:
        result.steady += Tally(**said["tally"])


def directory(root: Share, name: str) -> Share:
    """A new directory of the share."""
    (root.host / name).mkdir()
    return Share(root.host / name, root.guest / name)


def failures(work: Sequence[Future[None]]) -> list[str]:
    """What went wrong in the threads."""
    return [str(error) for each in work if (error := each.exception()) is not None]
