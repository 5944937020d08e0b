# SPDX-License-Identifier: Apache-2.0
"""The benchmark's results: the machine they were taken on, tables for people, JSON for programs."""

import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from farwatch_harness.bench.daemons import Server
from farwatch_harness.bench.events import Latency, Throughput
from farwatch_harness.bench.inodes import InodeCost
from farwatch_harness.bench.operations import Rate
from farwatch_harness.bench.synthetic import Served
from farwatch_harness.bench.watches import WatchCost
from farwatch_harness.vm.environment import Environment

# Wide enough for all tables where the output is no terminal.
WIDTH = 120
OURS = "farwatchd"


@dataclass(frozen=True)
class Surroundings:
    """What the figures depend on; the guest's kernel, QEMU and accelerator are empty where no guest
    was measured."""

    when: str
    processor: str
    processors: int
    memory_gib: float
    host_kernel: str
    load_before: float
    guest_kernel: str
    qemu: str
    accelerator: str
    python: str
    servers: dict[str, str]


@dataclass(frozen=True)
class Report:
    """All results of one run; a part that was not asked for is empty."""

    surroundings: Surroundings
    latencies: tuple[Latency, ...]
    throughputs: tuple[Throughput, ...]
    rates: tuple[Rate, ...]
    watches: tuple[WatchCost, ...]
    inodes: tuple[InodeCost, ...] = ()
    synthetic: tuple[Served, ...] = ()


def surroundings(environment: Environment | None, servers: Sequence[Server]) -> Surroundings:
    """The facts of this machine and of what is measured."""
    cpu = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Surroundings(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        processor=cpu[0].split(":", 1)[1].strip() if cpu else platform.machine(),
        processors=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        host_kernel=platform.release(),
        load_before=round(os.getloadavg()[0], 2),
        guest_kernel=environment.kernel.title if environment else "",
        qemu=environment.qemu.version if environment else "",
        accelerator=environment.accelerator.value if environment else "",
        python=platform.python_version(),
        servers={server.name: server.version for server in servers},
    )


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """`values` over `base`: the median of the rounds' own ratios, since each round was measured
    side by side."""
    return statistics.median(one / other for one, other in zip(values, base, strict=True))


def least_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The least of `values` over the least of `base`."""
    return min(values) / min(base)


def write_json(report: Report, path: Path) -> None:
    """The whole report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def show(report: Report) -> None:
    """Prints all tables on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(surroundings_table(report.surroundings))
    if report.latencies:
        console.print(latency_table(report.latencies))
    for throughput in report.throughputs:
        console.print(throughput_table(throughput))
    if report.rates:
        console.print(rates_table(report.rates))
        console.print(processor_table(report.rates))
    if report.synthetic:
        rates = [served.rate for served in report.synthetic]
        console.print(synthetic_rates_table(rates))
        console.print(core_table(rates))
        console.print(front_end_line(report.synthetic))
    if report.watches:
        console.print(watches_table(report.watches))
    if report.inodes:
        console.print(inodes_table(report.inodes))


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", min_width=len(title) + 4)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def surroundings_table(facts: Surroundings) -> Table:
    made = table("Measured on", "what", "which")
    made.columns[1].justify = "left"
    made.add_row("when", facts.when)
    made.add_row("processor", f"{facts.processors} x {facts.processor}, {facts.memory_gib} GiB")
    made.add_row("load before the run", f"{facts.load_before}")
    made.add_row("host", f"Linux {facts.host_kernel}, Python {facts.python}")
    if facts.guest_kernel:
        made.add_row("guest", f"{facts.guest_kernel}; {facts.qemu}; {facts.accelerator}")
    for name, version in facts.servers.items():
        made.add_row(name, version)
    return made


def latency_table(latencies: Sequence[Latency]) -> Table:
    made = table(
        "Host write(2) to guest read(inotify)",
        "mode",
        "events",
        "median",
        "99th",
        "error",
        "round trip",
    )
    for each in latencies:
        made.add_row(
            each.mode,
            str(each.count),
            f"{each.median:.0f} us",
            f"{each.p99:.0f} us",
            f"± {each.error:.0f} us",
            f"{each.round_trip:.0f} us",
        )
    return made


def throughput_table(throughput: Throughput) -> Table:
    title = f"Files created on the host, IN_CREATE in the guest, mode {throughput.mode}"
    made = table(title, "files", "created/s", "arrived/s", "arrived", "lost")
    for each in throughput.batches:
        made.add_row(
            str(each.count),
            f"{each.host_rate:.0f}",
            f"{each.guest_rate:.0f}",
            str(each.arrived),
            "yes, and told (overflow)" if each.lost else "none",
        )
    steady = f"{throughput.steady_rate:.0f}" if throughput.steady_rate else "-"
    made.add_row(
        f"steady, {throughput.seconds:.0f} s",
        steady,
        steady,
        "all" if throughput.steady_rate else "-",
        "none",
    )
    return made


def rates_table(rates: Sequence[Rate]) -> Table:
    """Each server's operations per second, and ours against theirs."""
    title = "File operations a second, nothing cached: medians; ratios are of the same round"
    return servers_table(title, rates, lambda rate: rate.rounds, ratio, statistics.median)


def processor_table(rates: Sequence[Rate]) -> Table:
    """Each daemon's processor time per operation, and ours against theirs."""
    # Other work on the machine only adds to it, by emptying the caches for instance.
    title = "Processor time of the daemon per operation, us: the least of the rounds"
    return servers_table(title, rates, lambda rate: rate.cpu_us, least_ratio, min)


def synthetic_rates_table(rates: Sequence[Rate]) -> Table:
    """Without a guest: operations per second, and ours against theirs."""
    title = (
        "Without a guest, operations a second (requests at a time): medians; ratios are of the same"
        " round"
    )
    return servers_table(title, rates, lambda rate: rate.rounds, ratio, statistics.median)


def core_table(rates: Sequence[Rate]) -> Table:
    """Without a guest: operations per second of the daemon's processor time, and ours against
    theirs."""
    title = (
        "Without a guest, operations per second of the daemon's processor time: the most of the"
        " rounds"
    )
    return servers_table(title, rates, per_core, most_ratio, max)


def per_core(rate: Rate) -> list[float]:
    """Operations per second of processor time, in each round."""
    return [1e6 / cpu_us for cpu_us in rate.cpu_us]


def most_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The most of `values` over the most of `base`."""
    return max(values) / max(base)


def front_end_line(synthetic: Sequence[Served]) -> str:
    """What the front end needed itself, so that one sees whether it is what limits."""
    busy = max(statistics.median(served.busy) for served in synthetic)
    least, most = (pick(min(served.front_end_us) for served in synthetic) for pick in (min, max))
    return (
        f"The front end itself: {least:.1f} to {most:.1f} us an operation, at most {100 * busy:.0f}"
        " % of the time.\n"
    )


def servers_table(
    title: str,
    rates: Sequence[Rate],
    values: Callable[[Rate], Sequence[float]],
    compare: Callable[[Sequence[float], Sequence[float]], float],
    summary: Callable[[Sequence[float]], float],
) -> Table:
    """A row for each operation: a number of each server, and each of ours compared with each of the
    others."""
    servers = list(dict.fromkeys(rate.server for rate in rates))
    ours = [name for name in servers if name.startswith(OURS)]
    pairs = [(name, other) for other in servers if other not in ours for name in ours]
    made = table(
        title,
        "operation",
        *map(short, servers),
        *(f"{short(one)} / {short(other)}" for one, other in pairs),
    )
    found = {(rate.operation, rate.server): values(rate) for rate in rates}
    for operation in dict.fromkeys(rate.operation for rate in rates):
        cells = [f"{summary(found[operation, name]):.0f}" for name in servers]
        cells += [
            f"{compare(found[operation, one], found[operation, other]):.2f}" for one, other in pairs
        ]
        made.add_row(f"{operation.title}{operation.unit}", *cells)
    return made


def short(server: str) -> str:
    """A server's name for a heading: ours, events, C, Rust."""
    return "ours" if server == OURS else server.split()[-1]


def watches_table(costs: Sequence[WatchCost]) -> Table:
    columns = (
        "lookup",
        "watch",
        "close",
        "daemon's time",
        "daemon's RSS",
        "guest's slab",
        "files",
        "left",
    )
    made = table("Cost per inode that the guest knows + per watch", "mode, watches", *columns)
    for each in costs:
        made.add_row(
            f"{each.mode}, {reached(each)}",
            f"{each.lookup_us:.0f} us",
            f"{each.watch_us:.0f} us",
            f"{each.close_us:.1f} us",
            f"{each.lookup_cpu_us:.0f} + {each.watch_cpu_us:.0f} us",
            f"{each.daemon_bytes_known:.0f} + {each.daemon_bytes_watched:.0f} B",
            f"{each.guest_slab_known:.0f} + {each.guest_slab_watched:.0f} B",
            f"{each.descriptors:.1f}",
            f"{each.left} of {each.host_marks}",
        )
    return made


def inodes_table(costs: Sequence[InodeCost]) -> Table:
    columns = (
        "one",
        "getattr",
        "lookup",
        "open",
        "mask",
        "event",
        "renew",
        "end",
        "RSS, inode",
        "RSS, watch",
        "files",
    )
    made = table(
        "The daemon's own cost of an operation, us, with more and more inodes watched",
        "inodes",
        *columns,
    )
    for each in costs:
        times = (
            each.getattr_hot,
            each.getattr,
            each.lookup,
            each.open,
            each.set_mask,
            each.event,
            each.renew,
            each.end,
        )
        memory = f"{each.bytes_known:.0f} B", f"{each.bytes_watched:.0f} B", str(each.descriptors)
        made.add_row(str(each.count), *(f"{time:.1f}" for time in times), *memory)
    return made


def reached(cost: WatchCost) -> str:
    """How many watches there were, and of how many where a limit was met."""
    return (
        str(cost.count) if cost.watched == cost.count else f"{cost.watched} of {cost.count}: limit"
    )
