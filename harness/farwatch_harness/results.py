# SPDX-License-Identifier: Apache-2.0
"""What a run of the matrix found: the records that the terminal, the page, JUnit, KTAP and JSON are
made from.

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
SCHEMA = 1


class State(StrEnum):
    """How a check or a test ended.

    BLOCKED: not run, as a check before it failed, or failed of nothing but what an earlier patch
    had failed of. ABSENT: not asked for.
    """

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    ABSENT = "absent"


class CheckName(StrEnum):
    """What is asked of each patch, in the order in which it is asked."""

    APPLY = "apply"
    CHECKPATCH = "checkpatch"
    BUILD = "build"
    SPARSE = "sparse"
    BOOT = "boot"
    TESTS = "tests"


@dataclass(frozen=True)
class Check:
    """One cell of the matrix. `reason` is one line for people, empty when passed; `output` is what
    the tool printed."""

    name: CheckName
    state: State
    seconds: float = 0.0
    reason: str = ""
    output: str = ""


@dataclass(frozen=True)
class TestResult:
    """One guest test on the kernel of one patch. `patch` is the number of the patch that the test
    belongs to.

    `output` is the failure's report, with the ends of the console and of the daemon's log.
    """

    #: Not a test of pytest's.
    __test__ = False

    name: str
    patch: int
    state: State
    seconds: float
    output: str = ""


@dataclass(frozen=True)
class PatchResult:
    """One row: the kernel with the first `number` patches; 0 is the base, which has no file.

    `section` is the series file's heading above the patch, `message` the commit message without
    subject and trailers' header lines, `diff` the unified diff. `logs` are named texts: the console
    and the daemon logs.
    """

    number: int
    file: str
    subject: str
    section: str = ""
    message: str = ""
    diffstat: str = ""
    diff: str = ""
    checks: tuple[Check, ...] = ()
    tests: tuple[TestResult, ...] = ()
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """The checks that are red."""
        return [check for check in self.checks if check.state is State.FAILED]


@dataclass(frozen=True)
class Run:
    """A whole run; times are UTC, ISO 8601.

    `facts` name the machine, the accelerator and the versions of what was used.
    """

    started: str
    finished: str
    facts: dict[str, str]
    patches: tuple[PatchResult, ...]
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether nothing is red or blocked."""
        bad = (State.FAILED, State.BLOCKED)
        return not any(check.state in bad for patch in self.patches for check in patch.checks)


def save(run: Run, path: Path) -> None:
    """Writes the run as JSON; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(asdict(run), indent=1) + "\n")
    fresh.replace(path)


def load(path: Path) -> Run:
    """Reads a run; HarnessError says what is wrong with the file."""
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise HarnessError(
                f"{path} has results of schema {found['schema']}; this harness reads {SCHEMA}"
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
    """Makes records of JSON, and turns no value into one of another type."""
    made = cattrs.Converter()
    for kind, accepted in {str: (str,), int: (int,), float: (int, float)}.items():
        made.register_structure_hook(kind, partial(exactly, accepted))
    for words in (State, CheckName):
        # They are texts: that hook would be taken.
        made.register_structure_hook(words, lambda value, wanted: wanted(value))
    return made


def exactly(accepted: tuple[type, ...], value: Any, wanted: type) -> Any:
    """The value, which must be of one of the types; TypeError when it is not."""
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError(f"{value!r:.40} is not of type {wanted.__name__}")
    return value


def merge(runs: Iterable[Run]) -> Run:
    """One run from several over parts of the same series; HarnessError for no parts, or two of the
    same patch.

    The base is part of every run, as the others are compared with it: of several the worst stays.
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
    facts: dict[str, str] = {}
    for part in parts:
        for name, value in part.facts.items():
            values = facts[name].split("; ") if name in facts else []
            facts[name] = "; ".join(dict.fromkeys([*values, value]))
    finished = max(part.finished for part in parts)
    ordered = tuple(patches[number] for number in sorted(patches))
    return replace(parts[0], finished=finished, facts=facts, patches=ordered)
