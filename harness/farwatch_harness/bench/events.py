# SPDX-License-Identifier: Apache-2.0
"""Latency and throughput of events from the host to a program in the guest.

docs/benchmark.md explains the measurement.
"""

import os
import stat
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.event_readers import HostProcess, Place, started
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step

# Seconds for all events of a latency measurement and for those of a batch.
LATENCY_LIMIT = 60.0
BATCH_LIMIT = 120.0
WARM_UP = 20
# The counters of two CPUs may differ by so much, in microseconds.
SKEW_US = 1.0
# The rate of a burst without a loss is tried as steady rate, and lowered by this factor until no
# event is lost.
LOWER = 0.8
STEADY_TRIES = 6
# How far creations may run ahead of their time within a steady rate, in seconds.
TICK = 0.005


@dataclass(frozen=True)
class Latency:
    """From write(2) on the host to the return of read(2) in the guest, in microseconds.

    mode: a mode of events, or "native": the reader is a program of the host, without a daemon.
    error: each value is known with this error: by how much the clocks of the sides may differ.
    getattr: the median of a getattr of the same guest, which asks the daemon; natively, of the same
        system call.
    """

    mode: str
    count: int
    median: float
    p99: float
    p999: float
    error: float
    getattr: float


@dataclass(frozen=True)
class Batch:
    """`count` files created on the host at full speed.

    host_rate, guest_rate: events per second on each side.
    lost: whether an event was lost.
    cpu_us: the daemon's CPU time per event that arrived, in microseconds.
    """

    count: int
    host_rate: float
    guest_rate: float
    arrived: int
    lost: bool
    cpu_us: float = 0.0


@dataclass(frozen=True)
class Throughput:
    """Batches of growing size, and the steady rate at which no event was lost for `seconds`.

    mode: as of `Latency`.
    steady_rate: events per second; 0 if there is no such rate.
    """

    mode: str
    batches: tuple[Batch, ...]
    steady_rate: float
    seconds: float

    @property
    def best_rate(self) -> float:
        """The best rate of a batch without a loss; 0 if each lost an event."""
        return max((each.guest_rate for each in self.batches if not each.lost), default=0.0)


def latency(place: Place, programs: Programs, count: int) -> Latency:
    """Write to a file `count` times, each time when the event of the previous write was read."""
    share = place.directory("latency")
    (share.host / "file").touch()
    total = count + WARM_UP
    # Its counters are of the last measurement.
    place.host_page.write_bytes(bytes(place.host_page.stat().st_size))
    with step(f"latency, mode {place.mode}"):
        reader = started(place, programs.events, "read", share.guest / "file", total, place.page)
        writer = HostProcess(
            [str(programs.events), "write", f"{share.host}/file", str(total), str(place.host_page)]
        )
        try:
            written = writer.lines(limit=LATENCY_LIMIT)
            read = reader.lines(limit=LATENCY_LIMIT, count=total + 1)
        finally:
            writer.stop()
            reader.stop()
        asking = place.spawn(programs.events, "getattr", share.guest / "file", total)
        taken = asking.lines(limit=LATENCY_LIMIT, count=total)
        asking.stop()
    for lines, wanted, what in (
        (written, total + 2, "writes"),
        (read, total + 1, "reads events"),
        (taken, total, "asks for attributes"),
    ):
        if len(lines) != wanted:
            raise HarnessError(f"the program that {what} ended early: {' / '.join(lines[-3:])}")
    return latency_of(place.mode, written, read, taken)


def latency_of(
    mode: str, written: Sequence[str], read: Sequence[str], taken: Sequence[str]
) -> Latency:
    """Return the latency from the output of the three programs; see events.c.

    HarnessError: the counters of the sides do not differ by a constant.
    """
    *calls, lower, rate = written
    *returns, upper = read
    low, high, ticks = (int(line.split()[1]) for line in (lower, upper, rate))
    us = 1e6 / ticks
    if (low - high) * us > SKEW_US:
        raise HarnessError(
            f"mode {mode}: the time stamp counters of host and guest drift: their difference is at"
            f" least {low} and at most {high}"
        )
    offset = (low + high) / 2
    pairs = list(zip(map(int, calls), map(int, returns), strict=True))[WARM_UP:]
    values = [(end - begin - offset) * us for begin, end in pairs]
    return Latency(
        mode,
        len(values),
        statistics.median(values),
        statistics.quantiles(values, n=100)[98],
        statistics.quantiles(values, n=1000)[998],
        abs(high - low) / 2 * us,
        statistics.median(int(each) * us for each in taken[WARM_UP:]),
    )


def throughput(
    place: Place, programs: Programs, sizes: Sequence[int], seconds: float
) -> Throughput:
    """Measure bursts until one loses events, then a steady rate for `seconds`."""
    batches: list[Batch] = []
    with step(f"events per second, mode {place.mode}") as progress:
        for size in sizes:
            progress.update(f"a burst of {size} files")
            batches.append(batch(place, programs, f"batch-{size}", size, None))
            if batches[-1].lost:
                break
        rate = Throughput(place.mode, tuple(batches), 0.0, seconds).best_rate
        for number in range(STEADY_TRIES if rate else 0):
            progress.update(f"steady, {rate:.0f} per second")
            done = batch(place, programs, f"steady-{number}", max(int(rate * seconds), 1), rate)
            if not done.lost:
                return Throughput(place.mode, tuple(batches), done.host_rate, seconds)
            rate *= LOWER
    return Throughput(place.mode, tuple(batches), 0.0, seconds)


def batch(place: Place, programs: Programs, name: str, count: int, rate: float | None) -> Batch:
    """Create `count` files and have the program count the events.

    rate: files per second; None for full speed.
    """
    share = place.directory(name)
    process = started(place, programs.events, "count", share.guest, "f", count)
    before = place.daemon_cpu_ns()
    taken = create_files(share.host, count, rate)
    output = process.lines(limit=BATCH_LIMIT, count=1)
    used = place.daemon_cpu_ns() - before
    process.stop()
    if not output:
        return Batch(count, count / taken, 0.0, 0, lost=True)
    arrived, spread, lost = output[0].split()
    # The time of the events is the longer of two: of the creations, and of the arrivals.
    return Batch(
        count,
        count / taken,
        int(arrived) / max(float(spread), taken),
        int(arrived),
        lost == "1",
        used / 1000 / max(int(arrived), 1),
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
