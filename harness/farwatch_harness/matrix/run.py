# SPDX-License-Identifier: Apache-2.0
"""Runs all checks of a series, and writes and summarizes the results."""

import contextlib
import fcntl
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from farwatch_harness import report
from farwatch_harness.bench import run as bench_run
from farwatch_harness.kernel import source_tree
from farwatch_harness.matrix import option_checks
from farwatch_harness.matrix.apply_check import apply_check
from farwatch_harness.matrix.check_outcome import CheckRunners
from farwatch_harness.matrix.estimates import Estimates
from farwatch_harness.matrix.guest_checks import ALL_TESTS, GuestChecks
from farwatch_harness.matrix.live_table import LiveTable
from farwatch_harness.matrix.prefixes import Prefix, select_prefixes, unchecked_result
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST
from farwatch_harness.matrix.run_environment import guest_environment, host_environment
from farwatch_harness.matrix.scheduler import Scheduler
from farwatch_harness.matrix.static_checks import StaticChecks
from farwatch_harness.report import benchmark
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Run, Status, save
from farwatch_harness.util import apt, paths
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.environment import patches_of_series, prepare_environment


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ResultWriter:
    """Writes the results after each check, and shows them.

    path: the results file; replaced after each check.
    environment: what is known before the first kernel.
    guest_environment: called after the base was built, as the accelerator needs a kernel to try.
    """

    def __init__(
        self,
        table: LiveTable,
        estimates: Estimates,
        path: Path,
        environment: dict[str, str],
        guest_environment: Callable[[], dict[str, str]],
    ) -> None:
        self.table = table
        self.estimates = estimates
        self.path = path
        self.guest_environment = guest_environment
        self.run = Run(now(), now(), environment, ())

    def run_all(self, prefixes: Sequence[Prefix], runners: CheckRunners, base: str) -> Run:
        """Run the checks of these prefixes and return the results.

        The results of an earlier run are removed first, so that nobody mistakes them for this
        run's. `base` names the kernel source.
        """
        self.path.unlink(missing_ok=True)
        Scheduler(runners, self, self.must_build).run(
            (prefix, unchecked_result(prefix, base)) for prefix in prefixes
        )
        return self.run

    def must_build(self, prefix: Prefix) -> bool:
        """Return whether the prefix's kernel has to be built."""
        return not self.estimates.is_cached(prefix, CheckName.BUILD)

    def check_started(self, prefix: Prefix, name: CheckName) -> None:
        """Show that a check has started."""
        self.table.check_started(prefix, name)

    def check_finished(
        self, prefix: Prefix, check: CheckResult, result: PatchResult, wall: float
    ) -> None:
        """Show the result, and write all results so far."""
        self.table.check_finished(prefix, check)
        if check.status is Status.PASSED:
            self.estimates.record(prefix, check.name, wall)
        environment = self.run.environment
        if not prefix.number and check.name is CheckName.BUILD and check.status is Status.PASSED:
            environment = {**environment, **self.guest_environment()}
        others = [patch for patch in self.run.patches if patch.number != prefix.number]
        patches = tuple(sorted([*others, result], key=lambda patch: patch.number))
        self.run = Run(self.run.started, now(), environment, patches)
        save(self.run, self.path)


@contextlib.contextmanager
def exclusive_run() -> Iterator[None]:
    """Hold the lock on this checkout's results. HarnessError: another run has it."""
    paths.REPORT.mkdir(parents=True, exist_ok=True)
    with (paths.REPORT / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(
                "another run is in progress in this checkout: wait for it, or use another checkout"
            ) from None
        yield


def run_matrix(folder: Path, choice: str | None, checks: Sequence[CheckName], path: Path) -> Run:
    """Run checks of the chosen patches of the series in `folder`.

    choice: patches as select_prefixes() takes them; None for all.
    path: the results file; replaced after each check.
    """
    series = patches_of_series(folder=folder)
    prefixes = select_prefixes(series, choice)
    # The first test boots the guest.
    wanted = {*checks, CheckName.BOOT} if CheckName.TESTS in checks else set(checks)
    names = [name for name in CheckName if name in wanted]
    with exclusive_run():
        apt.install(apt.MATRIX, paths.LOGS / "apt-matrix.log")
        source = source_tree.find_source()
        estimates = Estimates(prefixes)
        table = LiveTable(prefixes, names, estimates)
        writer = ResultWriter(
            table,
            estimates,
            path,
            host_environment(source),
            lambda: guest_environment(prepare_environment([])),
        )
        static = StaticChecks(source)
        tests = ALL_TESTS if CheckName.TESTS in names else f"{ALL_TESTS}/{BOOT_TEST}"
        guests = GuestChecks(folder, table.set_caption, tests)
        with (
            apply_check(source.path, series) as applying,
            contextlib.closing(guests),
            table.shown(),
        ):
            every: CheckRunners = {
                CheckName.APPLY: applying.check,
                CheckName.CHECKPATCH: static.checkpatch,
                CheckName.BUILD: static.build,
                CheckName.SPARSE: static.sparse,
                CheckName.OPTIONS: option_checks.check,
                CheckName.BOOT: guests.boot,
                CheckName.TESTS: guests.tests,
            }
            return writer.run_all(prefixes, {name: every[name] for name in names}, source.identity)


def table_of(run: Run) -> str:
    """Return a table of all results as plain text."""
    width = max(len(patch.title) for patch in run.patches)
    lines = [f"{'':{width}}  {' '.join(f'{name:10}' for name in CheckName)}"]
    for patch in run.patches:
        cells = " ".join(
            f"{check.status if check.status is not Status.SKIPPED else '':10}"
            for check in patch.checks
        )
        lines.append(f"{patch.title:{width}}  {cells}".rstrip())
    return "\n".join(lines)


def summary(run: Run) -> list[str]:
    """Return the last lines of the output: each failure by patch and check, and the counts."""
    lines: list[str] = []
    for patch in run.patches:
        lines += [f"FAILED {patch.title}: {check.name}: {check.reason}" for check in patch.failed]
    blocked = sum(check.status is Status.BLOCKED for patch in run.patches for check in patch.checks)
    passed = sum(check.status is Status.PASSED for patch in run.patches for check in patch.checks)
    tests = sum(test.status is Status.PASSED for patch in run.patches for test in patch.tests)
    count = f"{passed} checks passed, {len(lines)} failed, {blocked} blocked"
    return [*lines, f"{count}; {tests} tests passed on {len(run.patches)} kernels"]


def matrix(folder: Path, choice: str | None, checks: Sequence[CheckName], path: Path) -> int:
    """Run the checks, write the report beside the results, print the summary.

    Return the exit status: 1 if a check failed or was blocked.
    """
    run = run_matrix(folder, choice, checks, path)
    page = report.write(
        run, path.parent, benchmark.load(bench_run.RESULT), report.runs_by_version()
    )
    if not sys.stderr.isatty():
        print(table_of(run))
    print(*summary(run), sep="\n")
    print(f"The report is in {page}, the results are in {path}", flush=True)
    return 0 if run.ok else 1
