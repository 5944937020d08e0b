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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PORTS = Path("/sys/class/virtio-ports")
READY = "farwatch agent: ready"
EVENT_HEAD = struct.Struct("=iIII")
LIBC = ctypes.CDLL(None, use_errno=True)
#: netdevice(7).
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def find_port(name: str, limit: float = 10.0) -> Path:
    """Return the device node of the virtio-serial port `name`, from sysfs: udev may not run."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        for entry in PORTS.iterdir() if PORTS.exists() else ():
            if (entry / "name").read_text().strip() == name:
                return Path("/dev") / entry.name
        # The port appears when its device is probed. Without udev, sysfs can only be polled.
        select.select([], [], [], 0.05)
    raise SystemExit(f"farwatch agent: no virtio port is called {name}")


def pack(value: Any) -> Any:
    """Return `value` with every bytes object encoded for JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """Decode what pack() encoded."""
    if isinstance(value, dict):
        if set(value) == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: unpack(item) for key, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value


class InotifyInstance:
    """An inotify instance; its events are read in order."""

    def __init__(self) -> None:
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise last_error("inotify_init1")
        self.waiting: list[dict[str, Any]] = []

    def add(self, path: str, mask: int) -> int:
        """Call inotify_add_watch(2); return the watch descriptor."""
        wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise last_error(path)
        return int(wd)

    def remove(self, wd: int) -> None:
        """Call inotify_rm_watch(2)."""
        if LIBC.inotify_rm_watch(self.fd, wd) < 0:
            raise last_error(f"watch {wd}")

    def read(
        self,
        limit: float,
        count: int | None = None,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[dict[str, Any]]:
        """Read events until `count` were read, one has the name `until`, or a limit is reached.

        limit: seconds altogether.
        quiet: seconds without an event.
        """
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
        """Read what the kernel has queued."""
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
        """Close the instance, which removes its watches."""
        os.close(self.fd)


class Process:
    """A running program; a thread collects its output lines."""

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
        """Read the output until the program closes it; runs in a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.output.append(os.fsdecode(line).rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def lines(self, limit: float, count: int | None, until: str | None) -> list[str]:
        """Return the lines since the last call.

        Wait for `count` lines, for a line with `until`, for the program's end, or for `limit`
        seconds.
        """

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
        """Write to the program's stdin, if it was started with `stdin`."""
        assert self.process.stdin is not None
        self.process.stdin.write(os.fsencode(text))
        self.process.stdin.flush()

    def stop(self, signum: int, limit: float) -> int:
        """Send a signal, wait for the program's end, and return its status.

        The program is killed after `limit` seconds.
        """
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait(limit)


def last_error(what: str) -> OSError:
    """Return an OSError of errno, for ctypes."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


class Agent:
    """Performs the operations: each method op_NAME is one.

    It owns the objects that outlive a request: inotify instances and running programs.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.port_lock = threading.Lock()
        self.table_lock = threading.Lock()
        self.objects: dict[int, Any] = {}
        self.last_handle = 0

    def add_object(self, thing: Any) -> int:
        """Store an object under a new handle; return the handle."""
        with self.table_lock:
            self.last_handle += 1
            self.objects[self.last_handle] = thing
            return self.last_handle

    def remove_object(self, handle: int) -> Any:
        """Remove an object and return it."""
        with self.table_lock:
            return self.objects.pop(handle)

    def op_ping(self) -> dict[str, Any]:
        """Return the agent's process id, the kernel's release, and the time."""
        return {
            "pid": os.getpid(),
            "release": os.uname().release,
            "time": time.clock_gettime(time.CLOCK_MONOTONIC),
        }

    def op_leave(self) -> None:
        """End the agent immediately: the guest's init then powers off."""
        os._exit(0)

    def op_run(
        self,
        argv: list[str],
        limit: float,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run a program until it exits; after `limit` it is killed, and `timed_out` is true."""
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
        """Start a program and leave it running."""
        process = Process(argv, cwd, env, stdin)
        return {"handle": self.add_object(process), "pid": process.process.pid}

    def op_process_lines(
        self, handle: int, limit: float, count: int | None = None, until: str | None = None
    ) -> dict[str, Any]:
        """Return a program's output lines since the last call."""
        process = self.objects[handle]
        return {"lines": process.lines(limit, count, until), "status": process.process.poll()}

    def op_processes_ask(self, texts: list[tuple[int, str]], limit: float) -> list[list[str]]:
        """Write to the stdin of all these programs; then return one line of each."""
        for handle, text in texts:
            self.objects[handle].send(text)
        return [self.objects[handle].lines(limit, 1, None) for handle, _text in texts]

    def op_process_stop(self, handle: int, signum: int = signal.SIGTERM, limit: float = 5.0) -> int:
        """Stop a program and return its status."""
        return int(self.remove_object(handle).stop(signum, limit))

    def op_inotify(self) -> int:
        """Make an inotify instance."""
        return self.add_object(InotifyInstance())

    def op_inotify_add(self, handle: int, path: str, mask: int) -> int:
        """Add a watch."""
        return int(self.objects[handle].add(path, mask))

    def op_inotify_add_all(self, handle: int, watches: list[tuple[str, int]]) -> list[int]:
        """Add several watches; return their watch descriptors."""
        return [self.objects[handle].add(path, mask) for path, mask in watches]

    def op_inotify_remove(self, handle: int, wd: int) -> None:
        """Remove a watch."""
        self.objects[handle].remove(wd)

    def op_inotify_read(
        self,
        handle: int,
        limit: float,
        count: int | None = None,
        quiet: float | None = None,
        until: str | None = None,
    ) -> list[dict[str, Any]]:
        """Read events of an inotify instance."""
        events: list[dict[str, Any]] = self.objects[handle].read(limit, count, quiet, until)
        return events

    def op_inotify_close(self, handle: int) -> None:
        """Close an inotify instance."""
        self.remove_object(handle).close()

    def op_os(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call os.NAME; return the fields of a result such as stat's as a dictionary."""
        result = getattr(os, name)(*args, **kwargs)
        fields = {key: getattr(result, key) for key in dir(result) if key.startswith(("st_", "f_"))}
        return fields or result

    def op_read_file(self, path: str) -> bytes:
        """Return the content of a file."""
        return Path(path).read_bytes()

    def op_write_file(self, path: str, data: bytes) -> int:
        """Open a file with O_CREAT and O_TRUNC, write `data`, close it.

        Return the number of bytes written.
        """
        return Path(path).write_bytes(data)

    def op_mount(
        self, source: str, target: str, fstype: str, flags: int = 0, options: str = ""
    ) -> None:
        """Mount a file system."""
        arguments = [os.fsencode(source), os.fsencode(target), fstype.encode()]
        if LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None) < 0:
            raise last_error(target)

    def op_umount(self, target: str, flags: int = 0) -> None:
        """Unmount a file system."""
        if LIBC.umount2(os.fsencode(target), flags) < 0:
            raise last_error(target)

    def op_python(self, source: str, args: list[Any]) -> Any:
        """Run `source`, which defines main(), and return main(*args)."""
        names: dict[str, Any] = {"__name__": "farwatch_guest_code", "libc": LIBC}
        exec(compile(source, "<from the host>", "exec"), names)
        return names["main"](*args)

    def answer(self, request: dict[str, Any]) -> None:
        """Run one request and send its reply."""
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
        """Read requests until the host closes the port."""
        self.send_hello()
        buffered = b""
        while True:
            chunk = self.receive()
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                threading.Thread(target=self.answer, args=(json.loads(line),), daemon=True).start()

    def send_hello(self) -> None:
        """Send the first message, which says that the agent is ready."""
        os.write(self.port, json.dumps({"id": 0, "result": self.op_ping()}).encode() + b"\n")

    def receive(self) -> bytes:
        """Read from the port; wait while the host has not opened it."""
        while True:
            try:
                chunk = os.read(self.port, 1 << 16)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
                chunk = b""
            if chunk:
                return chunk
            # A virtio port reads as at its end while no process has the other end open.
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
