# SPDX-License-Identifier: Apache-2.0
"""Runs a virtio-fs daemon: waits until it listens, reads its log, and finds problems in it."""

import contextlib
import errno
import os
import re
import shutil
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
#: What /proc/PID/fd says of the descriptors of inotify and fanotify.
GROUPS = ("anon_inode:inotify", "anon_inode:[fanotify]")
#: A watch or a mark of an inode in their fdinfo.
WATCH = re.compile(r"^(?:inotify wd|fanotify ino):", re.MULTILINE)
START_LIMIT = 30.0
STOP_LIMIT = 10.0


def farwatchd_command(
    socket: Path, shared: Path, tag: str, options: Sequence[str] = ()
) -> list[str]:
    """Return the command line of farwatchd, from the virtual environment of the harness."""
    program = Path(sys.executable).parent / "farwatchd"
    return [
        str(program),
        f"--socket-path={socket}",
        f"--shared-dir={shared}",
        f"--tag={tag}",
        # The harness ends the daemon itself, and sees whether it ended before.
        "--keep-serving",
        *options,
    ]


def watches_of(pid: int) -> int:
    """Return the number of inotify watches and fanotify inode marks of the process."""
    count = 0
    process = Path(f"/proc/{pid}")
    for entry in (process / "fd").iterdir():
        # The descriptor may have been closed since the directory was read.
        with contextlib.suppress(FileNotFoundError):
            # Read only these fdinfo files: a daemon may have a hundred thousand descriptors.
            if str(entry.readlink()) in GROUPS:
                text = (process / "fdinfo" / entry.name).read_text()
                count += len(WATCH.findall(text))
    return count


class Daemon:
    """A running daemon. Its stderr goes to `log`, line by line.

    The daemon gets SIGTERM when the thread that starts it ends, so it cannot outlive a script that
    is killed. start() it in a thread that lives as long as the daemon.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command = tuple(command)
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
        """Start the program. OSError: it is missing. The caller owns the process."""
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C interrupts the harness, which stops the guest first and then the daemon.
            start_new_session=True,
        )

    @classmethod
    def start(cls, command: Sequence[str], log: Path, ready: str = READY) -> "Daemon":
        """Start a daemon and wait until it logs `ready`.

        HarnessError: it did not start or did not log `ready`; the text has its last lines.
        """
        daemon = cls(command, log)
        try:
            daemon.wait_for_line(ready, START_LIMIT)
        except HarnessError:
            daemon.stop()
            raise
        return daemon

    def collect(self) -> None:
        """Read the log until the daemon ends; runs in a thread."""
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
        """Wait until a line of the log after the first `since` lines has `text`.

        HarnessError: `limit` seconds have passed, or the daemon has ended.
        """

        def found() -> bool:
            return any(text in line for line in self.lines[since:])

        with self.changed:
            self.changed.wait_for(lambda: found() or self.ended, limit)
            if not found():
                words = subprocesses.last_lines("\n".join(self.lines))
                state = "ended" if self.ended else f"did not log '{text}' in {limit:.0f} s"
                raise HarnessError(
                    f"the daemon {state}: {words or 'it logged nothing'} (see {self.log})"
                )

    @property
    def log_length(self) -> int:
        """The number of lines in the log."""
        with self.changed:
            return len(self.lines)

    @property
    def pid(self) -> int:
        """The id of the process that serves.

        farwatchd serves in a child of the process that was started, in a PID namespace.
        """
        started = self.process.pid
        children = Path(f"/proc/{started}/task/{started}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            if re.search(r"^NSpid:\t\d+\t", status, re.MULTILINE):
                return int(child)
        return started

    def descriptors(self) -> int:
        """Return how many descriptors the daemon has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def host_watches(self) -> int:
        """Return the number of the daemon's inotify watches and fanotify inode marks."""
        return watches_of(self.pid)

    @property
    def running(self) -> bool:
        """Whether the daemon has not ended."""
        return self.process.poll() is None

    def tracebacks(self, since: int = 0) -> list[str]:
        """Return the tracebacks in the log after the first `since` lines, each as one text."""
        with self.changed:
            lines = self.lines[since:]
        starts = [number for number, line in enumerate(lines) if TRACEBACK in line]
        return ["\n".join(lines[max(start - 1, 0) : start + 40]) for start in starts]

    def warnings(self, since: int = 0) -> list[str]:
        """Return the lines of level warning and above, after the first `since` lines."""
        with self.changed:
            return [line for line in self.lines[since:] if WARNING.search(line)]

    def resident_bytes(self) -> int:
        """Return the daemon's resident memory, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
        )

    def wait(self) -> int:
        """Wait for the end of a daemon that ends by itself; return its exit status.

        HarnessError: it does not end.
        """
        try:
            status = self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            raise HarnessError(
                f"the daemon does not end in {STOP_LIMIT:.0f} s (see {self.log})"
            ) from None
        self.reader.join(STOP_LIMIT)
        return status

    def stop(self) -> int:
        """Terminate the daemon, kill it at the limit, and return its exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.reader.join(STOP_LIMIT)
        return status
