# SPDX-License-Identifier: Apache-2.0
"""The outputs of a run for people and CI systems: one page, JUnit XML and KTAP.

They are made from the records of `results`. text makes the output of tools harmless and cuts it.
junit, ktap and page each make one form. diff, events, benchmark and plots make parts of the page.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from farwatch_harness import results
from farwatch_harness.bench.bench_report import Report
from farwatch_harness.kernel import versions
from farwatch_harness.report import junit, ktap, page, text
from farwatch_harness.results import Run
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

RESULTS = "results.json"
PAGE = "index.html"
JUNIT = "junit.xml"
KTAP = "ktap.txt"


def folder(version: versions.KernelVersion | None = None) -> Path:
    """Return the directory of the report on a kernel version, and of its records.

    version: None is the current one.
    """
    version = version or versions.current()
    return paths.REPORT if version is versions.DEFAULT else paths.REPORT / version.folder.name


def runs_by_version() -> list[tuple[str, Run]]:
    """Return the last run of each kernel version that has one that can be read, with its name."""
    found: list[tuple[str, Run]] = []
    for version in versions.VERSIONS:
        # A file of another harness is no reason to fail.
        with contextlib.suppress(HarnessError):
            found.append((version.name, results.load(folder(version) / RESULTS)))
    return found


def write(
    run: Run,
    folder: Path,
    bench: Report | None = None,
    by_version: Sequence[tuple[str, Run]] = (),
) -> Path:
    """Write index.html, junit.xml and ktap.txt into `folder`; return the path of the page.

    Each file appears in one step. by_version: runs that the page shows beside each other, as of
    runs_by_version(). HarnessError: the folder cannot be written.
    """
    harmless = text.harmless(run)
    contents = {
        JUNIT: junit.render(harmless),
        KTAP: ktap.render(harmless),
        PAGE: page.render(
            harmless,
            text.harmless(bench) if bench else None,
            [(name, text.harmless(each)) for name, each in by_version],
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            fresh = folder / f".{name}"
            fresh.write_text(content, encoding="utf-8")
            fresh.replace(folder / name)
    except OSError as error:
        raise HarnessError(f"cannot write the report to {folder}: {error.strerror}") from None
    return folder / PAGE
