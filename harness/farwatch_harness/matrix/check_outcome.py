# SPDX-License-Identifier: Apache-2.0
"""Outcome of one check, returned by its runner to the scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.results import CheckName, TestResult


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found.

    reason: one line for people; empty when the check passed.
    output: what the tool printed.
    seconds: how long the check took when its result was cached; None if it ran now.
    causes: what the failure consists of. The scheduler compares them with those of the previous
        patch.
    usable: whether the checks that need this one can run. A kernel that was built with a warning
        can be booted.
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
        """Whether the check has no reason to fail."""
        return not self.reason


CheckRunner = Callable[[Prefix], CheckOutcome]
CheckRunners = Mapping[CheckName, CheckRunner]


def failure(reason: str, output: str = "", *, usable: bool = False) -> CheckOutcome:
    """Return the outcome of a check that failed for one reason."""
    return CheckOutcome(reason, output, causes=frozenset({reason}), usable=usable)
