# SPDX-License-Identifier: Apache-2.0
"""The matrix on the terminal while it fills: a table that is redrawn, or plain lines where that
cannot be."""

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

from farwatch_harness.matrix.estimates import Forecast
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.matrix.scheduler import AT_ONCE, IN_GUEST
from farwatch_harness.results import Check, CheckName, State
from farwatch_harness.util import progress

STYLES = {
    State.PASSED: "green",
    State.FAILED: "bold red",
    State.BLOCKED: "yellow",
    State.ABSENT: "dim",
}
SIGNS = {State.PASSED: "✓", State.FAILED: "✗", State.BLOCKED: "-", State.ABSENT: ""}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REDRAW = 4.0
# Seconds that a check has to be expected to take for its beginning to be told in a line.
WORTH_A_LINE = 5.0


class Caption(io.TextIOBase):
    """Stands in for stderr while the table is shown: what others say of their progress becomes the
    table's caption."""

    def __init__(self, display: "Display") -> None:
        self.display = display

    def write(self, text: str) -> int:
        words = [
            word.strip() for word in re.split(r"[\r\n]", ESCAPES.sub("", text)) if word.strip()
        ]
        if words:
            self.display.now(words[-1])
        return len(text)

    def isatty(self) -> bool:
        # Not for lines that rewrite themselves, but so that they come as often as one.
        return True


class Display:
    """Shows the cells of the rows as they are found, and what is being done."""

    def __init__(self, rows: Sequence[Row], names: Sequence[CheckName], forecast: Forecast) -> None:
        self.rows = rows
        self.names = names
        self.forecast = forecast
        self.cells: dict[tuple[int, CheckName], Check] = {}
        # What is under way, since when.
        self.current: dict[tuple[int, CheckName], float] = {}
        self.started = time.monotonic()
        self.doing = ""
        self.live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the table on stderr until the block ends; on no terminal the lines must do."""
        console = Console(file=sys.stderr)
        if not console.is_terminal:
            yield
            return
        # Drawn from here only: a redraw in another thread would see cells half changed.
        self.live = Live(
            console=console,
            get_renderable=self.table,
            refresh_per_second=REDRAW,
            redirect_stderr=False,
        )
        with self.live, contextlib.redirect_stderr(Caption(self)):
            yield
        self.live = None

    def began(self, row: Row, name: CheckName) -> None:
        """A check has begun."""
        self.current[row.number, name] = time.monotonic()
        self.doing = ""
        if self.live is None and self.forecast.seconds(row, name) > WORTH_A_LINE:
            left = progress.duration(self.left())
            progress.say(f"  {row.number:>2} {name} of {row.title} ... (about {left} left)")

    def ended(self, row: Row, check: Check) -> None:
        """A check has ended."""
        self.cells[row.number, check.name] = check
        self.current.pop((row.number, check.name), None)
        if self.live is None and check.state is not State.ABSENT:
            reason = f": {check.reason}" if check.reason else ""
            progress.say(
                f"  {row.number:>2} {check.name} {check.state},"
                f" {progress.duration(check.seconds)}{reason}"
            )

    def now(self, text: str) -> None:
        """What is being done in the current check."""
        self.doing = text

    def left(self) -> float:
        """Seconds until all is done, as far as can be told."""
        open_cells = [
            (row, name)
            for row in self.rows
            for name in self.names
            if (row.number, name) not in self.cells
        ]
        guests = self.forecast.left(cell for cell in open_cells if cell[1] in IN_GUEST)
        others = self.forecast.left(cell for cell in open_cells if cell[1] not in IN_GUEST)
        spent = sum(time.monotonic() - since for since in list(self.current.values()))
        return max(others + (guests - spent) / AT_ONCE, 0.0)

    def table(self) -> Table:
        """All that is known."""
        spent = progress.duration(time.monotonic() - self.started)
        ended = all((row.number, name) in self.cells for row in self.rows for name in self.names)
        title = (
            f"{spent}" if ended else f"{spent} so far, about {progress.duration(self.left())} left"
        )
        table = Table(
            title=title, caption=Text(self.doing), caption_justify="left", title_justify="left"
        )
        table.add_column("", justify="right", no_wrap=True, min_width=2)
        table.add_column("patch", no_wrap=True, overflow="ellipsis")
        for name in self.names:
            table.add_column(name, justify="right", no_wrap=True, min_width=max(len(name), 7))
        for row in self.rows:
            title = row.title.partition("-")[2].replace("-", " ") or row.title
            table.add_row(
                str(row.number), Text(title), *(self.cell(row, name) for name in self.names)
            )
        return table

    def cell(self, row: Row, name: CheckName) -> Text:
        since = self.current.get((row.number, name))
        if since is not None:
            return Text(f"… {time.monotonic() - since:.0f} s", style="bold")
        check = self.cells.get((row.number, name))
        if check is None:
            return Text("")
        seconds = f" {check.seconds:.0f} s" if check.state in (State.PASSED, State.FAILED) else ""
        return Text(f"{SIGNS[check.state]}{seconds}", style=STYLES[check.state])
