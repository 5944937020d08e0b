# SPDX-License-Identifier: Apache-2.0
"""The guest API: runs programs and system calls in the guest, through its agent (agent.py).

vm/testbed.py has an example. Every call has a limit in seconds, plus SLACK for an emulated guest on
a busy host. Every call may raise:

- OSError, with the guest's errno: a system call failed in the guest.
- GuestError: the agent could not perform the operation for another reason.
- GuestLostError: the guest crashed, ended or did not answer; the text has the end of its console.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.agent import pack, unpack

# Seconds, added to every limit of an operation: an emulated guest on a busy host is slow to answer.
SLACK = 30.0
# Only failures take this long. A guest without KVM, beside another one, can take ten times as long
# as alone.
CALL_LIMIT, EVENT_LIMIT = 120.0, 20.0
READ_SIZE = 1 << 16
INTERVAL = 0.01
PathArgument = str | os.PathLike[str]


class GuestError(HarnessError):
    """The agent could not perform an operation, for another reason than a failed system call."""


@dataclass(frozen=True)
class GuestInotifyEvent:
    """One inotify event as the agent read it; see inotify(7).

    time: when it was read, by CLOCK_MONOTONIC of the guest, in seconds.
    """

    wd: int
    mask: int
    cookie: int
    name: str
    time: float


@dataclass(frozen=True)
class CompletedProcess:
    """A program that ended in the guest.

    status: as subprocess.Popen.returncode; negative for a signal.
    timed_out: whether it was killed at its limit.
    """

    status: int
    stdout: str
    stderr: str
    timed_out: bool


def unread_bytes(channel: socket.socket) -> int:
    """Return how many bytes of those that were sent the other end has not read (SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(channel, termios.TIOCOUTQ, bytes(4)))
    return int(count)


class Guest:
    """The guest. Several threads may use it concurrently.

    channel: the connection to the agent. The VM owns and closes it.
    explain_loss: returns the text of GuestLostError.

    A guest that migrates is held, and then followed to its next channel: calls are not sent
    meanwhile, and replies may come by the one channel or the other, or in part by both.
    """

    def __init__(self, channel: socket.socket, explain_loss: Callable[[], str]) -> None:
        self.channel = channel
        self.explain_loss = explain_loss
        self.replies: dict[int, dict[str, Any]] = {}
        self.lost = False
        self.changed = threading.Condition()
        self.held = False
        self.next_channel: socket.socket | None = None
        self.numbers = itertools.count(1)
        threading.Thread(target=self.collect, name="guest agent", daemon=True).start()

    def collect(self) -> None:
        """Read replies until the last channel ends; runs in a thread."""
        rest = b""
        with contextlib.suppress(ValueError):
            while (data := self.receive()) or self.goes_on():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    reply = json.loads(line)
                    with self.changed:
                        self.replies[reply["id"]] = reply
                        self.changed.notify_all()
        self.mark_lost()

    def receive(self) -> bytes:
        """Return what comes next by the channel; nothing when it has ended."""
        try:
            return self.channel.recv(READ_SIZE)
        except OSError:
            return b""

    def goes_on(self) -> bool:
        """Use the channel that follows the one that has ended; return whether there is one.

        Where the guest is held, wait for it.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.next_channel is not None or not self.held)
            if self.next_channel is None:
                return False
            self.channel, self.next_channel, self.held = self.next_channel, None, False
            self.changed.notify_all()
        return True

    def hold(self) -> None:
        """Send no call from now on. Return when the guest has all that was sent."""
        with self.changed:
            self.held = True
            if self.lost:
                raise GuestLostError(self.explain_loss())
        deadline = time.monotonic() + SLACK
        while left := unread_bytes(self.channel):
            if time.monotonic() > deadline:
                raise GuestLostError(f"the guest does not read {left} bytes")
            time.sleep(INTERVAL)

    def release(self) -> None:
        """Send calls again by the same channel."""
        with self.changed:
            self.held = False
            self.changed.notify_all()

    def follow(self, channel: socket.socket) -> None:
        """Go on by another channel, when the former one has ended."""
        with self.changed:
            self.next_channel = channel
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.next_channel is None or self.lost, SLACK)
            if self.next_channel is not None or self.lost:
                raise GuestLostError(self.explain_loss())

    def mark_lost(self) -> None:
        """Fail all pending and later calls with GuestLostError."""
        with self.changed:
            self.lost = True
            self.held = False
            self.changed.notify_all()

    def wait_until_ready(self, limit: float) -> None:
        """Wait up to `limit` seconds for the agent's first message."""
        self.reply_to(0, "start", limit)

    def call(self, operation: str, limit: float = 0.0, /, **args: Any) -> Any:
        """Run an operation of the agent: its method op_NAME.

        limit: how long the operation itself may take, in seconds.
        args: plain data and bytes.
        """
        number = next(self.numbers)
        request = json.dumps({"id": number, "op": operation, "args": pack(args)}).encode() + b"\n"
        with self.changed:
            self.changed.wait_for(lambda: not self.held)
            if self.lost:
                raise GuestLostError(self.explain_loss())
            try:
                self.channel.sendall(request)
            except OSError:
                raise GuestLostError(self.explain_loss()) from None
        reply = self.reply_to(number, operation, limit + SLACK)
        error = reply.get("error")
        if error is None:
            return unpack(reply["result"])
        if error["errno"] is not None:
            raise OSError(error["errno"], error["message"])
        raise GuestError(f"{operation} in the guest: {error['type']}: {error['message']}")

    def reply_to(self, number: int, operation: str, limit: float) -> dict[str, Any]:
        """Wait up to `limit` seconds for the reply to a request."""
        with self.changed:
            self.changed.wait_for(lambda: number in self.replies or self.lost, limit)
            if number in self.replies:
                return self.replies.pop(number)
            if self.lost:
                raise GuestLostError(self.explain_loss())
        raise GuestLostError(
            f"the guest did not answer '{operation}' in {limit:.0f} s; {self.explain_loss()}"
        )

    def leave(self) -> None:
        """Stop the agent, upon which the guest powers off. There is no reply."""
        with contextlib.suppress(OSError):
            self.channel.sendall(
                json.dumps({"id": next(self.numbers), "op": "leave"}).encode() + b"\n"
            )

    def ping(self) -> dict[str, Any]:
        """Return the agent's "pid", the kernel's "release", and the guest's monotonic "time"."""
        answer: dict[str, Any] = self.call("ping")
        return answer

    def run(
        self,
        *argv: PathArgument,
        limit: float = CALL_LIMIT,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess:
        """Run a program to its end; it is killed after `limit` seconds.

        A status other than 0 is no error here.

        env: variables to add to the agent's environment.
        """
        words = [os.fspath(word) for word in argv]
        answer = self.call(
            "run", limit, argv=words, limit=limit, stdin=stdin, cwd=cwd, env=dict(env or {})
        )
        out, err = (os.fsdecode(answer[name]) for name in ("stdout", "stderr"))
        return CompletedProcess(answer["status"], out, err, answer["timed_out"])

    def shell(self, script: str, limit: float = CALL_LIMIT) -> str:
        """Run a script with sh and return its stdout. GuestError: its status is not 0."""
        done = self.run("sh", "-c", script, limit=limit)
        if done.status != 0 or done.timed_out:
            raise GuestError(
                f"'{script}' in the guest ended with {done.status}: {done.stdout}{done.stderr}"
            )
        return done.stdout

    def spawn(
        self,
        *argv: PathArgument,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
    ) -> GuestProcess:
        """Start a program and leave it running. The caller stops it; the VM's end does, too.

        env: variables to add to the agent's environment.
        stdin: give the program a pipe to read from, else /dev/null.
        """
        words = [os.fspath(word) for word in argv]
        answer = self.call("spawn", argv=words, cwd=cwd, env=dict(env or {}), stdin=stdin)
        return GuestProcess(self, answer["handle"], answer["pid"])

    def inotify(self) -> GuestInotify:
        """Make an inotify instance in the guest. The caller closes it, or uses it in "with"."""
        return GuestInotify(self, self.call("inotify"))

    def os(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call Python's os.NAME in the guest and return its result.

        A stat or statvfs result is a dictionary: guest.os("stat", path)["st_ino"].
        """
        return self.call("os", name=name, args=list(args), kwargs=kwargs)

    def read_file(self, path: PathArgument) -> bytes:
        """Return the content of a file of the guest."""
        data: bytes = self.call("read_file", path=os.fspath(path))
        return data

    def write_file(self, path: PathArgument, data: bytes) -> None:
        """Open a file of the guest with O_CREAT and O_TRUNC, write `data`, close the file."""
        self.call("write_file", path=os.fspath(path), data=data)

    def mount(
        self, source: str, target: str, fstype: str, flags: int = 0, options: str = ""
    ) -> None:
        """Mount a file system in the guest.

        The arguments are those of mount(2).
        """
        self.call(
            "mount", source=source, target=target, fstype=fstype, flags=flags, options=options
        )

    def umount(self, target: str, flags: int = 0) -> None:
        """Unmount a file system in the guest.

        The arguments are those of umount2(2).
        """
        self.call("umount", target=target, flags=flags)

    def python(self, source: str, *args: Any, limit: float = CALL_LIMIT) -> Any:
        """Run Python `source` in the agent.

        Return what its function `main` returns for these arguments, which must be plain data.
        """
        return self.call("python", limit, source=source, args=list(args))


class GuestInotify:
    """An inotify instance in the guest; Guest.inotify() makes it."""

    def __init__(self, guest: Guest, handle: int) -> None:
        self.guest = guest
        self.handle = handle

    def add(self, path: PathArgument, mask: int) -> int:
        """Call inotify_add_watch(2) and return the watch descriptor."""
        return int(
            self.guest.call("inotify_add", handle=self.handle, path=os.fspath(path), mask=mask)
        )

    def remove(self, wd: int) -> None:
        """Call inotify_rm_watch(2)."""
        self.guest.call("inotify_remove", handle=self.handle, wd=wd)

    def read(
        self,
        count: int | None = None,
        *,
        limit: float = EVENT_LIMIT,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[GuestInotifyEvent]:
        """Read events in order, until one of these holds; return fewer events at the limit.

        count: this many events were read.
        quiet: no event came for this many seconds.
        until: an event has this name.
        limit: this many seconds have passed.
        """
        found = self.guest.call(
            "inotify_read",
            limit,
            handle=self.handle,
            limit=limit,
            count=count,
            quiet=quiet,
            until=until,
        )
        return [GuestInotifyEvent(**fields) for fields in found]

    def close(self) -> None:
        """Close the instance, which removes its watches."""
        self.guest.call("inotify_close", handle=self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if not self.guest.lost:
            self.close()


class GuestProcess:
    """A running program in the guest; Guest.spawn() starts it."""

    def __init__(self, guest: Guest, handle: int, pid: int) -> None:
        self.guest = guest
        self.handle = handle
        self.pid = pid

    def lines(
        self, *, limit: float = CALL_LIMIT, count: int | None = None, until: str | None = None
    ) -> list[str]:
        """Return stdout and stderr since the last call, as lines.

        Wait for `count` lines, for a line that contains `until`, for the program's end, or for
        `limit` seconds.
        """
        answer = self.guest.call(
            "process_lines", limit, handle=self.handle, limit=limit, count=count, until=until
        )
        return list(answer["lines"])

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the program's end, and return its status.

        The program is killed after 5 seconds.
        """
        return int(self.guest.call("process_stop", 10.0, handle=self.handle, signum=signum))
