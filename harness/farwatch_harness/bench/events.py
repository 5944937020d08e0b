# SPDX-License-Identifier: Apache-2.0
"""Latency and throughput of events from the host to a program in the guest.

docs/benchmark.md explains the measurement.
"""

import os
import select
import stat
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.programs import Programs
from farwatch_harness.oracle.compare import In, NativeInotify
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.guest_client import GuestProcess
from farwatch_harness.vm.testbed import Share, Testbed

# Seconds for one event, for a program's start, and for all events of a batch.
EVENT_LIMIT = 10.0
START_LIMIT = 30.0
BATCH_LIMIT = 120.0
WARM_UP = 20
# The rate of a burst without a loss is tried as steady rate, and lowered by this factor until no
# event is lost.
LOWER = 0.8
STEADY_TRIES = 6
# How far creations may run ahead of their time within a steady rate, in seconds.
TICK = 0.005


@dataclass(frozen=True)
class Latency:
    """From write(2) on the host to the return of read(2) in the guest, in microseconds.

    Each value has an error of at most `error`: half the duration of the guest's answer (the
    median).
    """

    mode: str
    count: int
    median: float
    p99: float
    error: float
    round_trip: float


@dataclass(frozen=True)
class Batch:
    """`count` files created on the host at full speed.

    host_rate, guest_rate: events per second on each side.
    lost: whether an event was lost.
    """

    count: int
    host_rate: float
    guest_rate: float
    arrived: int
    lost: bool


@dataclass(frozen=True)
class Throughput:
    """Batches of growing size, and the steady rate at which no event was lost for `seconds`.

    steady_rate: events per second; 0 if there is no such rate.
    """

    mode: str
    batches: tuple[Batch, ...]
    steady_rate: float
    seconds: float


def share_directory(testbed: Testbed, name: str) -> Share:
    """Make a directory of the share."""
    (testbed.shared / name).mkdir()
    return Share(testbed.shared / name, testbed.mount_point / name)


def started(testbed: Testbed, *words: object) -> GuestProcess:
    """Start a program of the benchmark in the guest; return when it has added its watches."""
    process = testbed.guest.spawn(*(str(word) for word in words))
    output = process.lines(limit=START_LIMIT, until="ready")
    if "ready" not in output:
        raise HarnessError(
            f"the guest's program did not start: {' / '.join(output) or 'no output'}"
        )
    return process


def latency(testbed: Testbed, programs: Programs, mode: str, count: int) -> Latency:
    """Write to a file `count` times, each time after the guest's answer to the previous write."""
    share = share_directory(testbed, "latency")
    (share.host / "file").touch()
    (share.host / "ack").write_bytes(bytes(8))
    with step(f"latency, mode {mode}"):
        total = count + WARM_UP
        process = started(
            testbed, programs.events, "latency", share.guest / "file", share.guest / "ack", total
        )
        trips = round_trips(share.host / "file", share.host / "ack", total)
        lines = process.lines(limit=EVENT_LIMIT, count=total)
        if len(lines) < total:
            raise HarnessError(f"the guest's program ended early: {' / '.join(lines[-3:])}")
    return latency_of(mode, trips, [(int(gap), int(write)) for gap, write in map(str.split, lines)])


def round_trips(file: Path, ack: Path, count: int) -> list[int]:
    """Return for each of `count` writes the time until the host sees the guest's answer, in ns."""
    trips = []
    answers = NativeInotify()
    answers.add(ack, In.MODIFY)
    poller = select.poll()
    poller.register(answers.fd, select.POLLIN)
    written = os.open(file, os.O_WRONLY)
    answered = os.open(ack, os.O_RDONLY)
    try:
        for number in range(1, count + 1):
            began = time.monotonic_ns()
            os.write(written, b"x")
            while True:
                if not poller.poll(1000 * EVENT_LIMIT):
                    raise HarnessError(
                        f"the guest did not report write {number} in {EVENT_LIMIT:.0f} s"
                    )
                seen = time.monotonic_ns()
                os.read(answers.fd, 4096)
                reported = int.from_bytes(os.pread(answered, 8, 0), "little")
                if reported >= number:
                    break
            if reported != number:
                raise HarnessError(f"the guest reported {reported} events of {number} writes")
            trips.append(seen - began)
    finally:
        for descriptor in (written, answered, answers.fd):
            os.close(descriptor)
    return trips


def latency_of(mode: str, trips: Sequence[int], answers: Sequence[tuple[int, int]]) -> Latency:
    """Subtract the guest's part from the round trips: the gap, and half of the answering write."""
    pairs = list(zip(trips, answers, strict=True))[WARM_UP:]
    values = [(trip - gap - write / 2) / 1000 for trip, (gap, write) in pairs]
    return Latency(
        mode,
        len(values),
        statistics.median(values),
        statistics.quantiles(values, n=100)[98],
        statistics.median(write / 2000 for _trip, (_gap, write) in pairs),
        statistics.median(trip / 1000 for trip, _answer in pairs),
    )


def throughput(
    testbed: Testbed, programs: Programs, mode: str, sizes: Sequence[int], seconds: float
) -> Throughput:
    """Measure bursts until one loses events, then a steady rate for `seconds`."""
    batches: list[Batch] = []
    with step(f"events per second, mode {mode}") as progress:
        for size in sizes:
            progress.update(f"a burst of {size} files")
            batches.append(batch(testbed, programs, f"batch-{size}", size, None))
            if batches[-1].lost:
                break
        whole = [each.guest_rate for each in batches if not each.lost]
        rate = max(whole, default=0.0)
        for number in range(STEADY_TRIES if rate else 0):
            progress.update(f"steady, {rate:.0f} per second")
            done = batch(testbed, programs, f"steady-{number}", max(int(rate * seconds), 1), rate)
            if not done.lost:
                return Throughput(mode, tuple(batches), done.host_rate, seconds)
            rate *= LOWER
    return Throughput(mode, tuple(batches), 0.0, seconds)


def batch(testbed: Testbed, programs: Programs, name: str, count: int, rate: float | None) -> Batch:
    """Create `count` files and have the guest count the events.

    rate: files per second; None for full speed.
    """
    share = share_directory(testbed, name)
    process = started(testbed, programs.events, "count", share.guest, "f", count)
    taken = create_files(share.host, count, rate)
    output = process.lines(limit=BATCH_LIMIT, count=1)
    if not output:
        process.stop()
        return Batch(count, count / taken, 0.0, 0, lost=True)
    arrived, spread, lost = output[0].split()
    # The time of the events is the longer of two: of the creations, and of the arrivals.
    return Batch(
        count, count / taken, int(arrived) / max(float(spread), taken), int(arrived), lost == "1"
    )


def create_files(directory: Path, count: int, rate: float | None) -> float:
    """Create f000000, f000001, ... in order; return the seconds that it took."""
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    began = time.monotonic()
    try:
        for number in range(count):
            if rate is not None:
                ahead = number / rate - (time.monotonic() - began)
                if ahead > TICK:
                    # This sleep makes the rate.
                    time.sleep(ahead)
            os.mknod(f"f{number:06}", stat.S_IFREG | 0o600, dir_fd=parent)
        return time.monotonic() - began
    finally:
        os.close(parent)
