# SPDX-License-Identifier: Apache-2.0
"""The outputs of a run for people and CI systems: one page, JUnit XML and KTAP.

They are made from the records of `results`. text makes the output of tools harmless and cuts it.
junit, ktap and page each make one form. diff, events, benchmark and plots make parts of the page.
"""

from pathlib import Path

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


def folder() -> Path:
    """Return the directory of the report on the current kernel version, and of its records."""
    version = versions.current()
    return paths.REPORT if version is versions.DEFAULT else paths.REPORT / version.folder.name


def write(run: Run, folder: Path, bench: Report | None = None) -> Path:
    """Write index.html, junit.xml and ktap.txt into `folder`; return the path of the page.

    Each file appears in one step. HarnessError: the folder cannot be written.
    """
    harmless = text.harmless(run)
    contents = {
        JUNIT: junit.render(harmless),
        KTAP: ktap.render(harmless),
        PAGE: page.render(harmless, text.harmless(bench) if bench else None),
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
