# SPDX-License-Identifier: Apache-2.0
"""`make mutants`: shows that the guest tests can fail.

A mutant is the series with one rule broken, and its tests must notice. The file of a mutant is a
patch on top of the series: one line that says what is broken, `Test: ` with a pytest expression for
the tests that must fail, and the diff.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from farwatch_harness.kernel import build, series, versions
from farwatch_harness.util import paths, progress
from farwatch_harness.util.errors import HarnessError

FOLDER = paths.CHECKOUT / "guest-tests" / "mutants"
#: pytest's exit status when tests ran and some failed.
SOME_FAILED = 1
#: Seconds for the tests of one mutant, up to the first that fails.
LIMIT = 600.0


@dataclass(frozen=True)
class Mutant:
    """One broken rule: what it breaks in words, the tests that must fail, and the patch."""

    name: str
    rule: str
    test: str
    patch: bytes


def read_mutant(path: Path) -> Mutant:
    """Read a mutant.

    HarnessError: the lines above the diff do not have the form of a mutant.
    """
    content = path.read_text()
    head, mark, _diff = content.partition("\n--- a/")
    lines = [line for line in head.splitlines() if line]
    if not mark or len(lines) != 2 or not lines[1].startswith("Test: "):
        raise HarnessError(
            f"{path}: a mutant is a line that says what is broken, 'Test: EXPRESSION', and a diff"
        )
    return Mutant(path.stem, lines[0], lines[1].removeprefix("Test: "), content.encode())


def read_mutants(folder: Path, names: Sequence[str] = ()) -> list[Mutant]:
    """Return all mutants of a folder, or the named ones.

    HarnessError: there is no mutant with one of the names.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.patch"))}
    for name in names:
        if name not in found:
            raise HarnessError(f"there is no mutant '{name}'; there are: {', '.join(found)}")
    return [read_mutant(found[name]) for name in names or found]


@contextmanager
def mutated_series(mutant: Mutant) -> Iterator[Path]:
    """Yield a folder with a copy of the series whose last patch is the mutant."""
    with tempfile.TemporaryDirectory(prefix="farwatch-mutant-") as name:
        folder = Path(name) / "series"
        shutil.copytree(versions.current().folder, folder)
        patch = f"mutant-{mutant.name}.patch"
        (folder / patch).write_bytes(mutant.patch)
        with (folder / "series").open("a") as listing:
            listing.write(f"{patch}\n")
        yield folder


def failed_tests(report: Path) -> list[str]:
    """Return the tests that failed, from a JUnit file of pytest."""
    cases = ElementTree.parse(report).iter("testcase")
    return [str(case.get("name")) for case in cases if case.find("failure") is not None]


def run_tests(mutant: Mutant, folder: Path) -> list[str]:
    """Build the mutant's kernel and run its tests; return those that failed.

    HarnessError: the tests could not run.
    """
    build.build(series.read_series(folder))
    log = paths.LOGS / f"mutant-{mutant.name}.log"
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "guest-tests",
        f"--junitxml={report}",
        "--color=no",
        "-x",
        "-k",
        mutant.test,
    ]
    environment: Mapping[str, str] = {**os.environ, "FARWATCH_SERIES": str(folder)}
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                words,
                cwd=paths.CHECKOUT,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HarnessError(
                f"mutant {mutant.name}: its tests took more than {LIMIT:.0f} s, see {log}"
            ) from None
    if done.returncode not in (0, SOME_FAILED):
        raise HarnessError(f"mutant {mutant.name}: pytest ended with {done.returncode}, see {log}")
    return failed_tests(report)


def hunt(mutants: Iterable[Mutant]) -> None:
    """Run all mutants and print one line for each.

    HarnessError: no test noticed one or more of them, which the message names.
    """
    survivors = []
    for mutant in mutants:
        with (
            mutated_series(mutant) as folder,
            progress.step(f"mutant {mutant.name}: {mutant.rule}"),
        ):
            noticed = run_tests(mutant, folder)
        result = f"noticed by {noticed[0]}" if noticed else "NOT NOTICED"
        print(f"{mutant.name}: {result}", flush=True)
        if not noticed:
            survivors.append(mutant.name)
    if survivors:
        raise HarnessError(f"no test noticed: {', '.join(survivors)}")
