# SPDX-License-Identifier: Apache-2.0
"""How a check ended, as the one who ran it tells the one who walks the rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.results import CheckName, TestResult


@dataclass(frozen=True)
class Outcome:
    """What a check found. `reason` is one line, empty when all is well; `output` what the tool
    printed.

    `seconds` is set where the check was done earlier and its output kept: how long it took then.
    `causes` are what the failure consists of, to tell whether a later row has the same. `usable`
    says whether what comes after in the row can be done: a kernel that was built with a warning can
    be booted.
    """

    reason: str = ""
    output: str = ""
    seconds: float | None = None
    causes: frozenset[str] = frozenset()
    usable: bool = True
    tests: tuple[TestResult, ...] = ()
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.reason


Step = Callable[[Row], Outcome]
Steps = Mapping[CheckName, Step]


def failure(reason: str, output: str = "", *, usable: bool = False) -> Outcome:
    """A check that failed for one reason."""
    return Outcome(reason, output, causes=frozenset({reason}), usable=usable)
