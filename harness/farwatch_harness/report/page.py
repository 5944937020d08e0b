# SPDX-License-Identifier: Apache-2.0
"""A run as one HTML page: no script, nothing from elsewhere; templates/ says how it looks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from farwatch_harness.bench.bench_report import Report
from farwatch_harness.report import benchmark, diff, events, message, text
from farwatch_harness.results import Check, CheckName, PatchResult, Run, State, TestResult
from farwatch_harness.util.progress import duration

# Characters of all logs together, and of each: the longest of these limits with which all fit.
LOGS_BUDGET = 1_500_000
LOG_LIMITS = (64_000, 32_000, 16_000, 8_000, 4_000, 2_000, 1_000)
SIGNS = {State.PASSED: "✓", State.FAILED: "✗", State.BLOCKED: "○", State.ABSENT: "·"}
WORDS = {
    State.PASSED: "passed",
    State.FAILED: "failed",
    State.BLOCKED: "blocked",
    State.ABSENT: "not run",
}


@dataclass(frozen=True)
class Row:
    """A patch as the page shows it: every check has its cell, and the tests are sorted by what a
    reader looks for.

    `earlier` are the tests of the patches before, which ran again on this kernel; `failing` are of
    either kind.
    """

    patch: PatchResult
    cells: tuple[Check, ...]
    message: tuple[message.Block, ...]
    files: tuple[diff.FileDiff, ...]
    failing: tuple[TestResult, ...]
    own: tuple[TestResult, ...]
    earlier: tuple[TestResult, ...]

    @property
    def anchor(self) -> str:
        """What the page's links to this patch end in."""
        return f"patch-{self.patch.number}"

    @property
    def label(self) -> str:
        """The patch's number as its file has it; the base has none."""
        return f"{self.patch.number:04}" if self.patch.number else "base"

    @property
    def state(self) -> State:
        """The worst of its checks."""
        found = {check.state for check in self.cells}
        return next(
            (state for state in (State.FAILED, State.BLOCKED, State.PASSED) if state in found),
            State.ABSENT,
        )

    @property
    def seconds(self) -> float:
        """The time of all its checks."""
        return sum(check.seconds for check in self.cells)


def render(run: Run, bench: Report | None) -> str:
    """The page for a run and a benchmark whose text is harmless."""
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
        verdict=verdict(rows),
        took=took(run),
        tally=tally(run),
        failures=[(row, check) for row in rows for check in row.patch.failed],
        checks=list(CheckName),
        signs=SIGNS,
        words=WORDS,
        State=State,
        events=events,
        figures=list(benchmark.figures_of(bench)) if bench else [],
    )


def row_of(patch: PatchResult) -> Row:
    """What the page shows of a patch."""
    known = {check.name: check for check in patch.checks}
    cells = tuple(known.get(name, Check(name, State.ABSENT)) for name in CheckName)
    rest = [test for test in patch.tests if test.state is not State.FAILED]
    return Row(
        patch=patch,
        cells=cells,
        message=tuple(message.blocks(patch.message)),
        files=tuple(diff.files_of(patch.diff)),
        failing=tuple(test for test in patch.tests if test.state is State.FAILED),
        own=tuple(test for test in rest if test.patch == patch.number),
        earlier=tuple(test for test in rest if test.patch != patch.number),
    )


def sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows under the headings of the series file, in order."""
    return [
        (name, list(group))
        for name, group in itertools.groupby(rows, key=lambda row: row.patch.section)
    ]


def verdict(rows: Sequence[Row]) -> tuple[State, str]:
    """The page's first sentence, and the state that it tells."""
    for state, word in (
        (State.FAILED, "Failed"),
        (State.BLOCKED, "Not all was run"),
        (State.PASSED, "Passed"),
    ):
        found = [row for row in rows if row.state is state]
        if found:
            return state, f"{word}: {ranges(found)}"
    return State.ABSENT, "Nothing was run"


def ranges(rows: Sequence[Row]) -> str:
    """The rows' labels, three and more neighbours as `0001 to 0003`."""
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
    """How many tests ran, on all kernels together, and how many failed."""
    states = [
        test.state
        for patch in run.patches
        for test in patch.tests
        if test.state in (State.PASSED, State.FAILED)
    ]
    failed = states.count(State.FAILED)
    return f"{len(states)} run" + (f", {failed} failed" if failed else "")


def moment(time: str) -> str:
    """A time of the records for people; as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return time


def took(run: Run) -> str:
    """How long the run took, empty where its times do not tell."""
    try:
        return duration(
            (
                datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.started)
            ).total_seconds()
        )
    except (TypeError, ValueError):
        return ""


def log_limit(run: Run) -> int:
    """How many characters of each log are shown."""
    outputs = [check.output for patch in run.patches for check in patch.checks]
    outputs += [test.output for patch in run.patches for test in patch.tests]
    outputs += [log for patch in run.patches for log in patch.logs.values()]
    sizes = [len(output) for output in outputs]
    fitting = (
        limit for limit in LOG_LIMITS if sum(min(size, limit) for size in sizes) <= LOGS_BUDGET
    )
    return next(fitting, LOG_LIMITS[-1])
