# SPDX-License-Identifier: Apache-2.0
"""Runs the real command ``farwatchd`` as a process, for tests; every wait has a limit."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

TIMEOUT = 20.0
#: Where the event loop sleeps in the kernel; which function is inlined depends on the compiler.
_SLEEPS = ("do_epoll_wait", "ep_poll")
COMMAND = (sys.executable, "-m", "farwatchd")
USER = pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
#: The interpreter and the modules may lie where an ordinary user cannot read: they are loaded
#: before.
AS_USER = f"""
import ctypes, os, sys
import farwatchd.check, farwatchd.daemon, pyseccomp
from farwatchd.cli import main
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(*[{USER.pw_gid}] * 3)
    os.setresuid(*[{USER.pw_uid}] * 3)
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
sys.exit(main(sys.argv[1:]))
"""


def error_line(output: str) -> str:
    """Return the only error of a daemon that ended, which is its last line."""
    lines = output.splitlines()
    assert [line.startswith("farwatchd: ") for line in lines].count(True) == 1, output
    assert lines[-1].startswith("farwatchd: ") and "Traceback" not in output, output
    return lines[-1]


class DaemonProcess:
    """A running daemon that listens on ``socket_path``.

    Its log is read up to the line that a test waits for.
    """

    command: Sequence[str] = COMMAND

    def __init__(
        self,
        socket_path: Path,
        options: Sequence[str],
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.socket_path = socket_path
        self._log = b""
        self.process = subprocess.Popen(
            [*self.command, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env=None if environment is None else {**os.environ, **environment},
        )

    @property
    def log(self) -> str:
        """What has been logged, as far as it was read."""
        return self._log.decode(errors="replace")

    @property
    def pid(self) -> int:
        """The id of the process that serves: with a PID namespace not the one that was started."""
        return next(
            (pid for pid in children(self.process.pid) if _in_namespace(pid)),
            self.process.pid,
        )

    def wait_for(self, text: str) -> None:
        """Wait until ``text`` has been logged."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + TIMEOUT
        while text not in self.log:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.process.stderr], [], [], left)[0]
            assert ready, f"{text!r} was not logged within {TIMEOUT} s, but: {self.log}"
            part = os.read(self.process.stderr.fileno(), 1 << 16)
            assert part, f"the daemon ended without logging {text!r}: {self.log}"
            self._log += part

    def connect(self) -> socket.socket:
        """Connect to the daemon as a VMM does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(self.socket_path))
        return sock

    def descriptors(self) -> int:
        """How many descriptors the daemon has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def waits(self) -> list[str]:
        """Where each thread waits in the kernel (proc(5), ``wchan``)."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            # A thread may end meanwhile.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append((task / "wchan").read_text())
        return found

    def wait_until_idle(self) -> None:
        """Wait until the loop sleeps: a reply is there before its turn has ended."""
        wchan = Path(f"/proc/{self.pid}/wchan")
        wait_until(lambda: wchan.read_text().startswith(_SLEEPS), "the end of the loop's turn")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit status; the log is complete then."""
        self._log += self.process.communicate(timeout=TIMEOUT)[1]
        return self.process.returncode


@contextlib.contextmanager
def running(socket_path: Path, shared: Path, *options: str) -> Iterator[DaemonProcess]:
    """Yield a daemon that is ready; it must log nothing worse than a warning."""
    where = [f"--socket-path={socket_path}", f"--shared-dir={shared}", "--keep-serving"]
    arguments = [*where, *options]
    daemon = DaemonProcess(socket_path, arguments)
    try:
        daemon.wait_for("listening on")
        yield daemon
        if daemon.process.poll() is None:
            assert daemon.end() == 0
        assert "Traceback" not in daemon.log and "ERROR" not in daemon.log, daemon.log
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody reports."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {TIMEOUT} s"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _in_namespace(pid: int) -> bool:
    """Return whether a process is in a PID namespace of its own, and has not ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(status(pid)["NSpid"].split()) > 1
    return False


def status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
