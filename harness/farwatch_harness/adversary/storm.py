# SPDX-License-Identifier: Apache-2.0
"""The host's end of the storm program in the guest: sends it commands and sorts what it says."""

import time
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import cache, paths, subprocesses
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

SOURCE = Path(__file__).with_name("storm.c")
#: How long the program may take for a command that touches no file of the share.
COMMAND_LIMIT = 30.0
#: How long the agent collects lines before it is asked again.
PATIENCE = 0.5


@dataclass(frozen=True)
class Watch:
    """One watch as /proc/PID/fdinfo shows it."""

    process: int
    fd: int
    kind: str
    wd: int
    ino: int
    device: int
    mask: int


@dataclass(frozen=True)
class Heard:
    """One event that a watcher has read: `key` is the watch descriptor of inotify, the nodeid of
    fanotify."""

    process: int
    fd: int
    kind: str
    key: int
    mask: int


def program() -> Path:
    """The program, built statically; kept in the cache by its text."""
    source = SOURCE.read_bytes()
    folder = paths.cache_root() / "programs" / f"storm-{cache.content_key(source)}"

    def make(target: Path) -> None:
        argv = [
            "gcc",
            "-O1",
            "-g",
            "-Wall",
            "-static",
            "-pthread",
            "-o",
            str(target / "storm"),
            str(SOURCE),
        ]
        subprocesses.run(argv)

    return cache.published(folder, make) / "storm"


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
        """Gives the program its next lines."""
        answer = self.guest.call("processes_ask", texts=[(self.handle, f"{text}\n")], limit=0.0)
        self.lines += self.sort(answer[0])

    def take(self, limit: float, until: str | None = None) -> list[str]:
        """What the program says until a line has `until`, or for `limit` s; lines for everybody are
        sorted out."""
        answer = self.guest.call(
            "process_lines", limit, handle=self.handle, limit=limit, count=None, until=until
        )
        if answer["status"] is not None:
            raise HarnessError(f"the storm program ended with {answer['status']}")
        found, self.lines = self.lines + self.sort(answer["lines"]), []
        return found

    def sort(self, lines: list[str]) -> list[str]:
        """Takes note of what is not the answer to a command, and returns the rest."""
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
        """Runs a command to its end and returns the lines that it gave."""
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
        """Starts a process of two actors."""
        self.command(f"spawn {process} {user}")
        self.dead.discard(process)

    def start(self, parts: dict[int, list[str]]) -> None:
        """Has all actors begin their parts."""
        self.running |= set(parts)
        self.send("\n".join(f"do {actor} {';'.join(ops)}" for actor, ops in parts.items()))

    def wait(self, limit: float) -> set[int]:
        """Waits until all actors are done, or for `limit` s; returns those that are not."""
        deadline = time.monotonic() + limit
        while self.running and time.monotonic() < deadline:
            self.take(PATIENCE, until="done")
        return set(self.running)

    def steps(self) -> int:
        """How many steps all actors have done since the program was started."""
        return int(self.command("steps")[0].split()[1])

    def watches(self) -> list[Watch]:
        """What is watched by all processes."""
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
        """Has all events that wait read and forgotten."""
        self.command("drain")

    def heard(self, quiet: float) -> set[Heard]:
        """What is read until nothing comes for `quiet` s."""
        found = set()
        for line in self.command(f"heard {int(quiet * 1000)}", COMMAND_LIMIT + quiet):
            words = line.split()
            if words[0] == "event":
                found.add(
                    Heard(int(words[1]), int(words[2]), words[3], int(words[4]), int(words[5], 0))
                )
        return found
