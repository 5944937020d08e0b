# SPDX-License-Identifier: Apache-2.0
"""Starts a virtio-fs daemon, waits until it listens, keeps its log, and tells what is wrong with
it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError

READY = "listening on"
TRACEBACK = "Traceback (most recent call last)"
WARNING = re.compile(r"\b(?:WARNING|ERROR|CRITICAL)\b")
START_LIMIT = 30.0
STOP_LIMIT = 10.0


def farwatchd_command(
    socket: Path, shared: Path, tag: str, options: Sequence[str] = ()
) -> list[str]:
    """The words that start our daemon from the environment that the harness runs in."""
    program = Path(sys.executable).parent / "farwatchd"
    return [
        str(program),
        f"--socket-path={socket}",
        f"--shared-dir={shared}",
        f"--tag={tag}",
        *options,
    ]


class Daemon:
    """A running daemon. Its stderr goes to `log`, line by line."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.lines: list[str] = []
        self.ended = False
        self.changed = threading.Condition()
        try:
            self.process = self.run(command)
        except OSError as error:
            raise HarnessError(
                f"the daemon cannot be started: {command[0]}: {error.strerror}"
            ) from None
        self.reader = threading.Thread(target=self.collect, name=f"log of {log.name}", daemon=True)
        self.reader.start()

    @staticmethod
    def run(command: Sequence[str]) -> subprocess.Popen[str]:
        """Starts the program."""
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the harness, which ends the guest first and then the daemon.
            start_new_session=True,
        )

    @classmethod
    def start(cls, command: Sequence[str], log: Path, ready: str = READY) -> "Daemon":
        """Starts a daemon and waits until it says `ready`; HarnessError with its last words when it
        does not."""
        daemon = cls(command, log)
        try:
            daemon.wait_for_line(ready, START_LIMIT)
        except HarnessError:
            daemon.stop()
            raise
        return daemon

    def collect(self) -> None:
        assert self.process.stderr is not None
        with self.log.open("w") as keep:
            for line in self.process.stderr:
                keep.write(line)
                keep.flush()
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for_line(self, text: str, limit: float, since: int = 0) -> None:
        """Waits until a line of the log after the first `since` has `text`; HarnessError at the
        limit or at its end."""

        def found() -> bool:
            return any(text in line for line in self.lines[since:])

        with self.changed:
            self.changed.wait_for(lambda: found() or self.ended, limit)
            if not found():
                words = subprocesses.last_words("\n".join(self.lines))
                state = "ended" if self.ended else f"did not say '{text}' in {limit:.0f} s"
                raise HarnessError(
                    f"the daemon {state}: {words or 'it said nothing'} (see {self.log})"
                )

    @property
    def mark(self) -> int:
        """How many lines the log has now, to ask for what comes after them."""
        with self.changed:
            return len(self.lines)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tracebacks(self, since: int = 0) -> list[str]:
        """The tracebacks in the log after the first `since` lines, each as one text."""
        with self.changed:
            lines = self.lines[since:]
        starts = [number for number, line in enumerate(lines) if TRACEBACK in line]
        return ["\n".join(lines[max(start - 1, 0) : start + 40]) for start in starts]

    def warnings(self, since: int = 0) -> list[str]:
        """The lines of the log, after the first `since`, of level warning and above."""
        with self.changed:
            return [line for line in self.lines[since:] if WARNING.search(line)]

    def resident_bytes(self) -> int:
        """The memory that the daemon uses now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
        )

    def stop(self) -> int:
        """Ends the daemon, by force when it does not end by itself in time, and returns its exit
        status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.reader.join(STOP_LIMIT)
        return status
