# SPDX-License-Identifier: Apache-2.0
"""The host's end of the storm program in the guest: sends commands and sorts the output."""

import time
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import compiler
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

SOURCE = Path(__file__).with_name("storm.c")
#: Seconds for a command that touches no file of the share.
COMMAND_LIMIT = 30.0
#: Seconds for which the agent collects lines before the next call.
PATIENCE = 0.5


@dataclass(frozen=True)
class Watch:
    """One watch, as /proc/PID/fdinfo shows it."""

    process: int
    fd: int
    kind: str
    wd: int
    ino: int
    device: int
    mask: int


@dataclass(frozen=True)
class Heard:
    """One event that a watcher has read.

    key: the watch descriptor for inotify, the nodeid for fanotify.
    """

    process: int
    fd: int
    kind: str
    key: int
    mask: int


def program() -> Path:
    """Return the program, built statically."""
    return compiler.program(SOURCE, "-O1", "-g", "-Wall", "-static", "-pthread")


class Storm:
    """The running program. One thread uses it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        answer = guest.call("spawn", argv=[str(program())], stdin=True)
        self.handle = answer["handle"]
        self.lines: list[str] = []
        self.bad: list[str] = []
        self.running: set[int] = set()
        self.dead: set[int] = set()

    def send(self, text: str) -> None:
        """Send commands to the program."""
        answer = self.guest.call("processes_ask", texts=[(self.handle, f"{text}\n")], limit=0.0)
        self.lines += self.sort(answer[0])

    def take(self, limit: float, until: str | None = None) -> list[str]:
        """Return the output up to a line with `until`, or of `limit` seconds.

        Lines that are not the answer to a command are sorted out.
        """
        answer = self.guest.call(
            "process_lines", limit, handle=self.handle, limit=limit, count=None, until=until
        )
        if answer["status"] is not None:
            raise HarnessError(f"the storm program ended with {answer['status']}")
        found, self.lines = self.lines + self.sort(answer["lines"]), []
        return found

    def sort(self, lines: list[str]) -> list[str]:
        """Record the lines that are not the answer to a command; return the others."""
        left = []
        for line in lines:
            kind, _, rest = line.partition(" ")
            if kind == "done":
                self.running.discard(int(rest))
            elif kind == "died":
                self.dead.add(int(rest))
                self.running -= {2 * int(rest), 2 * int(rest) + 1}
            elif kind == "bad":
                self.bad.append(rest)
            else:
                left.append(line)
        return left

    def command(self, text: str, limit: float = COMMAND_LIMIT) -> list[str]:
        """Run a command to its end; return its output."""
        self.send(text)
        name = text.split()[0]
        deadline = time.monotonic() + limit
        found = self.take(0.0)
        while time.monotonic() < deadline:
            if f"ok {name}" in found:
                return [line for line in found if line != f"ok {name}"]
            found += self.take(max(deadline - time.monotonic(), 0.0), until=f"ok {name}")
        raise HarnessError(f"the storm program did not finish '{name}' in {limit:.0f} s")

    def spawn(self, process: int, user: int) -> None:
        """Start a process of two actors."""
        self.command(f"spawn {process} {user}")
        self.dead.discard(process)

    def start(self, parts: dict[int, list[str]]) -> None:
        """Have all actors begin their parts."""
        self.running |= set(parts)
        self.send("\n".join(f"do {actor} {';'.join(ops)}" for actor, ops in parts.items()))

    def wait(self, limit: float) -> set[int]:
        """Wait until all actors are done, or for `limit` seconds; return those that are not."""
        deadline = time.monotonic() + limit
        while self.running and time.monotonic() < deadline:
            self.take(PATIENCE, until="done")
        return set(self.running)

    def steps(self) -> int:
        """Return how many steps all actors have done since the program's start."""
        return int(self.command("steps")[0].split()[1])

    def watches(self) -> list[Watch]:
        """Return the watches of all processes."""
        found = []
        for line in self.command("report"):
            words = line.split()
            if words[0] == "watch":
                found.append(
                    Watch(
                        int(words[1]),
                        int(words[2]),
                        words[3],
                        int(words[4]),
                        int(words[5], 0),
                        int(words[6], 0),
                        int(words[7], 0),
                    )
                )
        return found

    def drain(self) -> None:
        """Have all pending events read."""
        self.command("drain")

    def heard(self, quiet: float) -> set[Heard]:
        """Return the events that are read until none comes for `quiet` seconds."""
        found = set()
        for line in self.command(f"heard {int(quiet * 1000)}", COMMAND_LIMIT + quiet):
            words = line.split()
            if words[0] == "event":
                found.add(
                    Heard(int(words[1]), int(words[2]), words[3], int(words[4]), int(words[5], 0))
                )
        return found
