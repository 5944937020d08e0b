# SPDX-License-Identifier: Apache-2.0
"""The page's section about the benchmark: the tables of the terminal, and plots."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cattrs
from markupsafe import Markup
from rich.table import Table

from farwatch_harness.bench import bench_report
from farwatch_harness.bench.bench_report import Report
from farwatch_harness.report import plots
from farwatch_harness.util.errors import HarnessError

NO_PLOT = Markup("")


@dataclass(frozen=True)
class Figures:
    """A table of the benchmark, with its plot if it has one.

    alignment: "left" or "right" for each column.
    """

    title: str
    header: tuple[str, ...]
    alignment: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    plot: Markup = NO_PLOT


def load(path: Path) -> Report | None:
    """Return the benchmark's last results; None if there are none.

    HarnessError: the file does not have the form of such results.
    """
    try:
        return cattrs.structure(json.loads(path.read_text()), Report)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, cattrs.BaseValidationError) as error:
        raise HarnessError(
            f"{path} is not what the benchmark writes ({error}): remove it or run make bench"
        ) from None


def figures_of(report: Report) -> Iterator[Figures]:
    """Yield everything that was measured, in the order of the terminal."""
    yield figures(bench_report.environment_table(report.environment))
    if report.latencies:
        yield figures(bench_report.latency_table(report.latencies), plots.latency(report.latencies))
    if report.throughputs:
        yield Figures(
            "Events per second that arrive in the guest",
            (),
            (),
            (),
            plots.throughput(report.throughputs),
        )
    for throughput in report.throughputs:
        yield figures(
            bench_report.throughput_table(throughput, bench_report.native_of(report.throughputs))
        )
    if report.starts:
        yield figures(bench_report.start_table(report.starts))
    if report.storms:
        yield figures(bench_report.storms_table(report.storms))
    if report.rates:
        yield figures(bench_report.rates_table(report.rates), plots.rates(report.rates))
        yield figures(bench_report.cpu_table(report.rates))
    if report.synthetic:
        rates = [served.rate for served in report.synthetic]
        yield figures(
            bench_report.synthetic_rates_table(rates), plots.rates(rates, "without a guest")
        )
        yield figures(bench_report.core_table(rates))
    if report.watches:
        yield figures(bench_report.watches_table(report.watches))
    if report.inodes:
        yield figures(bench_report.inodes_table(report.inodes))
    if report.kernel:
        yield figures(bench_report.kernel_table(report.kernel))


def figures(table: Table, plot: Markup = NO_PLOT) -> Figures:
    """Return one of the terminal's tables with its plot."""
    header = tuple(str(column.header) for column in table.columns)
    rows = tuple(
        zip(*((str(cell) for cell in column.cells) for column in table.columns), strict=True)
    )
    alignment = tuple(str(column.justify) for column in table.columns)
    return Figures(str(table.title), header, alignment, rows, plot)
