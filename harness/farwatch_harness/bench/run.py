# SPDX-License-Identifier: Apache-2.0
"""The benchmark: latency and throughput of events, the cost of watches, inodes and operations.

Operations are measured beside virtiofsd.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatch_harness.bench import (
    bench_report,
    daemons,
    events,
    inodes,
    kernel_cost,
    operations,
    programs,
    synthetic,
    watch_cost,
)
from farwatch_harness.bench.events import Latency, Throughput
from farwatch_harness.bench.inodes import InodeCost
from farwatch_harness.bench.watch_cost import WatchCost
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.paths import CHECKOUT
from farwatch_harness.util.progress import say, step
from farwatch_harness.vm.environment import Environment, patches_of_series, prepare_environment
from farwatch_harness.vm.testbed import start_testbed

MODES = ("others", "remote")
RESULT = CHECKOUT / "build" / "bench.json"
BATCHES = (1000, 2000, 5000, 10_000, 20_000, 50_000)


class Part(Enum):
    """A part of the benchmark that can be measured alone."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    OPERATIONS = "operations"
    SYNTHETIC = "synthetic"
    WATCHES = "watches"
    INODES = "inodes"
    KERNEL = "kernel"


#: The parts that need no guest.
WITHOUT_GUEST = {Part.SYNTHETIC, Part.INODES}
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
    """

    parts: frozenset[Part]
    events: int
    rounds: int
    seconds: float
    steady: float
    watches: tuple[int, ...]
    inodes: tuple[int, ...]
    against: Path | None


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
        "--events", type=int, default=500, metavar="N", help="writes for the latency (%(default)s)"
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


def plan_of(options: argparse.Namespace) -> BenchmarkPlan:
    """Return the plan that the options ask for. HarnessError: a number is out of range."""
    if (
        options.events < 2
        or options.rounds < 1
        or min(options.watches + options.inodes) < 1
        or min(options.seconds, options.steady) <= 0
    ):
        raise HarnessError("bench: numbers must be positive, and --events at least 2")
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
    )


def bench(plan: BenchmarkPlan) -> None:
    """Measure, print the tables and write build/bench.json."""
    environment = prepare_environment(patches_of_series()) if plan.parts - WITHOUT_GUEST else None
    compiled = programs.compiled()
    servers = [*daemons.farwatchd(), *compared_daemons(plan)]
    described = bench_report.environment_of(environment, servers)
    latencies: list[Latency] = []
    throughputs: list[Throughput] = []
    costs: list[WatchCost] = []
    inode_costs: list[InodeCost] = []
    if Part.INODES in plan.parts:
        inode_costs = inodes.measure(plan.inodes)
    if environment and plan.parts - WITHOUT_MODES:
        for mode in MODES:
            measured = measure_events(environment, compiled, plan, mode)
            latencies += measured[0]
            throughputs += measured[1]
            costs += measured[2]
    rates = []
    if environment and Part.OPERATIONS in plan.parts:
        rates = operations.measure(environment, compiled, servers, plan.rounds, plan.seconds)
    kernel_costs: list[kernel_cost.KernelCost] = []
    if environment and Part.KERNEL in plan.parts:
        kernel_costs = kernel_cost.measure(prepare_environment([]), environment, compiled)
    served: list[synthetic.SyntheticRate] = []
    if Part.SYNTHETIC in plan.parts:
        served = synthetic.measure(servers, plan.rounds, plan.seconds)
    report = bench_report.Report(
        described,
        tuple(latencies),
        tuple(throughputs),
        tuple(rates),
        tuple(costs),
        tuple(inode_costs),
        tuple(served),
        tuple(kernel_costs),
    )
    bench_report.show(report)
    bench_report.write_json(report, RESULT)
    say(f"  all figures, round by round: {RESULT.relative_to(CHECKOUT)}")


def compared_daemons(plan: BenchmarkPlan) -> list[daemons.MeasuredDaemon]:
    """Return the daemons with which this checkout's farwatchd is compared."""
    if plan.against is not None:
        return [daemons.another_farwatchd(plan.against)]
    return [*daemons.virtiofsd_c(), *daemons.virtiofsd_rust()]


def measure_events(
    environment: Environment, programs: programs.Programs, plan: BenchmarkPlan, mode: str
) -> tuple[Sequence[Latency], Sequence[Throughput], Sequence[WatchCost]]:
    """Measure everything about events in one guest."""
    with contextlib.ExitStack() as stack:
        share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-bench-")))
        spec = daemons.farwatchd_in_mode(mode).testbed_spec(environment, share)
        with step(f"booting a guest in mode {mode}"):
            testbed = stack.enter_context(start_testbed(spec))
        latencies, throughputs, costs = [], [], []
        if Part.LATENCY in plan.parts:
            latencies.append(events.latency(testbed, programs, mode, plan.events))
        if Part.THROUGHPUT in plan.parts:
            throughputs.append(events.throughput(testbed, programs, mode, BATCHES, plan.steady))
        if Part.WATCHES in plan.parts:
            costs += [watch_cost.cost(testbed, programs, mode, count) for count in plan.watches]
        if problems := testbed.problems():
            raise HarnessError(f"mode {mode}: {problems[0]}")
    return latencies, throughputs, costs
