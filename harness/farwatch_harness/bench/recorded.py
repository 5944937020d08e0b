# SPDX-License-Identifier: Apache-2.0
"""The last recorded run of each class of machines, and what has become worse since.

Only ratios are compared: both sides of each were measured in the same run, and so under the same
load. docs/benchmarks/CLASS.json has them.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cattrs

from farwatch_harness.bench import bench_report
from farwatch_harness.bench.bench_report import OURS, BenchmarkEnvironment, RatioChange, Report
from farwatch_harness.bench.event_readers import NATIVE
from farwatch_harness.bench.operations import Rate
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

FOLDER = paths.CHECKOUT / "docs" / "benchmarks"
#: A ratio that is lower than before by more than this part is worse.
TOLERANCE = 0.1
PER_CPU_TIME = " per CPU time"


@dataclass(frozen=True)
class RecordedRun:
    """A run that was recorded. ratios: of ours to another's; greater is better."""

    environment: BenchmarkEnvironment
    ratios: dict[str, float]


def record_path(environment: BenchmarkEnvironment) -> Path:
    """Return the file of the machine's class: number and model of its CPUs."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{environment.cpus} {environment.cpu}".lower())
    return FOLDER / f"{name.strip('-')}.json"


def ratios_of(report: Report) -> dict[str, float]:
    """Return all ratios of a run by their names; greater is better.

    Without a guest those of CPU time alone: on a busy machine those of the time scatter by more
    than the tolerance.
    """
    synthetic = [served.rate for served in report.synthetic]
    return {
        **{f"in a guest, {name}": ratio for name, ratio in rate_ratios(list(report.rates))},
        **{
            f"without a guest, {name}": ratio
            for name, ratio in rate_ratios(synthetic)
            if PER_CPU_TIME in name
        },
        **dict(event_ratios(report)),
    }


def rate_ratios(rates: list[Rate]) -> Iterator[tuple[str, float]]:
    """Yield the ratios of our daemons to each other one: operations per time and per CPU time."""
    found = {(rate.operation, rate.server): rate for rate in rates}
    for (operation, server), rate in found.items():
        if not server.startswith(OURS):
            continue
        for (other_operation, other), base in found.items():
            if other_operation != operation or other.startswith(OURS):
                continue
            pair = f"{bench_report.short(server)} / {bench_report.short(other)}"
            yield f"{operation.title}, {pair}", bench_report.ratio(rate.rounds, base.rounds)
            yield (
                f"{operation.title}{PER_CPU_TIME}, {pair}",
                bench_report.least_ratio(base.cpu_us, rate.cpu_us),
            )


def event_ratios(report: Report) -> Iterator[tuple[str, float]]:
    """Yield getattr's time to the latency of events, and events per second to native ones."""
    for each in report.latencies:
        if each.mode != NATIVE:
            yield f"events, mode {each.mode}, getattr / latency", each.getattr / each.median
    native = bench_report.native_of(report.throughputs)
    if native is None or not native.best_rate:
        return
    for throughput in report.throughputs:
        if throughput is not native:
            yield (
                f"events, mode {throughput.mode}, per second / native",
                throughput.best_rate / native.best_rate,
            )


def load(path: Path) -> RecordedRun | None:
    """Return the recorded run; None if there is none.

    HarnessError: the file does not have the form of such a run.
    """
    try:
        return cattrs.structure(json.loads(path.read_text()), RecordedRun)
    except FileNotFoundError:
        return None
    except (ValueError, cattrs.BaseValidationError) as error:
        raise HarnessError(
            f"{path} is not a recorded run ({error}): remove it, or make one by make bench"
            ' ARGS="--record"'
        ) from None


def record(report: Report, path: Path) -> None:
    """Write the ratios of a run, in the place of the former one."""
    run = RecordedRun(
        report.environment,
        {name: round(ratio, 3) for name, ratio in sorted(ratios_of(report).items())},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(run), indent=2) + "\n")


def worse(now: dict[str, float], before: dict[str, float]) -> list[RatioChange]:
    """Return the ratios that both runs have and that are worse now, worst first."""
    changes = [RatioChange(name, before[name], now[name]) for name in now.keys() & before.keys()]
    found = [each for each in changes if each.now < (1 - TOLERANCE) * each.before]
    return sorted(found, key=lambda each: (each.now / each.before, each.name))
