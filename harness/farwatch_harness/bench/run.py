# SPDX-License-Identifier: Apache-2.0
"""The benchmark: latency and throughput of events, the cost of watches, inodes and operations.

Operations are measured beside virtiofsd.
"""

import argparse
import contextlib
import dataclasses
import mmap
import os
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from farwatch_harness.bench import (
    bench_report,
    daemons,
    event_readers,
    events,
    inodes,
    kernel_cost,
    operations,
    programs,
    recorded,
    start,
    storms,
    synthetic,
    watch_cost,
)
from farwatch_harness.bench.events import Latency, Throughput
from farwatch_harness.bench.inodes import InodeCost
from farwatch_harness.bench.storms import StormCost
from farwatch_harness.bench.watch_cost import WatchCost
from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.paths import CHECKOUT
from farwatch_harness.util.progress import say, step
from farwatch_harness.vm.environment import Environment, patches_of_series, prepare_environment
from farwatch_harness.vm.testbed import start_testbed

MODES = ("others", "remote")
RESULT = CHECKOUT / "build" / "bench.json"
TMPFS = "/dev/shm"
BATCHES = (1000, 2000, 5000, 10_000, 20_000, 50_000)


class Part(Enum):
    """A part of the benchmark that can be measured alone."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    STORMS = "storms"
    OPERATIONS = "operations"
    SYNTHETIC = "synthetic"
    START = "start"
    WATCHES = "watches"
    INODES = "inodes"
    KERNEL = "kernel"


EVENT_PARTS = {Part.LATENCY, Part.THROUGHPUT, Part.STORMS}
#: The parts that need no guest.
WITHOUT_GUEST = {Part.SYNTHETIC, Part.INODES, Part.START}
#: The parts that do not need a guest for each mode.
WITHOUT_MODES = {Part.OPERATIONS, Part.KERNEL, *WITHOUT_GUEST}


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure, and for how long.

    parts: the parts to measure.
    events: the number of writes for the latency.
    seconds: the time per operation and round.
    steady: seconds of the steady rate of events.
    watches, inodes: the numbers of watches and of inodes to measure with.
    against: another farwatchd to compare with, instead of virtiofsd.
    variant: options of this farwatchd to compare it with, instead of virtiofsd; empty for none.
    record: whether to record the run, as the one that later runs are compared with.
    """

    parts: frozenset[Part]
    events: int
    rounds: int
    seconds: float
    steady: float
    watches: tuple[int, ...]
    inodes: tuple[int, ...]
    against: Path | None
    variant: tuple[str, ...]
    record: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    choices = [part.value for part in Part]
    parser.add_argument(
        "--only",
        action="append",
        choices=choices,
        metavar="PART",
        help=f"one of {', '.join(choices)}",
    )
    parser.add_argument(
        "--events", type=int, default=2000, metavar="N", help="writes for the latency (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds of the operations (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.5,
        metavar="S",
        help="seconds per operation and round (%(default)s)",
    )
    parser.add_argument(
        "--steady",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds of the steady rate of events (%(default)s)",
    )
    parser.add_argument(
        "--watches",
        type=int,
        nargs="+",
        default=[1000, 10_000],
        metavar="N",
        help="numbers of watches; 100000 takes long (1000 10000)",
    )
    parser.add_argument(
        "--inodes",
        type=int,
        nargs="+",
        default=[1000, 10_000, 100_000],
        metavar="N",
        help="numbers of inodes looked up and watched; 1000000 takes 6 GiB (1000 10000 100000)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FARWATCHD",
        help="compare the operations with this farwatchd, of another checkout, not with virtiofsd",
    )
    parser.add_argument(
        "--variant",
        action="append",
        metavar="OPTION",
        help="compare the operations with this farwatchd with a further option, such as"
        " --variant=--state-dir=/run/bench, not with virtiofsd",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="record this run: later ones on such a machine are compared with it",
    )


def plan_of(options: argparse.Namespace) -> BenchmarkPlan:
    """Return the plan that the options ask for. HarnessError: a number is out of range."""
    if (
        options.events < 2
        or options.rounds < 1
        or min(options.watches + options.inodes) < 1
        or min(options.seconds, options.steady) <= 0
    ):
        raise HarnessError("bench: numbers must be positive, and --events at least 2")
    if options.against and options.variant:
        raise HarnessError("bench: --against excludes --variant")
    parts = frozenset(Part(name) for name in options.only or [part.value for part in Part])
    numbers = tuple(options.watches), tuple(options.inodes)
    return BenchmarkPlan(
        parts,
        options.events,
        options.rounds,
        options.seconds,
        options.steady,
        *numbers,
        options.against.absolute() if options.against else None,
        tuple(options.variant or ()),
        options.record,
    )


def bench(plan: BenchmarkPlan) -> None:
    """Measure, print the tables and write build/bench.json."""
    environment = prepare_environment(patches_of_series()) if plan.parts - WITHOUT_GUEST else None
    compiled = programs.compiled()
    servers = [*daemons.farwatchd(), *compared_daemons(plan)]
    described = bench_report.environment_of(environment, servers)
    if plan.parts & EVENT_PARTS:
        with event_directory() as name:
            described = dataclasses.replace(described, event_files=file_system_of(Path(name)))
    found = EventFigures()
    inode_costs: list[InodeCost] = []
    if Part.INODES in plan.parts:
        inode_costs = inodes.measure(plan.inodes)
    if environment and plan.parts - WITHOUT_MODES:
        for mode in MODES:
            measure_events(environment, compiled, plan, mode, found)
    if plan.parts & EVENT_PARTS:
        measure_native(compiled, plan, found)
    rates = []
    if environment and Part.OPERATIONS in plan.parts:
        rates = operations.measure(environment, compiled, servers, plan.rounds, plan.seconds)
    kernel_costs: list[kernel_cost.KernelCost] = []
    if environment and Part.KERNEL in plan.parts:
        kernel_costs = kernel_cost.measure(prepare_environment([]), environment, compiled)
    served: list[synthetic.SyntheticRate] = []
    if Part.SYNTHETIC in plan.parts:
        served = synthetic.measure(servers, plan.rounds, plan.seconds)
    starts: list[start.StartCost] = []
    if Part.START in plan.parts:
        starts = start.measure(servers, plan.rounds)
    report = bench_report.Report(
        described,
        tuple(found.latencies),
        tuple(found.throughputs),
        tuple(rates),
        tuple(found.watches),
        tuple(inode_costs),
        tuple(served),
        tuple(kernel_costs),
        tuple(found.storms),
        tuple(starts),
    )
    bench_report.show(report)
    bench_report.write_json(report, RESULT)
    say(f"  all figures, round by round: {RESULT.relative_to(CHECKOUT)}")
    if plan.against is None and not plan.variant:
        compare_with_recorded(report, plan.record)


def compare_with_recorded(report: bench_report.Report, record: bool) -> None:
    """Print what is worse than in the recorded run of such a machine; then record, if asked to."""
    path = recorded.record_path(report.environment)
    where = path.relative_to(CHECKOUT)
    former = recorded.load(path)
    if former is None:
        say(f"  no run on such a machine is recorded ({where}); --record records this one")
    else:
        now = recorded.ratios_of(report)
        compared = len(now.keys() & former.ratios.keys())
        if compared:
            bench_report.show_changes(
                recorded.worse(now, former.ratios), compared, former.environment.when
            )
    if record:
        recorded.record(report, path)
        say(f"  recorded: {where}")


def compared_daemons(plan: BenchmarkPlan) -> list[daemons.MeasuredDaemon]:
    """Return the daemons with which this checkout's farwatchd is compared."""
    if plan.variant:
        return [daemons.farwatchd_with(plan.variant)]
    if plan.against is not None:
        return [daemons.another_farwatchd(plan.against)]
    return [*daemons.virtiofsd_c(), *daemons.virtiofsd_rust()]


@dataclass
class EventFigures:
    """What was measured of events so far."""

    latencies: list[Latency] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)
    storms: list[StormCost] = field(default_factory=list)
    watches: list[WatchCost] = field(default_factory=list)


def measure_events(
    environment: Environment,
    programs: programs.Programs,
    plan: BenchmarkPlan,
    mode: str,
    found: EventFigures,
) -> None:
    """Measure everything about events in one guest."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(event_directory()))
        page = page_file(folder)
        (folder / "share").mkdir()
        spec = dataclasses.replace(
            daemons.farwatchd_in_mode(mode).testbed_spec(environment, folder / "share"),
            qemu_options=event_readers.page_options(page),
        )
        with step(f"booting a guest in mode {mode}"):
            testbed = stack.enter_context(start_testbed(spec))
        if plan.parts & EVENT_PARTS:
            measure_readers(event_readers.GuestPlace(testbed, mode, page), programs, plan, found)
        if Part.WATCHES in plan.parts:
            found.watches += [
                watch_cost.cost(testbed, programs, mode, count) for count in plan.watches
            ]
        if problems := testbed.problems():
            raise HarnessError(f"mode {mode}: {problems[0]}")


def measure_native(programs: programs.Programs, plan: BenchmarkPlan, found: EventFigures) -> None:
    """Measure the same programs on the host, without daemon and guest."""
    with event_directory() as name:
        folder = Path(name)
        place = event_readers.NativePlace(folder, page_file(folder))
        measure_readers(place, programs, plan, found)
        if Part.STORMS in plan.parts:
            found.storms += storms.measure_unwatched(folder)


def measure_readers(
    place: event_readers.Place,
    programs: programs.Programs,
    plan: BenchmarkPlan,
    found: EventFigures,
) -> None:
    """Measure events in one place, as far as the plan has them."""
    if Part.LATENCY in plan.parts:
        found.latencies.append(events.latency(place, programs, plan.events))
    if Part.THROUGHPUT in plan.parts:
        found.throughputs.append(events.throughput(place, programs, BATCHES, plan.steady))
    if Part.STORMS in plan.parts:
        found.storms += storms.measure(place, programs)


def event_directory() -> tempfile.TemporaryDirectory[str]:
    """Make a directory for what is changed on the host, on a tmpfs if there is one.

    Other file systems need more time for a file than the events do: their speed would be measured.
    """
    return tempfile.TemporaryDirectory(
        prefix="farwatch-bench-", dir=TMPFS if os.path.ismount(TMPFS) else None
    )


def file_system_of(path: Path) -> str:
    """Return the type of the file system of `path`, as stat(1) calls it."""
    return subprocesses.run(["stat", "--file-system", "--format=%T", path]).strip()


def page_file(folder: Path) -> Path:
    """Make a file of one page."""
    page = folder / "page"
    page.write_bytes(bytes(mmap.PAGESIZE))
    return page
