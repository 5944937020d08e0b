# SPDX-License-Identifier: Apache-2.0
"""A file system of the share that does not answer keeps neither the VMM nor SIGTERM waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.virtio_fs.device import DRAIN_LIMIT
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess, running
from tests.support.driver import Buffer
from tests.support.frontend import IN_HEADER, OUT_HEADER

SERVER = Path(__file__).parents[3] / "guest-tests/servers/fuse_server.py"
LIMIT = 20.0
UNIQUE = 9000


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
    arguments = fuse.fsync_in.pack(fh=fh)
    size = IN_HEADER.size + len(arguments)
    ram, channel = guest.front_end.ram, guest.front_end.requests()
    request = Buffer(ram.allocate(size), size)
    ram.write(
        request.addr,
        IN_HEADER.pack(size, Opcode.FSYNCDIR, UNIQUE, nodeid, 0, 0, 1, 0, 0) + arguments,
    )
    reply = Buffer(ram.allocate(OUT_HEADER.size), OUT_HEADER.size)
    channel.queue.add([request], [reply])
    guest.front_end.publish(channel)
    deadline = time.monotonic() + LIMIT
    while not _waits_for_fuse(daemon.pid):
        assert time.monotonic() < deadline, "the daemon does not wait for the file system"
        time.sleep(0.01)
    return reply


def _waits_for_fuse(pid: int) -> bool:
    """Return whether a thread of a process waits for a FUSE server (proc(5), ``wchan``)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return any("request_wait_answer" in (task / "wchan").read_text() for task in tasks)


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
