# SPDX-License-Identifier: Apache-2.0
"""Shows a run on the terminal: a table that is redrawn, or plain lines without a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from farwatch_harness.matrix.estimates import Estimates
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.scheduler import GUEST_CHECKS, MAX_GUESTS, concerns
from farwatch_harness.results import CheckName, CheckResult, Status
from farwatch_harness.util import progress

STYLES = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.BLOCKED: "yellow",
    Status.SKIPPED: "dim",
}
SIGNS = {Status.PASSED: "✓", Status.FAILED: "✗", Status.BLOCKED: "-", Status.SKIPPED: ""}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REDRAW = 4.0
# Seconds: without a terminal the start of a check is reported if it will probably take longer.
WORTH_A_LINE = 5.0


class Caption(io.TextIOBase):
    """Replaces stderr while the table is shown: progress messages become the table's caption."""

    def __init__(self, table: LiveTable) -> None:
        self.table = table

    def write(self, text: str) -> int:
        """Show the last line of the text as the caption."""
        words = [
            word.strip() for word in re.split(r"[\r\n]", ESCAPES.sub("", text)) if word.strip()
        ]
        if words:
            self.table.set_caption(words[-1])
        return len(text)

    def isatty(self) -> bool:
        """Return True."""
        # So that progress messages come as often as on a terminal.
        return True


class LiveTable:
    """Shows the results as they come, and what is in progress."""

    def __init__(
        self, prefixes: Sequence[Prefix], names: Sequence[CheckName], estimates: Estimates
    ) -> None:
        self.prefixes = prefixes
        self.names = names
        self.estimates = estimates
        self.cells: dict[tuple[int, CheckName], CheckResult] = {}
        # The checks in progress, and when they started.
        self.current: dict[tuple[int, CheckName], float] = {}
        self.started = time.monotonic()
        self.caption = ""
        self.live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table on stderr until the block ends; without a terminal, print lines."""
        console = Console(file=sys.stderr)
        if not console.is_terminal:
            yield
            return
        # Rich's thread redraws. Messages on stderr come here, not to Rich.
        self.live = Live(
            console=console,
            get_renderable=self.table,
            refresh_per_second=REDRAW,
            redirect_stderr=False,
        )
        with self.live, contextlib.redirect_stderr(Caption(self)):
            yield
        self.live = None

    def check_started(self, prefix: Prefix, name: CheckName) -> None:
        """Show that a check has started."""
        self.current[prefix.number, name] = time.monotonic()
        self.caption = ""
        if self.live is None and self.estimates.seconds(prefix, name) > WORTH_A_LINE:
            left = progress.duration(self.seconds_left())
            progress.say(f"  {name} of {prefix.title} ... (about {left} left)")

    def check_finished(self, prefix: Prefix, check: CheckResult) -> None:
        """Show the result of a check."""
        self.cells[prefix.number, check.name] = check
        self.current.pop((prefix.number, check.name), None)
        if self.live is None and check.status is not Status.SKIPPED:
            reason = f": {check.reason}" if check.reason else ""
            progress.say(
                f"  {check.name} of {prefix.title}: {check.status},"
                f" {progress.duration(check.seconds)}{reason}"
            )

    def set_caption(self, text: str) -> None:
        """Show what is in progress within a check."""
        self.caption = text

    def seconds_left(self) -> float:
        """Estimate the seconds until the run ends."""
        open_checks = [
            (prefix, name)
            for prefix in self.prefixes
            for name in self.names
            if (prefix.number, name) not in self.cells and concerns(name, prefix)
        ]
        guests = self.estimates.total(check for check in open_checks if check[1] in GUEST_CHECKS)
        others = self.estimates.total(
            check for check in open_checks if check[1] not in GUEST_CHECKS
        )
        spent = sum(time.monotonic() - since for since in list(self.current.values()))
        return max(others + (guests - spent) / MAX_GUESTS, 0.0)

    def table(self) -> Table:
        """Build the table: results, checks in progress, the estimate."""
        spent = progress.duration(time.monotonic() - self.started)
        complete = all(
            (prefix.number, name) in self.cells for prefix in self.prefixes for name in self.names
        )
        title = (
            f"{spent}"
            if complete
            else f"{spent} so far, about {progress.duration(self.seconds_left())} left"
        )
        table = Table(
            title=title, caption=Text(self.caption), caption_justify="left", title_justify="left"
        )
        table.add_column("", justify="right", no_wrap=True, min_width=2)
        table.add_column("patch", no_wrap=True, overflow="ellipsis")
        for name in self.names:
            table.add_column(name, justify="right", no_wrap=True, min_width=max(len(name), 7))
        for prefix in self.prefixes:
            table.add_row(
                str(prefix.number),
                Text(prefix.name),
                *(self.cell(prefix, name) for name in self.names),
            )
        return table

    def cell(self, prefix: Prefix, name: CheckName) -> Text:
        """Build one cell: the result, the seconds since the start, or nothing."""
        since = self.current.get((prefix.number, name))
        if since is not None:
            return Text(f"… {time.monotonic() - since:.0f} s", style="bold")
        check = self.cells.get((prefix.number, name))
        if check is None:
            return Text("")
        seconds = (
            f" {check.seconds:.0f} s" if check.status in (Status.PASSED, Status.FAILED) else ""
        )
        return Text(f"{SIGNS[check.status]}{seconds}", style=STYLES[check.status])
