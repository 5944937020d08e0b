# SPDX-License-Identifier: Apache-2.0
"""Walks the rows and asks each check of each: what blocks what, and which failure is only an earlier one's again.

Knows nothing of what the checks do, nor of how they are shown.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from farwatch_harness.errors import HarnessError
from farwatch_harness.matrix.outcome import Outcome, Steps, failure
from farwatch_harness.matrix.rows import Row
from farwatch_harness.results import Check, CheckName, PatchResult, State

#: The check that must have left something usable for this one to be asked.
NEEDS = {
    CheckName.BUILD: CheckName.APPLY,
    CheckName.SPARSE: CheckName.BUILD,
    CheckName.BOOT: CheckName.BUILD,
    CheckName.TESTS: CheckName.BOOT,
}


class Witness(Protocol):
    """Who is told of each check as it begins and ends."""

    def began(self, row: Row, name: CheckName) -> None: ...

    def ended(self, row: Row, check: Check, result: PatchResult, wall: float) -> None: ...


@dataclass(frozen=True)
class Failure:
    """What a check failed of, and the row where that came up first."""

    causes: frozenset[str]
    first: Row


class Walk:
    """One walk over the rows, in ascending order."""

    def __init__(self, steps: Steps, witness: Witness) -> None:
        self.steps = steps
        self.witness = witness
        # By check: how it failed in the row before.
        self.failures: dict[CheckName, Failure] = {}

    def over(self, rows: Iterable[tuple[Row, PatchResult]]) -> None:
        """Asks everything of each row; the witness gets the rows as they fill."""
        for row, result in rows:
            self.row(row, result)

    def row(self, row: Row, result: PatchResult) -> PatchResult:
        """Asks each check of one row."""
        unusable: set[CheckName] = set()
        broken = self.failures.get(CheckName.APPLY)
        for name in CheckName:
            began = time.monotonic()
            needed = NEEDS.get(name)
            if name not in self.steps:
                check, outcome = Check(name, State.ABSENT), Outcome()
            elif broken:
                check, outcome = blocked(name, f"{broken.first.title} does not apply"), Outcome(usable=False)
            elif needed in unusable:
                check, outcome = blocked(name, f"needs {needed}"), Outcome(usable=False)
            else:
                self.witness.began(row, name)
                outcome = asked(self.steps, name, row)
                check = self.judged(row, name, outcome, time.monotonic() - began)
            if not outcome.usable:
                unusable.add(name)
            result = replace(
                result,
                checks=(*result.checks, check),
                tests=(*result.tests, *outcome.tests),
                logs={**result.logs, **outcome.logs},
            )
            self.witness.ended(row, check, result, time.monotonic() - began)
        return result

    def judged(self, row: Row, name: CheckName, outcome: Outcome, wall: float) -> Check:
        """The cell. A failure of which the row before had every part is that row's: here it only blocks."""
        before = self.failures.pop(name, None)
        seconds = round(wall if outcome.seconds is None else outcome.seconds, 1)
        if outcome.passed:
            return Check(name, State.PASSED, seconds, output=outcome.output)
        if before and outcome.causes <= before.causes:
            self.failures[name] = Failure(before.causes, before.first)
            return Check(name, State.BLOCKED, seconds, f"since {before.first.title}: {outcome.reason}", outcome.output)
        self.failures[name] = Failure(outcome.causes, row)
        return Check(name, State.FAILED, seconds, outcome.reason, outcome.output)


def asked(steps: Steps, name: CheckName, row: Row) -> Outcome:
    """What the check finds; that it could not be done is a failure, too."""
    try:
        return steps[name](row)
    except HarnessError as error:
        reason, _, rest = str(error).partition("\n")
        return failure(reason, f"{reason}\n{rest}")


def blocked(name: CheckName, reason: str) -> Check:
    """A cell that was not asked for what stands before it."""
    return Check(name, State.BLOCKED, reason=reason)
