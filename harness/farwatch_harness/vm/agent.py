# SPDX-License-Identifier: Apache-2.0
"""The agent in the guest: performs the operations that the host requests on a virtio-serial port.

It uses the standard library only. Requests and replies are JSON objects, one per line: a request
{"id", "op", "args"} gets the reply {"id", "result"} or {"id", "error": {"type", "errno",
"message"}}. Each request runs in its own thread, so that a slow one delays no other. File names are
str with surrogate escapes, other bytes are {"b64": text}. All times are in seconds.

Usage: agent.py PORT_NAME
"""

import base64
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORTS = Path("/sys/class/virtio-ports")
READY = "farwatch agent: ready"
EVENT_HEAD = struct.Struct("=iIII")
LIBC = ctypes.CDLL(None, use_errno=True)
#: netdevice(7).
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def find_port(name: str, limit: float = 10.0) -> Path:
    """The device node of the virtio-serial port called `name`, as sysfs gives it: there may be no
    udev."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        for entry in PORTS.iterdir() if PORTS.exists() else ():
            if (entry / "name").read_text().strip() == name:
                return Path("/dev") / entry.name
        # A port shows up when its device is probed; sysfs offers nothing to wait on without udev.
        select.select([], [], [], 0.05)
    raise SystemExit(f"farwatch agent: no virtio port is called {name}")


def pack(value: Any) -> Any:
    """`value` with every bytes object made fit for JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """The reverse of pack()."""
    if isinstance(value, dict):
        if set(value) == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: unpack(item) for key, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value


class InotifyInstance:
    """One inotify instance whose events are read in the order in which they came."""

    def __init__(self) -> None:
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise last_error("inotify_init1")
        self.waiting: list[dict[str, Any]] = []

    def add(self, path: str, mask: int) -> int:
        wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise last_error(path)
        return int(wd)

    def remove(self, wd: int) -> None:
        if LIBC.inotify_rm_watch(self.fd, wd) < 0:
            raise last_error(f"watch {wd}")

    def read(
        self,
        limit: float,
        count: int | None = None,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[dict[str, Any]]:
        """Events until `count` came, one is named `until`, nothing comes for `quiet` s, or `limit`
        s have passed."""
        deadline = time.monotonic() + limit
        taken: list[dict[str, Any]] = []
        while True:
            while self.waiting and (count is None or len(taken) < count):
                taken.append(self.waiting.pop(0))
                if until is not None and taken[-1]["name"] == until:
                    return taken
            left = deadline - time.monotonic()
            if left <= 0 or (count is not None and len(taken) >= count):
                return taken
            poller = select.poll()
            poller.register(self.fd, select.POLLIN)
            if not poller.poll(1000 * (left if quiet is None else min(left, quiet))):
                return taken
            self.fetch()

    def fetch(self) -> None:
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        at = 0
        while at < len(data):
            wd, mask, cookie, length = EVENT_HEAD.unpack_from(data, at)
            at += EVENT_HEAD.size
            name = os.fsdecode(data[at : at + length].split(b"\0", 1)[0])
            at += length
            self.waiting.append(
                {"wd": wd, "mask": mask, "cookie": cookie, "name": name, "time": now}
            )

    def close(self) -> None:
        os.close(self.fd)


class Process:
    """A program left running, whose output lines are collected as they come."""

    def __init__(
        self, argv: list[str], cwd: str | None, env: dict[str, str] | None, stdin: bool
    ) -> None:
        self.process = subprocess.Popen(
            argv, cwd=cwd, env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.output: list[str] = []
        self.ended = False
        self.changed = threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.output.append(os.fsdecode(line).rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def lines(self, limit: float, count: int | None, until: str | None) -> list[str]:
        """Takes what came, after `count` lines, one that contains `until`, the program's end, or
        `limit` s."""

        def enough() -> bool:
            return (
                self.ended
                or (count is not None and len(self.output) >= count)
                or (until is not None and any(until in line for line in self.output))
            )

        with self.changed:
            self.changed.wait_for(enough, limit)
            taken, self.output = self.output, []
            return taken

    def send(self, text: str) -> None:
        """Gives the program input, if it was started with `stdin`."""
        assert self.process.stdin is not None
        self.process.stdin.write(os.fsencode(text))
        self.process.stdin.flush()

    def stop(self, signum: int, limit: float) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait(limit)


def last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


class Agent:
    """Holds what lives longer than a request (listeners, jobs) and runs the operations: each
    op_NAME method is one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.port_lock = threading.Lock()
        self.table_lock = threading.Lock()
        self.objects: dict[int, Any] = {}
        self.last_handle = 0

    def keep(self, thing: Any) -> int:
        with self.table_lock:
            self.last_handle += 1
            self.objects[self.last_handle] = thing
            return self.last_handle

    def drop(self, handle: int) -> Any:
        with self.table_lock:
            return self.objects.pop(handle)

    def op_ping(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "release": os.uname().release,
            "time": time.clock_gettime(time.CLOCK_MONOTONIC),
        }

    def op_leave(self) -> None:
        """Ends the agent at once: the guest's init then powers off."""
        os._exit(0)

    def op_run(
        self,
        argv: list[str],
        limit: float,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Runs a program to its end; on overtime it is killed and `timed_out` says so."""
        process = subprocess.Popen(
            argv, cwd=cwd, env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        timed_out = False
        try:
            out, err = process.communicate(stdin, limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        return {"status": process.returncode, "stdout": out, "stderr": err, "timed_out": timed_out}

    def op_spawn(
        self,
        argv: list[str],
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bool = False,
    ) -> dict[str, int]:
        process = Process(argv, cwd, env, stdin)
        return {"handle": self.keep(process), "pid": process.process.pid}

    def op_process_lines(
        self, handle: int, limit: float, count: int | None = None, until: str | None = None
    ) -> dict[str, Any]:
        process = self.objects[handle]
        return {"lines": process.lines(limit, count, until), "status": process.process.poll()}

    def op_processes_ask(self, texts: list[tuple[int, str]], limit: float) -> list[list[str]]:
        """Gives several programs their input, all at once; the next line of each."""
        for handle, text in texts:
            self.objects[handle].send(text)
        return [self.objects[handle].lines(limit, 1, None) for handle, _text in texts]

    def op_process_stop(self, handle: int, signum: int = signal.SIGTERM, limit: float = 5.0) -> int:
        return int(self.drop(handle).stop(signum, limit))

    def op_inotify(self) -> int:
        return self.keep(InotifyInstance())

    def op_inotify_add(self, handle: int, path: str, mask: int) -> int:
        return int(self.objects[handle].add(path, mask))

    def op_inotify_add_all(self, handle: int, watches: list[tuple[str, int]]) -> list[int]:
        return [self.objects[handle].add(path, mask) for path, mask in watches]

    def op_inotify_remove(self, handle: int, wd: int) -> None:
        self.objects[handle].remove(wd)

    def op_inotify_read(
        self,
        handle: int,
        limit: float,
        count: int | None = None,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.objects[handle].read(limit, count, quiet, until)
        return events

    def op_inotify_close(self, handle: int) -> None:
        self.drop(handle).close()

    def op_os(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls os.NAME; a result that is not plain data (stat, statvfs) comes back as a dict of
        its fields."""
        result = getattr(os, name)(*args, **kwargs)
        fields = {key: getattr(result, key) for key in dir(result) if key.startswith(("st_", "f_"))}
        return fields or result

    def op_read_file(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def op_write_file(self, path: str, data: bytes) -> int:
        return Path(path).write_bytes(data)

    def op_mount(
        self, source: str, target: str, fstype: str, flags: int = 0, options: str = ""
    ) -> None:
        arguments = [os.fsencode(source), os.fsencode(target), fstype.encode()]
        if LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None) < 0:
            raise last_error(target)

    def op_umount(self, target: str, flags: int = 0) -> None:
        if LIBC.umount2(os.fsencode(target), flags) < 0:
            raise last_error(target)

    def op_python(self, source: str, args: list[Any]) -> Any:
        """Runs `source`, which defines main(), and returns main(*args): for what no other operation
        covers."""
        names: dict[str, Any] = {"__name__": "farwatch_guest_code", "libc": LIBC}
        exec(compile(source, "<from the host>", "exec"), names)
        return names["main"](*args)

    def answer(self, request: dict[str, Any]) -> None:
        """Runs one request and sends its reply."""
        reply: dict[str, Any] = {"id": request.get("id")}
        try:
            operation: Callable[..., Any] = getattr(self, f"op_{request['op']}")
            reply["result"] = pack(operation(**unpack(request.get("args", {}))))
        except OSError as error:
            reply["error"] = {
                "type": "OSError",
                "errno": error.errno,
                "message": error.strerror or str(error),
            }
        except Exception as error:
            where = "".join(traceback.format_exception(error))
            reply["error"] = {
                "type": type(error).__name__,
                "errno": None,
                "message": f"{error}\n{where}",
            }
        with self.port_lock:
            data = json.dumps(reply).encode() + b"\n"
            while data:
                data = data[os.write(self.port, data) :]

    def serve(self) -> None:
        """Takes requests until the host closes the port."""
        self.send_hello()
        buffered = b""
        while True:
            chunk = self.receive()
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                threading.Thread(target=self.answer, args=(json.loads(line),), daemon=True).start()

    def send_hello(self) -> None:
        os.write(self.port, json.dumps({"id": 0, "result": self.op_ping()}).encode() + b"\n")

    def receive(self) -> bytes:
        while True:
            try:
                chunk = os.read(self.port, 1 << 16)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
                chunk = b""
            if chunk:
                return chunk
            # Nobody has the other end open: a virtio port reads as at its end until somebody does.
            select.select([], [], [], 0.05)


def bring_up_loopback() -> None:
    """Set the loopback interface up: the guest's programs expect 127.0.0.1 to work."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(sock, SIOCSIFFLAGS, request)


def main() -> None:
    """Serve the port that the command line names."""
    bring_up_loopback()
    port = os.open(find_port(sys.argv[1]), os.O_RDWR | os.O_CLOEXEC)
    print(READY, flush=True)
    Agent(port).serve()


if __name__ == "__main__":
    main()
