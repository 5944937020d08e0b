# SPDX-License-Identifier: Apache-2.0
"""A file system of the share that does not answer keeps neither the VMM nor SIGTERM waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.virtio_fs.device import DRAIN_LIMIT
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess, running, wait_until
from tests.support.driver import Buffer
from tests.support.frontend import IN_HEADER, OUT_HEADER

SERVER = Path(__file__).parents[3] / "guest-tests/servers/fuse_server.py"
LIMIT = 20.0
UNIQUE = 9000
#: Where the kernel waits (proc(5), ``wchan``).
WAITS_FOR_FUSE = ("request_wait_answer", "folio_wait_bit")


class HungFileSystem:
    """A FUSE file system at ``mount_point``, whose server can be stopped."""

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self.mount_point = mount_point
        self._server = subprocess.Popen(
            [sys.executable, SERVER, directory, mount_point], stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "mounted\n"

    def hang(self) -> None:
        """Stop the server: what waits for the file system waits on."""
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on."""
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Let the server go on, and unmount."""
        self.resume()
        subprocess.run(["umount", "-l", self.mount_point], check=True, timeout=LIMIT)
        self._server.kill()
        self._server.communicate(timeout=LIMIT)


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungFileSystem]:
    for name in ("shared/mounted", "behind"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "behind/file").write_bytes(b"content")
    (tmp_path / "shared/elsewhere").touch()
    file_system = HungFileSystem(tmp_path / "behind", tmp_path / "shared/mounted")
    yield file_system
    file_system.close()


@pytest.fixture
def daemon(tmp_path: Path, hung: HungFileSystem) -> Iterator[DaemonProcess]:
    with running(tmp_path / "socket", tmp_path / "shared") as process:
        yield process


def sync_hung_directory(daemon: DaemonProcess, guest: MountedGuest, hung: HungFileSystem) -> Buffer:
    """Send an FSYNCDIR that does not end; return where its reply will be.

    Of a directory: the kernel itself waits for a FUSE server when a regular file is closed, also
    when a process ends.
    """
    nodeid = guest.lookup(ROOT, b"mounted").nodeid
    payload = fuse.open_in.pack(flags=os.O_DIRECTORY)
    opened = guest.ask(Opcode.OPENDIR, nodeid, payload, fuse.open_out.size)
    fh = fuse.open_out.unpack_from(opened).fh
    hung.hang()
    reply = send(guest, Opcode.FSYNCDIR, nodeid, fuse.fsync_in.pack(fh=fh))
    wait_until_hung(daemon, 1)
    return reply


def send(
    guest: MountedGuest, opcode: Opcode, nodeid: int, arguments: bytes, room: int = 0
) -> Buffer:
    """Send a request; return where its reply will be."""
    size = IN_HEADER.size + len(arguments)
    ram, channel = guest.front_end.ram, guest.front_end.requests()
    request = Buffer(ram.allocate(size), size)
    ram.write(request.addr, IN_HEADER.pack(size, opcode, UNIQUE, nodeid, 0, 0, 1, 0, 0) + arguments)
    reply = Buffer(ram.allocate(OUT_HEADER.size + room), OUT_HEADER.size + room)
    channel.queue.add([request], [reply])
    guest.front_end.publish(channel)
    return reply


def wait_until_hung(daemon: DaemonProcess, threads: int) -> None:
    """Wait until this many threads of the daemon wait for a FUSE server."""

    def hung() -> bool:
        waits = [
            (task / "wchan").read_text() for task in Path(f"/proc/{daemon.pid}/task").iterdir()
        ]
        # For an answer, or for a page that one will fill.
        return len([wait for wait in waits if wait.startswith(WAITS_FOR_FUSE)]) >= threads

    wait_until(hung, "a thread that waits for the file system")


def open_file(guest: MountedGuest, flags: int) -> tuple[int, int]:
    """Open the file of the mounted file system; return its nodeid and handle."""
    mounted = guest.lookup(ROOT, b"mounted").nodeid
    nodeid = guest.lookup(mounted, b"file").nodeid
    opened = guest.ask(Opcode.OPEN, nodeid, fuse.open_in.pack(flags=flags), fuse.open_out.size)
    return nodeid, fuse.open_out.unpack_from(opened).fh


def is_served(guest: MountedGuest) -> bool:
    """Look up a file elsewhere in the share."""
    return bool(guest.lookup(ROOT, b"elsewhere").nodeid)


@pytest.mark.root
def test_sigterm_ends_the_daemon_though_a_request_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    sync_hung_directory(daemon, guest, hung)
    assert daemon.end() == 0
    assert "ended by force" in daemon.log or "the host still works" in daemon.log
    guest.leave()


@pytest.mark.root
def test_rings_stop_though_a_request_hangs_and_it_is_completed_later(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    reply = sync_hung_directory(daemon, guest, hung)
    front_end = guest.front_end
    index = front_end.channels.index(front_end.requests())
    began = time.monotonic()
    front_end.stop_ring(index)
    assert time.monotonic() - began < DRAIN_LIMIT + 1
    front_end.start_ring(index)
    hung.resume()
    used = front_end.wait_used(front_end.requests())
    assert used[1] == OUT_HEADER.size
    header = OUT_HEADER.unpack_from(front_end.ram.read(reply.addr, OUT_HEADER.size))
    assert header == (OUT_HEADER.size, 0, UNIQUE)
    guest.leave()


@pytest.mark.root
def test_next_front_end_is_served_though_a_request_of_the_last_one_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    sync_hung_directory(daemon, guest, hung)
    guest.leave()
    following = MountedGuest(daemon)
    assert b"mounted" in following.names(ROOT)
    following.leave()


@pytest.mark.root
def test_read_that_ends_after_a_reboot_does_not_change_memory(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDONLY)
    hung.hang()
    reply = send(guest, Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=4096), 4096)
    wait_until_hung(daemon, 1)
    # The daemon closes the file meanwhile.
    guest.front_end.reboot()
    content = b"\xa5" * reply.length
    guest.front_end.ram.write(reply.addr, content)
    guest.mount()
    assert is_served(guest)
    hung.resume()
    wait_until(lambda: "file" not in open_paths(daemon), "the end of the read")
    assert is_served(guest)
    assert guest.front_end.ram.read(reply.addr, reply.length) == content
    guest.leave()


def open_paths(daemon: DaemonProcess) -> set[str]:
    """Return the names of the files that the daemon has open."""
    names = set()
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(entry.readlink().name)
    return names


REQUESTS: dict[str, Callable[[int, int], tuple[Opcode, int, bytes, int]]] = {
    "flush": lambda nodeid, fh: (Opcode.FLUSH, nodeid, fuse.flush_in.pack(fh=fh), 0),
    "write": lambda nodeid, fh: (
        Opcode.WRITE,
        nodeid,
        fuse.write_in.pack(fh=fh, size=3) + b"new",
        fuse.write_out.size,
    ),
}


@pytest.mark.root
@pytest.mark.parametrize("name", REQUESTS)
def test_other_files_are_served_while_a_file_is_used_that_hangs(
    daemon: DaemonProcess, hung: HungFileSystem, name: str
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDWR)
    hung.hang()
    send(guest, *REQUESTS[name](nodeid, fh))
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    guest.front_end.requests().queue.want_interrupts(True)
    hung.resume()
    guest.front_end.wait_used(guest.front_end.requests())
    assert is_served(guest)
    guest.leave()


@pytest.mark.root
def test_other_files_are_served_while_a_file_is_closed_that_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDWR)
    hung.hang()
    guest.release(nodeid, fh)
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    hung.resume()
    guest.leave()


@pytest.mark.root
def test_tasks_of_the_next_guest_run_though_all_threads_hang(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDONLY)
    hung.hang()
    for _ in range(8):
        send(guest, Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=4096), 4096)
    wait_until_hung(daemon, 4)
    guest.leave()
    following = MountedGuest(daemon)
    nodeid, fh = following.create(ROOT, b"new")
    following.ask(Opcode.FSYNC, nodeid, fuse.fsync_in.pack(fh=fh))
    hung.resume()
    following.leave()
