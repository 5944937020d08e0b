# SPDX-License-Identifier: Apache-2.0
"""What people and CI systems read of a run: one page, JUnit XML and KTAP, made from the records of
`results`.

text makes tool output harmless and cuts it, junit, ktap and page each make one form; the page's
parts are diff (the colours of a patch), events (which events arrive in which mode), benchmark and
plots.
"""

from pathlib import Path

from farwatch_harness.bench.bench_report import Report
from farwatch_harness.report import junit, ktap, page, text
from farwatch_harness.results import Run
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.paths import CHECKOUT

#: Where the report of this checkout's last run is, and the records beside it that it is made from.
FOLDER = CHECKOUT / "build" / "report"
RESULTS = "results.json"
PAGE = "index.html"
JUNIT = "junit.xml"
KTAP = "ktap.txt"


def write(run: Run, folder: Path, bench: Report | None = None) -> Path:
    """Writes index.html, junit.xml and ktap.txt into `folder` and returns the path of the page.

    A reader never sees half of a file. HarnessError when the folder cannot be written.
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
