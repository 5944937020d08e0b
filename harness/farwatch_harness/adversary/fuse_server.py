# SPDX-License-Identifier: Apache-2.0
"""The host's end of the /dev/fuse server in the guest (server.c).

It gives the server lies and notifications, and reads what the server knows.
"""

import stat
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from farwatchd.watch.event_record import WATCHES_LOST
from farwatchd.wire import fsnotify as wire

from farwatch_harness.adversary import records
from farwatch_harness.adversary.filesystem import (
    DIRECTORIES,
    FILES,
    Belief,
    Known,
    ServerNode,
)
from farwatch_harness.adversary.script import MANY, MOUNT, Lie, Lies, Script, init_flags
from farwatch_harness.util import compiler
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

SOURCE = Path(__file__).with_name("server.c")
COMMAND_LIMIT = 30.0
#: Seconds for a round's timeline to end.
TIMELINE_LIMIT = 30.0
WATCHABLE = int(wire.Event(0x1FFF) | wire.Event.ON_CHILD | wire.Event.RENAME)


def program() -> Path:
    """Return the server, built with AddressSanitizer."""
    return compiler.program(
        SOURCE,
        "-O1",
        "-g",
        "-Wall",
        "-fsanitize=address",
        "-static-libasan",
        "-fno-omit-frame-pointer",
        f"-DFUSE_FSNOTIFY={wire.FUSE_FSNOTIFY}",
        f"-DFUSE_NOTIFY_FSNOTIFY={wire.FUSE_NOTIFY_FSNOTIFY}",
    )


class FuseServer:
    """The running server. It comes back after it was killed: a new mount is a new connection."""

    gone = False

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.lock = threading.Lock()
        self.random = Random(0)
        self.bad: list[str] = []
        self.lines: list[str] = []
        self.timeline: threading.Thread | None = None
        self.failed: list[BaseException] = []
        answer = guest.call("spawn", argv=[str(program()), MOUNT], stdin=True)
        self.handle = answer["handle"]
        for name in DIRECTORIES:
            self.send_line(f"mkdir {name}")
        for name in [*FILES, *(f"many/{number}" for number in range(MANY))]:
            self.send_line(f"touch {name}")
        self.command("state")

    def send_line(self, *texts: str) -> None:
        """Send commands, and sort the output."""
        lines = "".join(f"{text}\n" for text in texts)
        answer = self.guest.call("processes_ask", texts=[(self.handle, lines)], limit=0.0)
        self.sort(answer[0])

    def sort(self, lines: list[str]) -> None:
        """Record the faults that the server reports."""
        for line in lines:
            if line.startswith("bad ") or "AddressSanitizer" in line:
                self.bad.append(line.removeprefix("bad "))
        self.lines += lines

    def command(self, text: str) -> list[str]:
        """Run a command to its end; return the output since the previous one."""
        with self.lock:
            self.lines.clear()
            self.send_line(text)
            name = f"ok {text.split()[0]}"
            deadline = time.monotonic() + COMMAND_LIMIT
            while time.monotonic() < deadline:
                if name in self.lines:
                    return list(self.lines)
                answer = self.guest.call(
                    "process_lines", 1.0, handle=self.handle, limit=1.0, count=None, until=name
                )
                self.sort(answer["lines"])
                if answer["status"] is not None:
                    self.bad.append(f"the server ended with {answer['status']}")
                    return list(self.lines)
        raise HarnessError(f"the server did not finish '{text[:60]}' in {COMMAND_LIMIT:.0f} s")

    # The interface that the arena uses.

    def prepare(self, script: Script) -> None:
        """Begin a script."""
        self.random.seed(script.seed)
        self.bad.clear()
        flags = init_flags(script.mode)
        options = f"{flags} {WATCHABLE} {script.max_background} {script.entry_valid}"
        self.command(f"options {options}")
        self.command(f"seed {self.random.getrandbits(31)}")
        self.restore()

    def restore(self) -> None:
        """Make what is missing of the initial tree."""
        with self.lock:
            self.send_line(*(f"mkdir {name}" for name in DIRECTORIES))
            self.send_line(*(f"touch {name}" for name in FILES))

    def begin(self, lies: Lies, timeline: list[list[Any]]) -> None:
        """Begin a round."""
        self.command("true")
        for kind in ("fsnotify", "rest"):
            for lie in getattr(lies, kind):
                self.command(lie_line(kind, lie))
        self.timeline = threading.Thread(target=self.run_timeline, args=(timeline,), daemon=True)
        self.timeline.start()

    def run_timeline(self, timeline: list[list[Any]]) -> None:
        """Perform the actions at their times; runs in a thread."""
        try:
            began = time.monotonic()
            for at, *action in timeline:
                time.sleep(max(0.0, began + at / 1000 - time.monotonic()))
                self.act(action)
        except BaseException as error:
            self.failed.append(error)

    def act(self, action: list[Any]) -> None:
        """Perform one action of a script."""
        name, *words = action
        if name == "records":
            kind, count, times = words
            if kind == "watches-lost":
                self.command("lose")
            if kind in records.UNCERTAIN:
                self.command("doubt")
            payload = records.payload(kind, count, self.known(), self.random)
            self.command(f"notify {times} {payload.hex()}")
        elif name == "raw":
            self.command(f"notify 1 {self.random.randbytes(8 * words[0]).hex()}")
        elif name == "freeze":
            self.command(f"pause {words[0]}")
        elif name == "restart":
            self.command("lose")
            self.command(f"pause {words[0]}")
            self.command(f"notify 1 {WATCHES_LOST.encode().hex()}")
        elif name in ("remove", "replace"):
            self.command(f"{name} {words[0]}")
        elif name == "kill":
            self.command("kill")

    def settle(self) -> None:
        """End all lies, and answer all requests."""
        if self.timeline is not None:
            self.timeline.join(TIMELINE_LIMIT)
        self.command("settle")
        if self.failed:
            raise self.failed.pop()

    def known(self) -> Known:
        """Return what the server knows."""
        found = Known()
        for line in self.command("state"):
            kind, *words = line.split()
            if kind == "session":
                found.initialized, found.negotiated = words[0] == "1", int(words[1])
                found.device = int(words[2])
            elif kind == "node":
                nodeid, generation = int(words[0]), int(words[1])
                mode = stat.S_IFDIR if words[2] == "1" else stat.S_IFREG
                found.nodes[nodeid] = ServerNode(nodeid, generation, mode, quiet=words[3] == "1")
            elif kind == "belief":
                nodeid = int(words[0])
                found.beliefs[nodeid] = Belief(
                    int(words[1]), words[2] == "1", {found.nodes[nodeid].generation}
                )
        return found

    def violations(self) -> list[str]:
        """Return the rules that the client has broken."""
        self.command("state")
        return list(self.bad)

    def history(self, nodeid: int) -> list[str]:
        """Return nothing: this server does not remember its requests."""
        return []

    def requests(self) -> int:
        """Return how many requests have come."""
        lines = self.command("requests")
        return next((int(line.split()[1]) for line in lines if line.startswith("requests")), 0)

    def send(self, payloads: list[bytes]) -> None:
        """Send notifications."""
        with self.lock:
            self.send_line(*(f"notify 1 {payload.hex()}" for payload in payloads))
        self.command("requests")

    def state(self) -> str:
        """Return in words what the server waits for."""
        return "the server is on /dev/fuse"


def lie_line(kind: str, lie: Lie) -> str:
    """Return the command that adds a lie."""
    return f"lie {kind} {lie.what} {int(1000 * lie.probability)} {lie.number}"
