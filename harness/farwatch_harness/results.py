# SPDX-License-Identifier: Apache-2.0
"""The results of a run: the records behind the terminal, the page, JUnit, KTAP and JSON.

docs/results.md describes the JSON form. Runs of parts of the series, made on several machines,
merge into one.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import cattrs

from farwatch_harness.util.errors import HarnessError

#: Another value when a reader of the old form would misread the new one.
SCHEMA = 2


class Status(StrEnum):
    """How a check or a test ended.

    BLOCKED: a check before it failed, or it failed only for causes that the previous patch already
    had. SKIPPED: the user did not ask for it, or pytest skipped it.
    """

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    SKIPPED = "skipped"


class CheckName(StrEnum):
    """The checks of each patch, in the order in which they run."""

    APPLY = "apply"
    CHECKPATCH = "checkpatch"
    BUILD = "build"
    SPARSE = "sparse"
    OPTIONS = "options"
    BOOT = "boot"
    TESTS = "tests"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of one patch.

    reason: one line for people; empty when passed.
    output: what the tool printed.
    """

    name: CheckName
    status: Status
    seconds: float = 0.0
    reason: str = ""
    output: str = ""


@dataclass(frozen=True)
class TestResult:
    """The result of one guest test on the kernel of one patch.

    patch: the number of the patch that the test belongs to.
    output: the failure's report, with the ends of the console and of the daemon's log.
    """

    #: Not a test of pytest's.
    __test__ = False

    name: str
    patch: int
    status: Status
    seconds: float
    output: str = ""


@dataclass(frozen=True)
class PatchResult:
    """The results of one patch: of the kernel with the first `number` patches.

    number: 0 is the base, which has no file.
    name: the patch's name in the series file; "base" for the base.
    section: the heading above the patch in the series file.
    message: the commit message without its subject.
    diff: the unified diff.
    logs: by name, the consoles and the daemons' logs.
    """

    number: int
    file: str
    subject: str
    name: str = ""
    section: str = ""
    message: str = ""
    diffstat: str = ""
    diff: str = ""
    checks: tuple[CheckResult, ...] = ()
    tests: tuple[TestResult, ...] = ()
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Number and name, for people."""
        return f"{self.number:04} {self.name}" if self.number else "the base"

    @property
    def failed(self) -> list[CheckResult]:
        """The checks that failed."""
        return [check for check in self.checks if check.status is Status.FAILED]


@dataclass(frozen=True)
class Run:
    """A whole run. Times are UTC, ISO 8601.

    environment: the host, the accelerator and the versions of what the run used, by name.
    """

    started: str
    finished: str
    environment: dict[str, str]
    patches: tuple[PatchResult, ...]
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether no check failed or was blocked."""
        bad = (Status.FAILED, Status.BLOCKED)
        return not any(check.status in bad for patch in self.patches for check in patch.checks)


def save(run: Run, path: Path) -> None:
    """Write the run as JSON, in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(asdict(run), indent=1) + "\n")
    fresh.replace(path)


def load(path: Path) -> Run:
    """Read a run. HarnessError: says what is wrong with the file."""
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise HarnessError(
                f"{path} has results of schema {found['schema']}, and this harness reads {SCHEMA}:"
                " run the checks again, or use the harness that wrote them"
            )
        return converter().structure(found, Run)
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from None
    except cattrs.BaseValidationError as error:
        raise HarnessError(
            f"{path} is not a file of results: {'; '.join(cattrs.transform_error(error))}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path} is not a file of results: {error!r}") from None


def converter() -> cattrs.Converter:
    """Return a converter of JSON to records that converts no value to another type."""
    made = cattrs.Converter()
    for kind, accepted in {str: (str,), int: (int,), float: (int, float)}.items():
        made.register_structure_hook(kind, partial(exactly, accepted))
    for kind_of_text in (Status, CheckName):
        # Enumerations of texts: cattrs would take the hook of str.
        made.register_structure_hook(kind_of_text, lambda value, wanted: wanted(value))
    return made


def exactly(accepted: tuple[type, ...], value: Any, wanted: type) -> Any:
    """Return the value. TypeError: it is of none of the accepted types."""
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError(f"{value!r:.40} is not of type {wanted.__name__}")
    return value


def merge(runs: Iterable[Run]) -> Run:
    """Join runs over parts of one series.

    The base is part of every run, because the patches are compared with it. If it failed in one
    run, that result is used. HarnessError: there are no runs, or two have the same patch.
    """
    parts = sorted(runs, key=lambda run: run.started)
    if not parts:
        raise HarnessError("no results to merge")
    patches: dict[int, PatchResult] = {}
    for part in parts:
        for patch in part.patches:
            known = patches.get(patch.number)
            if known and patch.number:
                raise HarnessError(f"two of the results are about patch {patch.number}")
            if known is None or not known.failed:
                patches[patch.number] = patch
    environment: dict[str, str] = {}
    for part in parts:
        for name, value in part.environment.items():
            values = environment[name].split("; ") if name in environment else []
            environment[name] = "; ".join(dict.fromkeys([*values, value]))
    finished = max(part.finished for part in parts)
    ordered = tuple(patches[number] for number in sorted(patches))
    return replace(parts[0], finished=finished, environment=environment, patches=ordered)
