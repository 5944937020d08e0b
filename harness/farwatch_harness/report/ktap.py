# SPDX-License-Identifier: Apache-2.0
"""A run as KTAP, version 1: patches, their checks, and the tests, nested.

The form is that of Documentation/dev-tools/ktap.rst of Linux. Blocked checks are SKIP; checks that
were not requested are absent.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from farwatch_harness.report.junit import BLOCKED, title
from farwatch_harness.report.text import joined
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Run, Status, TestResult

# Characters of one output; the whole is in results.json.
OUTPUT_LIMIT = 16_000
LEVEL = "  "
# The kernel's own parser stops reading at these words, anywhere in a line.
END_WORDS = re.compile(
    r"(List of all|Kernel panic - not syncing:|reboot:) (partitions:|VFS:|System halted)"
)


@dataclass(frozen=True)
class Point:
    """A result line with the lines before it: its subtests and its diagnostic lines."""

    name: str
    status: Status
    remark: str = ""
    output: str = ""
    parts: Sequence["Point"] = ()


def render(run: Run) -> str:
    """Return the KTAP text of a run whose text is harmless."""
    return "\n".join(document([of_patch(patch) for patch in run.patches])) + "\n"


def of_patch(patch: PatchResult) -> Point:
    """Return a patch with its checks."""
    checks = [
        of_check(check, patch.tests) for check in patch.checks if check.status is not Status.SKIPPED
    ]
    return Point(
        title(patch),
        overall(check.status for check in checks),
        "" if checks else "not requested",
        "",
        checks,
    )


def overall(statuses: Iterable[Status]) -> Status:
    """Return FAILED if one failed, else PASSED if one passed, else SKIPPED."""
    found = set(statuses)
    if Status.FAILED in found:
        return Status.FAILED
    return Status.PASSED if Status.PASSED in found else Status.SKIPPED


def of_check(check: CheckResult, tests: Sequence[TestResult]) -> Point:
    """Return a check; the check TESTS has the tests below it."""
    if check.status is Status.BLOCKED:
        return Point(check.name, check.status, check.reason or BLOCKED)
    failed = check.status is Status.FAILED
    output = (
        "\n".join(part for part in (check.reason, joined(check.output, OUTPUT_LIMIT)) if part)
        if failed
        else ""
    )
    parts = (
        [of_test(test) for test in tests if test.status is not Status.SKIPPED]
        if check.name is CheckName.TESTS
        else []
    )
    return Point(check.name, check.status, f"time={check.seconds:.1f}s", output, parts)


def of_test(test: TestResult) -> Point:
    """Return one guest test."""
    if test.status is Status.BLOCKED:
        return Point(test.name, test.status, BLOCKED)
    output = joined(test.output, OUTPUT_LIMIT) if test.status is Status.FAILED else ""
    return Point(test.name, test.status, f"time={test.seconds:.2f}s", output)


def document(points: Sequence[Point], level: int = 0, subject: str = "") -> Iterator[str]:
    """Yield the lines of a KTAP document, which is nested if `level` is above 0."""
    indent = LEVEL * level
    yield f"{indent}KTAP version 1"
    if subject:
        yield f"{indent}# Subtest: {subject}"
    yield f"{indent}1..{len(points)}"
    for number, point in enumerate(points, 1):
        name = plain(point.name)
        if point.parts:
            yield from document(point.parts, level + 1, name)
        for line in END_WORDS.sub(r"\1\n\2", point.output).splitlines():
            # Two more spaces, so that no line of a log is read as a line of KTAP.
            yield f"{indent}#   {line}".rstrip()
        skipped = point.status in (Status.BLOCKED, Status.SKIPPED)
        result = "not ok" if point.status is Status.FAILED else "ok"
        remark = plain(f"SKIP {point.remark}" if skipped else point.remark)
        yield f"{indent}{result} {number} {name}" + (f" # {remark}" if remark else "")


def plain(words: str) -> str:
    """Make text fit for a result line.

    A result line must not have '#', a line's end, or the words that end the kernel's parser.
    """
    return END_WORDS.sub(r"\1_\2", " ".join(words.replace("#", "").split()))
