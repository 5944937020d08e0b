# SPDX-License-Identifier: Apache-2.0
"""The benchmark's results: its environment, tables for people, JSON for programs."""

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

from farwatch_harness.bench.daemons import MeasuredDaemon
from farwatch_harness.bench.event_readers import NATIVE
from farwatch_harness.bench.events import Latency, Throughput
from farwatch_harness.bench.inodes import InodeCost
from farwatch_harness.bench.kernel_cost import KernelCost
from farwatch_harness.bench.operations import Rate
from farwatch_harness.bench.start import StartCost
from farwatch_harness.bench.storms import StormCost
from farwatch_harness.bench.synthetic import SyntheticRate
from farwatch_harness.bench.watch_cost import WatchCost
from farwatch_harness.vm.environment import Environment

# Wide enough for all tables, if the output is not a terminal.
WIDTH = 120
OURS = "farwatchd"


@dataclass(frozen=True)
class BenchmarkEnvironment:
    """What the figures depend on.

    The guest's kernel, QEMU and accelerator are empty if no guest was measured.

    event_files: the type of the file system that the events are of.
    """

    when: str
    cpu: str
    cpus: int
    memory_gib: float
    host_kernel: str
    load_before: float
    guest_kernel: str
    qemu: str
    accelerator: str
    python: str
    servers: dict[str, str]
    event_files: str = ""


@dataclass(frozen=True)
class Report:
    """All results of one run; a part that was not measured is empty."""

    environment: BenchmarkEnvironment
    latencies: tuple[Latency, ...]
    throughputs: tuple[Throughput, ...]
    rates: tuple[Rate, ...]
    watches: tuple[WatchCost, ...]
    inodes: tuple[InodeCost, ...] = ()
    synthetic: tuple[SyntheticRate, ...] = ()
    kernel: tuple[KernelCost, ...] = ()
    storms: tuple[StormCost, ...] = ()
    starts: tuple[StartCost, ...] = ()


@dataclass(frozen=True)
class RatioChange:
    """A ratio in two runs."""

    name: str
    before: float
    now: float


def environment_of(
    environment: Environment | None, servers: Sequence[MeasuredDaemon]
) -> BenchmarkEnvironment:
    """Return the environment of this run."""
    cpu = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return BenchmarkEnvironment(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpu[0].split(":", 1)[1].strip() if cpu else platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
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
    """Return the median of the rounds' own ratios of `values` to `base`.

    Each round was measured side by side.
    """
    return statistics.median(one / other for one, other in zip(values, base, strict=True))


def least_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the ratio of the least of `values` to the least of `base`."""
    return min(values) / min(base)


def write_json(report: Report, path: Path) -> None:
    """Write the whole report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def show(report: Report) -> None:
    """Print all tables on stdout."""
    console = make_console()
    console.print(environment_table(report.environment))
    if report.latencies:
        console.print(latency_table(report.latencies))
    for throughput in report.throughputs:
        console.print(throughput_table(throughput, native_of(report.throughputs)))
    if report.starts:
        console.print(start_table(report.starts))
    if report.storms:
        console.print(storms_table(report.storms))
    if report.rates:
        console.print(rates_table(report.rates))
        console.print(cpu_table(report.rates))
    if report.synthetic:
        rates = [served.rate for served in report.synthetic]
        console.print(synthetic_rates_table(rates))
        console.print(core_table(rates))
        console.print(front_end_line(report.synthetic))
    if report.watches:
        console.print(watches_table(report.watches))
    if report.inodes:
        console.print(inodes_table(report.inodes))
    if report.kernel:
        console.print(kernel_table(report.kernel))


def show_changes(changes: Sequence[RatioChange], compared: int, when: str) -> None:
    """Print the ratios that are worse than in the recorded run of `when`, of those `compared`."""
    console = make_console()
    if not changes:
        console.print(f"None of {compared} ratios is worse by a tenth than in the run of {when}.")
        return
    made = table(f"Worse by more than a tenth than in the run of {when}", "ratio", "then", "now")
    for each in changes:
        made.add_row(each.name, f"{each.before:.2f}", f"{each.now:.2f}")
    console.print(made)


def make_console() -> Console:
    """Return a console that is wide enough for all tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def table(title: str, *columns: str) -> Table:
    """Return an empty table whose first column is text and whose other columns are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", min_width=len(title) + 4)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def environment_table(environment: BenchmarkEnvironment) -> Table:
    """Return the table of the environment."""
    made = table("Measured on", "what", "which")
    made.columns[1].justify = "left"
    made.add_row("when", environment.when)
    made.add_row("CPUs", f"{environment.cpus} x {environment.cpu}, {environment.memory_gib} GiB")
    made.add_row("load before the run", f"{environment.load_before}")
    made.add_row("host", f"Linux {environment.host_kernel}, Python {environment.python}")
    if environment.guest_kernel:
        made.add_row(
            "guest", f"{environment.guest_kernel}; {environment.qemu}; {environment.accelerator}"
        )
    if environment.event_files:
        made.add_row("events of files on", environment.event_files)
    for name, version in environment.servers.items():
        made.add_row(name, version)
    return made


def latency_table(latencies: Sequence[Latency]) -> Table:
    """Return the table of latencies, one row for each mode."""
    made = table(
        "Host write(2) to guest read(inotify)",
        "mode",
        "events",
        "median",
        "99th",
        "99.9th",
        "error",
        "getattr",
        "median / getattr",
    )
    for each in latencies:
        made.add_row(
            each.mode,
            str(each.count),
            f"{each.median:.0f} us",
            f"{each.p99:.0f} us",
            f"{each.p999:.0f} us",
            f"± {each.error:.1f} us",
            f"{each.getattr:.1f} us",
            f"{each.median / each.getattr:.2f}",
        )
    return made


def throughput_table(throughput: Throughput, native: Throughput | None = None) -> Table:
    """Return the table of one mode's throughput, one row for each batch.

    native: the same reader on the host, to compare with.
    """
    where = "by native inotify" if throughput.mode == NATIVE else f"in mode {throughput.mode}"
    title = f"Files created on the host, IN_CREATE {where}"
    made = table(
        title, "files", "created/s", "arrived/s", "of native", "arrived", "lost", "daemon's CPU"
    )
    of_native = {each.count: each.guest_rate for each in native.batches} if native else {}
    for each in throughput.batches:
        made.add_row(
            str(each.count),
            f"{each.host_rate:.0f}",
            f"{each.guest_rate:.0f}",
            share_of(each.guest_rate, of_native.get(each.count, 0.0)),
            str(each.arrived),
            "yes, with an overflow event" if each.lost else "none",
            f"{each.cpu_us:.1f} us",
        )
    steady = f"{throughput.steady_rate:.0f}" if throughput.steady_rate else "-"
    made.add_row(
        f"steady, {throughput.seconds:.0f} s",
        steady,
        steady,
        share_of(throughput.steady_rate, native.steady_rate if native else 0.0),
        "all" if throughput.steady_rate else "-",
        "none",
        "",
    )
    return made


def share_of(value: float, whole: float) -> str:
    """Return the ratio of `value` to `whole`; "-" if one of them is unknown."""
    return f"{value / whole:.2f}" if value and whole else "-"


def native_of(throughputs: Sequence[Throughput]) -> Throughput | None:
    """Return the one of the reader on the host, if it was measured."""
    return next((each for each in throughputs if each.mode == NATIVE), None)


def start_table(starts: Sequence[StartCost]) -> Table:
    """Return the table of starts, one row for each daemon."""
    made = table(
        "From the start of the daemon: medians of the time, the least of the CPU time",
        "daemon",
        "socket",
        "CPU until then",
        "ready",
        "CPU until then",
        "resident, each process",
        "in all",
    )
    for each in starts:
        made.add_row(
            short(each.server),
            f"{statistics.median(each.socket_ms):.0f} ms",
            f"{min(each.socket_cpu_ms):.0f} ms",
            f"{statistics.median(each.ready_ms):.0f} ms",
            f"{min(each.ready_cpu_ms):.0f} ms",
            " + ".join(f"{size / 1e6:.1f}" for size in each.resident) + " MB",
            f"{each.own / 1e6:.1f} MB",
        )
    return made


def storms_table(storms: Sequence[StormCost]) -> Table:
    """Return the table of storms, one row for each watcher."""
    made = table(
        "Storms of events, watched by a program that watches the whole tree",
        "storm",
        "watched by",
        "host",
        "then until read",
        "events",
        "overflows",
        "daemon's CPU",
    )
    made.columns[1].justify = "left"
    for each in sorted(storms, key=lambda cost: cost.storm):
        made.add_row(
            each.storm,
            each.mode,
            f"{each.host_s:.2f} s",
            f"{each.lag_s:.2f} s",
            str(each.events),
            str(each.overflows),
            f"{each.cpu_s:.2f} s",
        )
    return made


def rates_table(rates: Sequence[Rate]) -> Table:
    """Return the table of each daemon's operations per second, with ratios."""
    title = "File operations per second, nothing cached: medians; ratios are of the same round"
    return servers_table(title, rates, lambda rate: rate.rounds, ratio, statistics.median)


def cpu_table(rates: Sequence[Rate]) -> Table:
    """Return the table of each daemon's CPU time per operation, with ratios."""
    # Other work on the machine only adds to CPU time, for instance by evicting caches.
    title = "CPU time of the daemon per operation, us: the least of the rounds"
    return servers_table(title, rates, lambda rate: rate.cpu_us, least_ratio, min)


def synthetic_rates_table(rates: Sequence[Rate]) -> Table:
    """Return the table of operations per second without a guest, with ratios."""
    title = (
        "Without a guest, operations per second (concurrent requests): medians; ratios are of the"
        " same round"
    )
    return servers_table(title, rates, lambda rate: rate.rounds, ratio, statistics.median)


def core_table(rates: Sequence[Rate]) -> Table:
    """Return the table of operations per second of the daemon's CPU time, with ratios."""
    title = (
        "Without a guest, operations per second of the daemon's CPU time: the most of the rounds"
    )
    return servers_table(title, rates, per_core, most_ratio, max)


def per_core(rate: Rate) -> list[float]:
    """Return the operations per second of CPU time in each round."""
    return [1e6 / cpu_us for cpu_us in rate.cpu_us]


def most_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the ratio of the greatest of `values` to the greatest of `base`."""
    return max(values) / max(base)


def front_end_line(synthetic: Sequence[SyntheticRate]) -> str:
    """Return a line about the front-end's own CPU time, which shows whether it is the limit."""
    busy = max(statistics.median(served.busy) for served in synthetic)
    least, most = (pick(min(served.front_end_us) for served in synthetic) for pick in (min, max))
    return (
        f"The front-end itself: {least:.1f} to {most:.1f} us an operation, at most {100 * busy:.0f}"
        " % of the time.\n"
    )


def servers_table(
    title: str,
    rates: Sequence[Rate],
    values: Callable[[Rate], Sequence[float]],
    compare: Callable[[Sequence[float], Sequence[float]], float],
    summary: Callable[[Sequence[float]], float],
) -> Table:
    """Return a table with a row for each operation.

    A row has the number of each daemon, and each of our daemons compared with each of the others.

    values: returns the numbers of a daemon's rounds.
    compare: returns the ratio of two daemons' rounds.
    summary: returns one number for the rounds.
    """
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
    """Return a daemon's name for a heading: ours, events, C, Rust."""
    return "ours" if server == OURS else server.split()[-1]


def watches_table(costs: Sequence[WatchCost]) -> Table:
    """Return the table of the cost of watches."""
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


def kernel_table(costs: Sequence[KernelCost]) -> Table:
    """Return the table of instructions per operation, without the series and with it."""
    made = table(
        "Instructions per operation on a tmpfs", "operation", "without", "with the series", "more"
    )
    for each in costs:
        made.add_row(
            f"{each.operation.title}{', watched' if each.watched else ''}",
            f"{each.before:.0f}",
            f"{each.after:.0f}",
            f"{100 * (each.after / each.before - 1):+.1f} %",
        )
    return made


def inodes_table(costs: Sequence[InodeCost]) -> Table:
    """Return the table of the cost of inodes."""
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
    """Return the number of watches, and if a limit was reached, of how many."""
    return (
        str(cost.count) if cost.watched == cost.count else f"{cost.watched} of {cost.count}: limit"
    )
