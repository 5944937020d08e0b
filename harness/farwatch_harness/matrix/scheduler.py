# SPDX-License-Identifier: Apache-2.0
"""Walks the rows and asks each check of each: what blocks what, and which failure is only an
earlier one's again.

Knows nothing of what the checks do, nor of how they are shown.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from farwatch_harness.matrix.check_outcome import Outcome, Steps, failure
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.results import Check, CheckName, PatchResult, State
from farwatch_harness.util.errors import HarnessError

#: The check that must have left something usable for this one to be asked.
NEEDS = {
    CheckName.BUILD: CheckName.APPLY,
    CheckName.SPARSE: CheckName.BUILD,
    CheckName.BOOT: CheckName.BUILD,
    CheckName.TESTS: CheckName.BOOT,
}


#: The checks in a guest: of several rows at once, as a guest has its host wait for it much of the
#: time.
IN_GUEST = (CheckName.BOOT, CheckName.TESTS)
AT_ONCE = 2


class Witness(Protocol):
    """Who is told of each check as it begins, which may be in another thread, and as it ends."""

    def began(self, row: Row, name: CheckName) -> None: ...

    def ended(self, row: Row, check: Check, result: PatchResult, wall: float) -> None: ...


@dataclass(frozen=True)
class Failure:
    """What a check failed of, and the row where that came up first."""

    causes: frozenset[str]
    first: Row


@dataclass(frozen=True)
class Answer:
    """What became of one check: an outcome, or the reason why it was not asked; and how long it
    took now."""

    name: CheckName
    outcome: Outcome | None
    blocked: str = ""
    wall: float = 0.0


@dataclass
class Filling:
    """A row on its way: its result so far, the row that broke the series, checks that left nothing
    to go on with."""

    row: Row
    result: PatchResult
    broken: Row | None = None
    unusable: set[CheckName] = field(default_factory=set)


class Walk:
    """One walk over the rows, in ascending order.

    Before a row of which `works_hard` is true, as a kernel is to be built, the guests of earlier
    rows come to their end: they are not to be tested on a machine that is busy.
    """

    def __init__(
        self, steps: Steps, witness: Witness, works_hard: Callable[[Row], bool] = lambda row: False
    ) -> None:
        self.steps = steps
        self.witness = witness
        self.works_hard = works_hard
        # By check: how it failed in the row before.
        self.failures: dict[CheckName, Failure] = {}
        # Rows whose guests are still to come.
        self.open: deque[Filling] = deque()

    def over(self, rows: Iterable[tuple[Row, PatchResult]]) -> None:
        """Asks everything of each row; the witness gets the rows as they fill."""
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="guests")
        try:
            for row, result in rows:
                if self.works_hard(row):
                    self.run_guests(pool)
                filling = Filling(row, result, self.broken_by())
                for name in CheckName:
                    if name not in IN_GUEST:
                        self.take(filling, self.ask(filling, name))
                self.open.append(filling)
            self.run_guests(pool)
        finally:
            # After an interruption who runs the guests ends them, and so the threads that wait for
            # them.
            pool.shutdown(wait=False, cancel_futures=True)

    def broken_by(self) -> Row | None:
        """The row whose patch does not apply."""
        failure = self.failures.get(CheckName.APPLY)
        return failure.first if failure else None

    def ask_in_guest(self, filling: Filling) -> list[Answer]:
        """The answers that need a guest, one after the other; in a thread of its own."""
        answers: list[Answer] = []
        unusable = set(filling.unusable)
        for name in IN_GUEST:
            answer = self.ask(replace(filling, unusable=unusable), name)
            if not usable(answer):
                unusable.add(name)
            answers.append(answer)
        return answers

    def run_guests(self, pool: ThreadPoolExecutor) -> None:
        """Asks what needs a guest of all rows that are open, and takes the answers in the order of
        the rows."""
        # The whole series has by far the most tests: begun last it would end long after all others.
        begun = sorted(self.open, key=lambda filling: not filling.row.last)
        answers = {filling.row.number: pool.submit(self.ask_in_guest, filling) for filling in begun}
        while self.open:
            filling = self.open.popleft()
            for answer in answers[filling.row.number].result():
                self.take(filling, answer)

    def ask(self, filling: Filling, name: CheckName) -> Answer:
        """One check of one row, unless what it needs is not there."""
        needed = NEEDS.get(name)
        if name not in self.steps:
            return Answer(name, Outcome())
        if filling.broken:
            return Answer(name, None, f"{filling.broken.title} does not apply")
        if needed in filling.unusable:
            return Answer(name, None, f"needs {needed}")
        self.witness.began(filling.row, name)
        began = time.monotonic()
        outcome = asked(self.steps, name, filling.row)
        return Answer(name, outcome, wall=time.monotonic() - began)

    def take(self, filling: Filling, answer: Answer) -> None:
        """Enters an answer in its row."""
        name, outcome = answer.name, answer.outcome or Outcome()
        if not usable(answer):
            filling.unusable.add(name)
        if name not in self.steps:
            check = Check(name, State.ABSENT)
        elif answer.outcome is None:
            check = Check(name, State.BLOCKED, reason=answer.blocked)
        else:
            check = self.judged(filling.row, name, outcome, answer.wall)
        filling.result = replace(
            filling.result,
            checks=(*filling.result.checks, check),
            tests=(*filling.result.tests, *outcome.tests),
            logs={**filling.result.logs, **outcome.logs},
        )
        self.witness.ended(filling.row, check, filling.result, answer.wall)

    def judged(self, row: Row, name: CheckName, outcome: Outcome, wall: float) -> Check:
        """The cell. A failure of which the row before had every part is that row's: here it only
        blocks."""
        before = self.failures.pop(name, None)
        seconds = round(wall if outcome.seconds is None else outcome.seconds, 1)
        if outcome.passed:
            return Check(name, State.PASSED, seconds, output=outcome.output)
        if before and outcome.causes <= before.causes:
            self.failures[name] = Failure(before.causes, before.first)
            return Check(
                name,
                State.BLOCKED,
                seconds,
                f"since {before.first.title}: {outcome.reason}",
                outcome.output,
            )
        self.failures[name] = Failure(outcome.causes, row)
        return Check(name, State.FAILED, seconds, outcome.reason, outcome.output)


def asked(steps: Steps, name: CheckName, row: Row) -> Outcome:
    """What the check finds; that it could not be done is a failure, too."""
    try:
        return steps[name](row)
    except HarnessError as error:
        reason, _, rest = str(error).partition("\n")
        return failure(reason, f"{reason}\n{rest}")


def usable(answer: Answer) -> bool:
    """Whether what needs this check can go on."""
    return answer.outcome is not None and answer.outcome.usable
