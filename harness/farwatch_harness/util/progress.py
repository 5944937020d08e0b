# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps, on stderr: stdout is for results."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds between two lines about the same step where lines cannot be rewritten.
PLAIN_INTERVAL = 15.0
TERMINAL_INTERVAL = 0.2


def say(text: str) -> None:
    """Print one line for the user."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return `seconds` as people write them: 0.4 s, 12 s, 3 min 44 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


class Step:
    """A running step. `update` may be called at any rate; it limits how often it prints."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.shown = self.started
        self.terminal = sys.stderr.isatty()

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def update(self, text: str) -> None:
        """Show how far the step is."""
        now = time.monotonic()
        if now - self.shown < (TERMINAL_INTERVAL if self.terminal else PLAIN_INTERVAL):
            return
        self.shown = now
        line = f"  {self.title}: {text}, {duration(self.elapsed)}"
        if self.terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def end(self, word: str) -> None:
        """Print the step's last line: how it ended, and how long it took."""
        start = "\r\x1b[K" if self.terminal else ""
        say(f"{start}- {self.title}: {word}, {duration(self.elapsed)}")


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Print `title`, and at the end how long the step took, or that it failed."""
    running = Step(title)
    say(f"- {title} ...")
    try:
        yield running
    except BaseException:
        running.end("failed")
        raise
    running.end("done")
