# SPDX-License-Identifier: Apache-2.0
"""The host's end of the guest's agent (agent.py): calls that look local and end within their
limits."""

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from farwatch_harness.util.errors import GuestLostError, HarnessError

# Added to every limit that the agent keeps itself: an emulated guest on a busy host is slow to
# answer.
SLACK = 30.0
# Only what fails waits so long: a guest without KVM, beside another one, can take ten times what it
# takes alone.
CALL_LIMIT, EVENT_LIMIT = 120.0, 20.0
PathArgument = str | os.PathLike[str]


class GuestError(HarnessError):
    """The agent could not do what was asked, for another reason than a system call's error."""


@dataclass(frozen=True)
class InotifyEvent:
    """One inotify event as the guest's program read it; `time` is the guest's monotonic clock in
    seconds."""

    wd: int
    mask: int
    cookie: int
    name: str
    time: float


@dataclass(frozen=True)
class CompletedProcess:
    """A program that ran to its end in the guest, or was killed at its limit."""

    status: int
    stdout: str
    stderr: str
    timed_out: bool


class Guest:
    """The guest, as its agent lets us use it. May be used from several threads at once.

    OSError with the guest's errno is raised for a system call that fails there; GuestLostError once
    the guest is gone.
    """

    def __init__(self, channel: socket.socket, explain_loss: Callable[[], str]) -> None:
        self.channel = channel
        self.explain_loss = explain_loss
        self.replies: dict[int, dict[str, Any]] = {}
        self.lost = False
        self.changed = threading.Condition()
        self.numbers = itertools.count(1)
        threading.Thread(target=self.collect, name="guest agent", daemon=True).start()

    def collect(self) -> None:
        """Takes the replies as they come, until the channel ends."""
        try:
            with self.channel.makefile("rb") as stream:
                for line in stream:
                    reply = json.loads(line)
                    with self.changed:
                        self.replies[reply["id"]] = reply
                        self.changed.notify_all()
        except (OSError, ValueError):
            pass
        self.mark_lost()

    def mark_lost(self) -> None:
        """Ends all calls that wait, and those to come, with GuestLostError."""
        with self.changed:
            self.lost = True
            self.changed.notify_all()

    def wait_until_ready(self, limit: float) -> None:
        """Waits for the agent's first words."""
        self.reply_to(0, "start", limit)

    def call(self, operation: str, limit: float = 0.0, /, **args: Any) -> Any:
        """Runs one of the agent's operations; `limit` is how long the operation itself may take, in
        seconds."""
        number = next(self.numbers)
        request = json.dumps({"id": number, "op": operation, "args": pack(args)}).encode() + b"\n"
        with self.changed:
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
        """Ends the agent; the guest then powers itself off. No answer comes."""
        with contextlib.suppress(OSError):
            self.channel.sendall(
                json.dumps({"id": next(self.numbers), "op": "leave"}).encode() + b"\n"
            )

    def ping(self) -> dict[str, Any]:
        """The agent's process id, the kernel's release and the guest's monotonic clock."""
        answer: dict[str, Any] = self.call("ping")
        return answer

    def run(
        self,
        *argv: PathArgument,
        limit: float = CALL_LIMIT,
        stdin: bytes = b"",
        cwd: str | None = None,
    ) -> CompletedProcess:
        """Runs a program to its end."""
        words = [os.fspath(word) for word in argv]
        answer = self.call("run", limit, argv=words, limit=limit, stdin=stdin, cwd=cwd)
        out, err = (os.fsdecode(answer[name]) for name in ("stdout", "stderr"))
        return CompletedProcess(answer["status"], out, err, answer["timed_out"])

    def shell(self, script: str, limit: float = CALL_LIMIT) -> str:
        """Runs a shell script and returns its output; GuestError when it fails."""
        done = self.run("sh", "-c", script, limit=limit)
        if done.status != 0 or done.timed_out:
            raise GuestError(
                f"'{script}' in the guest ended with {done.status}: {done.stdout}{done.stderr}"
            )
        return done.stdout

    def spawn(self, *argv: PathArgument, cwd: str | None = None) -> "GuestProcess":
        """Starts a program that is left running."""
        answer = self.call("spawn", argv=[os.fspath(word) for word in argv], cwd=cwd)
        return GuestProcess(self, answer["handle"], answer["pid"])

    def inotify(self) -> "Inotify":
        """A new inotify instance in the guest."""
        return Inotify(self, self.call("inotify"))

    def os(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls Python's os.NAME in the guest: guest.os("rename", a, b), guest.os("stat",
        path)["st_ino"]."""
        return self.call("os", name=name, args=list(args), kwargs=kwargs)

    def read_file(self, path: PathArgument) -> bytes:
        """A whole file of the guest."""
        data: bytes = self.call("read_file", path=os.fspath(path))
        return data

    def write_file(self, path: PathArgument, data: bytes) -> None:
        """Opens with O_TRUNC, writes and closes a file of the guest."""
        self.call("write_file", path=os.fspath(path), data=data)

    def mount(
        self, source: str, target: str, fstype: str, flags: int = 0, options: str = ""
    ) -> None:
        """mount(2) in the guest."""
        self.call(
            "mount", source=source, target=target, fstype=fstype, flags=flags, options=options
        )

    def umount(self, target: str, flags: int = 0) -> None:
        """umount2(2) in the guest."""
        self.call("umount", target=target, flags=flags)

    def python(self, source: str, *args: Any, limit: float = CALL_LIMIT) -> Any:
        """Runs Python `source` that defines main() in the agent and returns main(*args), which must
        be plain data."""
        return self.call("python", limit, source=source, args=list(args))

    def kernel_log(self) -> str:
        """The guest kernel's own log."""
        return self.run("dmesg").stdout


class Inotify:
    """An inotify instance in the guest."""

    def __init__(self, guest: Guest, handle: int) -> None:
        self.guest = guest
        self.handle = handle

    def add(self, path: PathArgument, mask: int) -> int:
        """inotify_add_watch(2): the watch descriptor, or OSError with the guest's errno."""
        return int(
            self.guest.call("inotify_add", handle=self.handle, path=os.fspath(path), mask=mask)
        )

    def remove(self, wd: int) -> None:
        """inotify_rm_watch(2)."""
        self.guest.call("inotify_remove", handle=self.handle, wd=wd)

    def read(
        self,
        count: int | None = None,
        *,
        limit: float = EVENT_LIMIT,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[InotifyEvent]:
        """Events in order: until there are `count`, one is named `until`, none came for `quiet` s,
        or `limit` s."""
        found = self.guest.call(
            "inotify_read",
            limit,
            handle=self.handle,
            limit=limit,
            count=count,
            quiet=quiet,
            until=until,
        )
        return [InotifyEvent(**fields) for fields in found]

    def close(self) -> None:
        """Closes the instance, and with it all its watches."""
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
    """A program that runs in the guest."""

    def __init__(self, guest: Guest, handle: int, pid: int) -> None:
        self.guest = guest
        self.handle = handle
        self.pid = pid

    def lines(
        self, *, limit: float = CALL_LIMIT, count: int | None = None, until: str | None = None
    ) -> list[str]:
        """Its output since the last call: waits for `count` lines, for one that contains `until`,
        or for its end."""
        answer = self.guest.call(
            "process_lines", limit, handle=self.handle, limit=limit, count=count, until=until
        )
        return list(answer["lines"])

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Sends the signal and waits for its end; returns the exit status."""
        return int(self.guest.call("process_stop", 10.0, handle=self.handle, signum=signum))


def pack(value: Any) -> Any:
    """`value` with every bytes object made fit for JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """The reverse of pack()."""
    if isinstance(value, dict):
        if set(value) == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: unpack(item) for key, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value
