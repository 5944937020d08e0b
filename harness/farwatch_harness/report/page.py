# SPDX-License-Identifier: Apache-2.0
"""Renders a run as one HTML page, with no script and no external resource; see templates/."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from farwatch_harness.bench.bench_report import Report
from farwatch_harness.report import benchmark, diff, event_table, message, text
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Run, Status, TestResult
from farwatch_harness.util.progress import duration

# Characters: of all logs together, and of each log. The longest limit with which all fit is used.
LOGS_BUDGET = 1_500_000
LOG_LIMITS = (64_000, 32_000, 16_000, 8_000, 4_000, 2_000, 1_000)
SIGNS = {Status.PASSED: "✓", Status.FAILED: "✗", Status.BLOCKED: "○", Status.SKIPPED: "·"}
WORDS = {
    Status.PASSED: "passed",
    Status.FAILED: "failed",
    Status.BLOCKED: "blocked",
    Status.SKIPPED: "skipped",
}


@dataclass(frozen=True)
class Row:
    """A patch as the page shows it.

    cells: one for each check.
    failing: the tests that failed, of this patch and of earlier ones.
    own: the other tests of this patch.
    earlier: the other tests of earlier patches, which ran again on this kernel.
    """

    patch: PatchResult
    cells: tuple[CheckResult, ...]
    message: tuple[message.Block, ...]
    files: tuple[diff.FileDiff, ...]
    failing: tuple[TestResult, ...]
    own: tuple[TestResult, ...]
    earlier: tuple[TestResult, ...]

    @property
    def anchor(self) -> str:
        """The fragment of links to this patch."""
        return f"patch-{self.patch.number}"

    @property
    def label(self) -> str:
        """The patch's number as in its file name; "base" for the base."""
        return f"{self.patch.number:04}" if self.patch.number else "base"

    @property
    def status(self) -> Status:
        """The worst of its checks."""
        found = {check.status for check in self.cells}
        return next(
            (
                status
                for status in (Status.FAILED, Status.BLOCKED, Status.PASSED)
                if status in found
            ),
            Status.SKIPPED,
        )

    @property
    def seconds(self) -> float:
        """The time of all its checks."""
        return sum(check.seconds for check in self.cells)


@dataclass(frozen=True)
class VersionRow:
    """The last run of a kernel version, as the page shows it beside those of the others.

    name: the version.
    run: the run.
    last: the row of its last patch.
    """

    name: str
    run: Run
    last: Row


def render(run: Run, bench: Report | None, versions: Sequence[tuple[str, Run]] = ()) -> str:
    """Return the page. The text of the runs and of the benchmark must be harmless().

    versions: the last run of each kernel version, by the version's name.
    """
    environment = Environment(
        loader=PackageLoader("farwatch_harness.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    limit = log_limit(run)
    environment.filters["duration"] = duration
    environment.filters["moment"] = moment
    environment.filters["count"] = text.count
    environment.filters["excerpt"] = lambda output: text.excerpt(output, limit)
    rows = [row_of(patch) for patch in run.patches]
    return environment.get_template("page.html").render(
        run=run,
        rows=rows,
        sections=sections(rows),
        result=overall_result(rows),
        took=took(run),
        tally=tally,
        versions=[
            VersionRow(name, each, row_of(each.patches[-1]))
            for name, each in versions
            if each.patches
        ],
        failures=[(row, check) for row in rows for check in row.patch.failed],
        checks=list(CheckName),
        signs=SIGNS,
        words=WORDS,
        Status=Status,
        events=event_table,
        figures=list(benchmark.figures_of(bench)) if bench else [],
    )


def row_of(patch: PatchResult) -> Row:
    """Return what the page shows of a patch."""
    known = {check.name: check for check in patch.checks}
    cells = tuple(known.get(name, CheckResult(name, Status.SKIPPED)) for name in CheckName)
    rest = [test for test in patch.tests if test.status is not Status.FAILED]
    return Row(
        patch=patch,
        cells=cells,
        message=tuple(message.blocks(patch.message)),
        files=tuple(diff.files_of(patch.diff)),
        failing=tuple(test for test in patch.tests if test.status is Status.FAILED),
        own=tuple(test for test in rest if test.patch == patch.number),
        earlier=tuple(test for test in rest if test.patch != patch.number),
    )


def sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Group the rows by the headings of the series file, in order."""
    return [
        (name, list(group))
        for name, group in itertools.groupby(rows, key=lambda row: row.patch.section)
    ]


def overall_result(rows: Sequence[Row]) -> tuple[Status, str]:
    """Return the overall status, and the page's first sentence."""
    for status, word in (
        (Status.FAILED, "Failed"),
        (Status.BLOCKED, "Incomplete"),
        (Status.PASSED, "Passed"),
    ):
        found = [row for row in rows if row.status is status]
        if found:
            return status, f"{word}: {ranges(found)}"
    return Status.SKIPPED, "No check ran"


def ranges(rows: Sequence[Row]) -> str:
    """Return the rows' labels; three or more neighbours as "0001 to 0003"."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and groups[-1][-1].patch.number == row.patch.number - 1:
            groups[-1].append(row)
        else:
            groups.append([row])
    words = []
    for group in groups:
        labels = [row.label for row in group]
        words += labels if len(labels) < 3 else [f"{labels[0]} to {labels[-1]}"]
    return ", ".join(words)


def tally(run: Run) -> str:
    """Return how many tests ran on all kernels together, and how many failed."""
    statuses = [
        test.status
        for patch in run.patches
        for test in patch.tests
        if test.status in (Status.PASSED, Status.FAILED)
    ]
    failed = statuses.count(Status.FAILED)
    return f"{len(statuses)} run" + (f", {failed} failed" if failed else "")


def moment(time: str) -> str:
    """Format a time of the records for people. Return other text unchanged."""
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return time


def took(run: Run) -> str:
    """Return how long the run took; empty if its times are invalid."""
    try:
        return duration(
            (
                datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.started)
            ).total_seconds()
        )
    except (TypeError, ValueError):
        return ""


def log_limit(run: Run) -> int:
    """Return the limit of characters for each log."""
    outputs = [check.output for patch in run.patches for check in patch.checks]
    outputs += [test.output for patch in run.patches for test in patch.tests]
    outputs += [log for patch in run.patches for log in patch.logs.values()]
    sizes = [len(output) for output in outputs]
    fitting = (
        limit for limit in LOG_LIMITS if sum(min(size, limit) for size in sizes) <= LOGS_BUDGET
    )
    return next(fitting, LOG_LIMITS[-1])
