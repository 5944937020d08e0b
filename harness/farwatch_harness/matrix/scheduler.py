# SPDX-License-Identifier: Apache-2.0
"""Runs the checks of the patches in order, and attributes each failure to a patch.

The scheduler knows neither what the checks do nor how they are shown.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from farwatch_harness.matrix.check_outcome import CheckOutcome, CheckRunners, failure
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Status
from farwatch_harness.util.errors import HarnessError

#: A check runs only if the check that it needs has left something usable.
NEEDS = {
    CheckName.BUILD: CheckName.APPLY,
    CheckName.SPARSE: CheckName.BUILD,
    CheckName.OPTIONS: CheckName.BUILD,
    CheckName.BOOT: CheckName.BUILD,
    CheckName.TESTS: CheckName.BOOT,
}
#: These take too long for each patch: they run for the base and for the whole series.
ENDS_ONLY = (CheckName.OPTIONS,)
#: The checks in a guest. Those of several patches run concurrently, because a guest leaves its host
#: idle much of the time.
GUEST_CHECKS = (CheckName.BOOT, CheckName.TESTS)
MAX_GUESTS = 2


def concerns(name: CheckName, prefix: Prefix) -> bool:
    """Return whether the check is run for this patch."""
    return name not in ENDS_ONLY or not prefix.number or prefix.last


class Progress(Protocol):
    """Receives each check as it starts and as it finishes."""

    def check_started(self, prefix: Prefix, name: CheckName) -> None:
        """Show that a check has started. May be called in a thread of the scheduler."""

    def check_finished(
        self, prefix: Prefix, check: CheckResult, result: PatchResult, wall: float
    ) -> None:
        """Record a finished check.

        result: the patch's result so far, `check` included.
        wall: the seconds that the check took now.
        """


@dataclass(frozen=True)
class RunnerReport:
    """What became of one check of one patch, before it is compared with the previous patch.

    outcome: what the runner returned; None if the check did not run.
    blocked: why it did not run.
    wall: the seconds that it took now.
    """

    name: CheckName
    outcome: CheckOutcome | None
    blocked: str = ""
    wall: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether the checks that need this one can run."""
        return self.outcome is not None and self.outcome.usable


@dataclass
class PrefixState:
    """One patch in progress.

    result: the patch's result so far.
    broken_by: the patch that does not apply; None while the series applies.
    unusable: the checks that left nothing usable.
    """

    prefix: Prefix
    result: PatchResult
    broken_by: Prefix | None = None
    unusable: set[CheckName] = field(default_factory=set)


class Scheduler:
    """Runs all checks of all patches, in ascending order.

    runners: the checks that the user asked for; the others are SKIPPED, and so are those of
        ENDS_ONLY between the ends of the series.
    must_build: whether a patch's kernel has to be built. Before such a patch the scheduler waits
        for the guests of earlier patches: a guest is not tested on a busy machine.
    """

    def __init__(
        self,
        runners: CheckRunners,
        progress: Progress,
        must_build: Callable[[Prefix], bool] = lambda prefix: False,
    ) -> None:
        self.runners = runners
        self.progress = progress
        self.must_build = must_build
        # How each check failed for the previous patch, and the patch that introduced the failure.
        self.failures: dict[CheckName, tuple[frozenset[str], Prefix]] = {}
        # Patches whose guest checks have not run.
        self.pending: deque[PrefixState] = deque()

    def run(self, prefixes: Iterable[tuple[Prefix, PatchResult]]) -> None:
        """Run all checks of each patch. `progress` gets the results in ascending order."""
        pool = ThreadPoolExecutor(MAX_GUESTS, thread_name_prefix="guests")
        try:
            for prefix, result in prefixes:
                if self.must_build(prefix):
                    self.run_guest_checks(pool)
                state = PrefixState(prefix, result, self.broken_by())
                for name in CheckName:
                    if name not in GUEST_CHECKS:
                        self.add_result(state, self.run_check(state, name))
                self.pending.append(state)
            self.run_guest_checks(pool)
        finally:
            # After an interruption the owner of the guests stops them, and with them the threads
            # that wait for them.
            pool.shutdown(wait=False, cancel_futures=True)

    def broken_by(self) -> Prefix | None:
        """Return the patch that does not apply, if there is one."""
        failed = self.failures.get(CheckName.APPLY)
        return failed[1] if failed else None

    def run_guest_checks(self, pool: ThreadPoolExecutor) -> None:
        """Run the guest checks of all pending patches, and add their results in patch order."""
        # The whole series has most of the tests: started last, it would finish long after the rest.
        started = sorted(self.pending, key=lambda state: not state.prefix.last)
        reports = {
            state.prefix.number: pool.submit(lambda each: list(self.guest_reports(each)), state)
            for state in started
        }
        while self.pending:
            state = self.pending.popleft()
            for report in reports[state.prefix.number].result():
                self.add_result(state, report)

    def guest_reports(self, state: PrefixState) -> Iterator[RunnerReport]:
        """Run the guest checks of one patch one after the other; runs in a thread of the pool."""
        unusable = set(state.unusable)
        for name in GUEST_CHECKS:
            report = self.run_check(replace(state, unusable=unusable), name)
            if not report.usable:
                unusable.add(name)
            yield report

    def run_check(self, state: PrefixState, name: CheckName) -> RunnerReport:
        """Run one check of one patch, unless what it needs is missing."""
        needed = NEEDS.get(name)
        if name not in self.runners or not concerns(name, state.prefix):
            return RunnerReport(name, CheckOutcome())
        if state.broken_by:
            return RunnerReport(name, None, f"{state.broken_by.title} does not apply")
        if needed in state.unusable:
            return RunnerReport(name, None, f"needs {needed}")
        self.progress.check_started(state.prefix, name)
        start = time.monotonic()
        try:
            outcome = self.runners[name](state.prefix)
        except HarnessError as error:
            # A check that could not be run has failed.
            reason, _, rest = str(error).partition("\n")
            outcome = failure(reason, f"{reason}\n{rest}")
        return RunnerReport(name, outcome, wall=time.monotonic() - start)

    def add_result(self, state: PrefixState, report: RunnerReport) -> None:
        """Add a check's result to its patch, and report it."""
        if not report.usable:
            state.unusable.add(report.name)
        check = self.check_result(state.prefix, report)
        outcome = report.outcome or CheckOutcome()
        state.result = replace(
            state.result,
            checks=(*state.result.checks, check),
            tests=(*state.result.tests, *outcome.tests),
            logs={**state.result.logs, **outcome.logs},
        )
        self.progress.check_finished(state.prefix, check, state.result, report.wall)

    def check_result(self, prefix: Prefix, report: RunnerReport) -> CheckResult:
        """Build the check's result.

        BLOCKED, not FAILED, if the previous patch failed with a superset of these causes.
        """
        name, outcome = report.name, report.outcome
        if name not in self.runners or not concerns(name, prefix):
            return CheckResult(name, Status.SKIPPED)
        if outcome is None:
            return CheckResult(name, Status.BLOCKED, reason=report.blocked)
        seconds = round(report.wall if outcome.seconds is None else outcome.seconds, 1)
        previous = self.failures.pop(name, None)
        if outcome.passed:
            return CheckResult(name, Status.PASSED, seconds, output=outcome.output)
        if previous and outcome.causes <= previous[0]:
            self.failures[name] = previous
            reason = f"since {previous[1].title}: {outcome.reason}"
            return CheckResult(name, Status.BLOCKED, seconds, reason, outcome.output)
        self.failures[name] = (outcome.causes, prefix)
        return CheckResult(name, Status.FAILED, seconds, outcome.reason, outcome.output)
