# SPDX-License-Identifier: Apache-2.0
"""One run of the matrix: puts the checks together, keeps what they find, and says how it ended."""

import contextlib
import fcntl
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from farwatch_harness import report
from farwatch_harness.bench import run as bench_run
from farwatch_harness.kernel import source_tree
from farwatch_harness.matrix.apply_check import applier
from farwatch_harness.matrix.check_outcome import Steps
from farwatch_harness.matrix.environment import guest_facts, host_facts
from farwatch_harness.matrix.estimates import Forecast
from farwatch_harness.matrix.guest_checks import ALL_TESTS, GuestRuns
from farwatch_harness.matrix.live_table import Display
from farwatch_harness.matrix.prefixes import Row, described, rows_of
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST
from farwatch_harness.matrix.scheduler import Walk
from farwatch_harness.matrix.static_checks import Static
from farwatch_harness.report import benchmark
from farwatch_harness.results import Check, CheckName, PatchResult, Run, State, save
from farwatch_harness.util import apt, paths
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.environment import equip, patches_of_series

RESULTS = report.FOLDER / report.RESULTS
BASE = "the base"


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Keeping:
    """Witness of a walk: shows each cell and writes what has been found so far after each check."""

    def __init__(
        self,
        display: Display,
        forecast: Forecast,
        path: Path,
        facts: dict[str, str],
        more_facts: Callable[[], dict[str, str]],
    ) -> None:
        self.display = display
        self.forecast = forecast
        self.path = path
        # What can be known only when there is a kernel to try it with.
        self.more_facts = more_facts
        self.run = Run(now(), now(), facts, ())

    def walked(self, rows: Sequence[Row], steps: Steps, base: str) -> Run:
        """Walks the rows. What an earlier run left is gone at once, so that it is not taken for
        this one's."""
        self.path.unlink(missing_ok=True)
        Walk(steps, self, self.works_hard).over((row, described(row, base)) for row in rows)
        return self.run

    def works_hard(self, row: Row) -> bool:
        """Whether the row's kernel is to be built."""
        return not self.forecast.is_at_hand(row, CheckName.BUILD)

    def began(self, row: Row, name: CheckName) -> None:
        self.display.began(row, name)

    def ended(self, row: Row, check: Check, result: PatchResult, wall: float) -> None:
        self.display.ended(row, check)
        if check.state is State.PASSED:
            self.forecast.learn(row, check.name, wall)
        facts = self.run.facts
        if not row.number and check.name is CheckName.BUILD and check.state is State.PASSED:
            facts = {**facts, **self.more_facts()}
        others = [patch for patch in self.run.patches if patch.number != row.number]
        patches = tuple(sorted([*others, result], key=lambda patch: patch.number))
        self.run = Run(self.run.started, now(), facts, patches)
        save(self.run, self.path)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nobody else writes this checkout's results meanwhile."""
    paths.REPORT.mkdir(parents=True, exist_ok=True)
    with (paths.REPORT / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(
                "another run of the matrix is under way in this checkout: wait for it"
            ) from None
        yield


def run_matrix(
    folder: Path, choice: str | None, checks: Sequence[CheckName], path: Path = RESULTS
) -> Run:
    """Runs the checks of the chosen patches of the series in `folder`; the results are in `path`
    all the time."""
    series = patches_of_series(folder=folder)
    rows = rows_of(series, choice)
    # The tests begin with the boot.
    wanted = {*checks, CheckName.BOOT} if CheckName.TESTS in checks else set(checks)
    names = [name for name in CheckName if name in wanted]
    with alone():
        apt.install(apt.MATRIX, paths.LOGS / "apt-matrix.log")
        source = source_tree.find_source()
        forecast = Forecast(rows)
        display = Display(rows, names, forecast)
        keeping = Keeping(
            display, forecast, path, host_facts(source), lambda: guest_facts(equip([]))
        )
        static = Static(source)
        tests = ALL_TESTS if CheckName.TESTS in names else f"{ALL_TESTS}/{BOOT_TEST}"
        guests = GuestRuns(folder, display.now, tests)
        with applier(source.path, series) as applying, contextlib.closing(guests), display.shown():
            every: Steps = {
                CheckName.APPLY: applying.check,
                CheckName.CHECKPATCH: static.checkpatch,
                CheckName.BUILD: static.build,
                CheckName.SPARSE: static.sparse,
                CheckName.BOOT: guests.boot,
                CheckName.TESTS: guests.tests,
            }
            return keeping.walked(rows, {name: every[name] for name in names}, source.identity)


def table_of(run: Run) -> str:
    """The states of all cells, to be read without a terminal."""
    width = max(len(patch.file.removesuffix(".patch") or BASE) for patch in run.patches)
    lines = [f"{'':{width + 3}}  {' '.join(f'{name:10}' for name in CheckName)}"]
    for patch in run.patches:
        cells = " ".join(
            f"{check.state if check.state is not State.ABSENT else '':10}" for check in patch.checks
        )
        lines.append(
            f"{patch.number:>2} {patch.file.removesuffix('.patch') or BASE:{width}}"
            f"  {cells}".rstrip()
        )
    return "\n".join(lines)


def summary(run: Run) -> list[str]:
    """The end of the story, in lines: each failure by patch and check, or that there is none."""
    lines: list[str] = []
    for patch in run.patches:
        name = patch.file.removesuffix(".patch") or BASE
        lines += [f"FAILED {name}: {check.name}: {check.reason}" for check in patch.failed]
    blocked = sum(check.state is State.BLOCKED for patch in run.patches for check in patch.checks)
    passed = sum(check.state is State.PASSED for patch in run.patches for check in patch.checks)
    tests = sum(test.state is State.PASSED for patch in run.patches for test in patch.tests)
    count = f"{passed} checks passed, {len(lines)} failed, {blocked} blocked"
    return [*lines, f"{count}; {tests} tests passed on {len(run.patches)} kernels"]


def matrix(folder: Path, choice: str | None, checks: Sequence[CheckName], path: Path) -> int:
    """The command: runs, reports beside the results, says how it ended, and fails when anything
    did."""
    run = run_matrix(folder, choice, checks, path)
    page = report.write(run, path.parent, benchmark.load(bench_run.RESULT))
    if not sys.stderr.isatty():
        print(table_of(run))
    print(*summary(run), sep="\n")
    print(f"The report is in {page}, the results are in {path}", flush=True)
    return 0 if run.ok else 1
