# SPDX-License-Identifier: Apache-2.0
"""A daemon with a state directory that is killed, at a chosen moment or at any, and started again.

A crash point is a function of the daemon: it ends the process with SIGKILL, before or after the
call, while the request ``ASKED`` is served. Or it is a number of lines of Python code:
``LineCrash``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.daemon_guest import ASKED, MountedGuest
from tests.support.daemon_process import COMMAND, DaemonProcess

_CRASHING = f"""
import os, signal, sys
from functools import wraps
from farwatchd.cli import main
from farwatchd.fuse import session
from farwatchd.state_dir import in_flight, journal_writer
from farwatchd.virtqueue import ring
from farwatchd.wire.fuse import in_header

when, place, *arguments = sys.argv[1:]
served = False

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def crashing(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        if served and when == "before":
            die()
        result = function(*args, **kwargs)
        if served and when == "after":
            die()
        return result
    return wrapper

def note_request(function):
    @wraps(function)
    def wrapper(self, chain):
        global served
        start = b"".join(bytes(view) for view in chain.readable)[:in_header.size]
        served = served or in_header.values(start)[2] >= {ASKED}
        return function(self, chain)
    return wrapper

session.Session.handle = note_request(session.Session.handle)
owner, name = {{
    "handle": (session.Session, "handle"),
    "intend": (in_flight.InFlight, "intend"),
    "commit": (journal_writer.Journal, "_append"),
    "hold": (in_flight.InFlight, "add"),
    "use": (ring.SplitRing, "add_used"),
    "complete": (in_flight.InFlight, "completed"),
}}[place]
function = getattr(owner, name)
if place == "handle":
    # After the note that it is this request.
    function = function.__wrapped__
    setattr(owner, name, note_request(crashing(function)))
else:
    setattr(owner, name, crashing(function))
sys.exit(main(arguments))
"""

_LINES = """
import os, signal, sys, threading
from functools import wraps
from farwatchd.cli import main
from farwatchd.fuse.session import Session
from farwatchd.state_dir.recovery import Recovery
from farwatchd.wire.fuse import in_header

path, *arguments = sys.argv[1:]
left = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def trace(frame, event, argument):
    global left
    if event == "line":
        left -= 1
        if left < 0:
            die()
    return trace

def begin(place, unique):
    global left
    try:
        with open(path) as file:
            expected, lines, former = file.read().split()
    except FileNotFoundError:
        return
    if expected != place or unique <= int(former) or sys.gettrace() is not None:
        return
    left = int(lines)
    # It may sleep before there are as many lines.
    threading.Timer(0.2, die).start()
    sys.settrace(trace)
    frame = sys._getframe(2)
    while frame is not None:
        frame.f_trace = trace
        frame = frame.f_back

handle, resume = Session.handle, Recovery.resume

def traced_handle(self, chain):
    start = b"".join(bytes(view) for view in chain.readable)[:in_header.size]
    unique = in_header.values(start)[2]
    if unique >= @ASKED@:
        begin("request", unique)
    return handle(self, chain)

def traced_resume(self, vrings):
    begin("recovery", 1)
    return resume(self, vrings)

Session.handle, Recovery.resume = traced_handle, traced_resume
sys.exit(main(arguments))
""".replace("@ASKED@", str(ASKED))


class LineCrash(NamedTuple):
    """A crash before a line of code, by how many lines of the event loop's thread come before.

    The file ``path`` says when, if it is there.
    """

    path: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The command of a daemon that crashes there."""
        return (sys.executable, "-c", _LINES, str(self.path))

    def in_request(self, lines: int, unique: int) -> None:
        """Have the daemon die in the first request with a number above ``unique``.

        It dies, too, when it has served that before.
        """
        self.path.write_text(f"request {lines} {unique}")

    def in_recovery(self, lines: int) -> None:
        """Have the daemon die when it restores a session, or when it has done that."""
        self.path.write_text(f"recovery {lines} 0")

    def disarm(self) -> None:
        """Have the daemon live."""
        self.path.unlink(missing_ok=True)


class FunctionCrash(NamedTuple):
    """A crash ``when`` ("before", "after") a function of ``_CRASHING`` is called."""

    when: str
    place: str

    @property
    def command(self) -> tuple[str, ...]:
        """The command of a daemon that crashes there."""
        return (sys.executable, "-c", _CRASHING, self.when, self.place)


Crash = LineCrash | FunctionCrash


class MortalDaemon:
    """One share, and the daemons that serve it one after the other, each with the same state."""

    def __init__(self, directory: Path, *options: str, crash: Crash | None = None) -> None:
        self.socket_path = directory / "socket"
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.state = directory / "state"
        self.options = options
        #: Whether the VMM connects again. It need not: a process keeps its connection.
        self.reconnect = False
        self.daemons: list[DaemonProcess] = []
        self.daemon = self.start(crash=crash)

    def start(self, *options: str, crash: Crash | None = None) -> DaemonProcess:
        """Start a daemon; with ``crash`` it ends before or after that."""
        self.daemon = self.launch(*options, crash=crash)
        self.daemon.wait_for("listening on")
        return self.daemon

    def replace(self) -> None:
        """Have another daemon replace the running one."""
        self.daemon = self.launch("--replace")
        self.daemon.wait_for("replaced the daemon")

    def launch(self, *options: str, crash: Crash | None = None) -> DaemonProcess:
        """Start a daemon that may refuse to serve."""
        where = [
            f"--socket-path={self.socket_path}",
            f"--shared-dir={self.shared}",
            f"--state-dir={self.state}",
        ]
        command: tuple[str, ...] = COMMAND
        if crash is not None:
            # The filter would end the process for kill(2), too, but not by SIGKILL.
            command = crash.command
            # Where it ends is a place in the interpreter's code.
            options = (*options, "--seccomp=none", "--native=off")
        daemon = _MortalProcess(command, self.socket_path, [*where, *self.options, *options])
        self.daemons.append(daemon)
        return daemon

    def kill(self) -> None:
        """End the daemon with SIGKILL; with ``reconnect`` its descriptors, too."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.daemon.pid, signal.SIGKILL)
        self.daemon.wait()
        if self.reconnect:
            self.kill_store()

    def killed(self) -> None:
        """Wait for the end of a daemon that crashes."""
        self.daemon.wait()
        assert self.daemon.process.returncode == -signal.SIGKILL, self.daemon.log

    def store_pid(self) -> int | None:
        """Return the process that has the descriptors, if there is one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            return self._connect_store(sock)

    def kill_store(self) -> None:
        """End the process that has the descriptors, if there is one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            pid = self._connect_store(sock)
            if pid is None:
                return
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(1 << 16):
                    pass

    def _connect_store(self, sock: socket.socket) -> int | None:
        if sock.connect_ex(os.path.relpath(self.state / "descriptors")):
            return None
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("=iII", credentials)[0])

    def restart(self, guest: MountedGuest, *options: str) -> None:
        """Kill the daemon, and have the guest go on with another one."""
        self.kill()
        self.start(*options)
        self.go_on(guest)

    def go_on(self, guest: MountedGuest) -> None:
        """Have the guest go on: its VMM connects again, if that is what it does."""
        if self.reconnect:
            guest.reconnect(self.daemon)

    def close(self) -> None:
        """End all daemons; the last one must end well."""
        try:
            if self.daemon.process.poll() is None:
                assert self.daemon.end() == 0
            for daemon in self.daemons:
                assert "Traceback" not in daemon.log and "bug" not in daemon.log, daemon.log
        finally:
            for daemon in self.daemons:
                if daemon.process.poll() is None:
                    daemon.process.kill()
                    daemon.wait()


class _MortalProcess(DaemonProcess):
    def __init__(self, command: tuple[str, ...], socket_path: Path, options: list[str]) -> None:
        self.command = command
        super().__init__(socket_path, options)


@contextlib.contextmanager
def mortal(directory: Path, *options: str, crash: Crash | None = None) -> Iterator[MortalDaemon]:
    """Yield a running daemon, which may be killed; with ``crash`` it is, there."""
    daemon = MortalDaemon(directory, *options, crash=crash)
    try:
        yield daemon
    finally:
        daemon.close()
