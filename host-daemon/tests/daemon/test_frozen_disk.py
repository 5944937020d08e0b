# SPDX-License-Identifier: Apache-2.0
"""A task that waits for a frozen disk keeps neither the VMM nor other requests waiting.

The kernel ends no process one of whose threads waits for such a disk: it ends with the thaw.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.virtio_fs.device import DRAIN_LIMIT
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess, running, wait_until

pytestmark = [pytest.mark.root, pytest.mark.packages]

LIMIT = 20.0
#: Where the kernel waits for the thaw (proc(5), ``wchan``).
WAITS_FOR_THAW = "percpu_rwsem_wait"


class Disk:
    """An ext4 on a loop device at ``mount_point``."""

    def __init__(self, image: Path, mount_point: Path) -> None:
        self.mount_point = mount_point
        self._frozen = False
        with image.open("wb") as file:
            file.truncate(16 << 20)
        run("mkfs.ext4", "-q", image)
        run("mount", "-o", "loop", image, mount_point)

    def freeze(self) -> None:
        """Let all changes wait."""
        run("fsfreeze", "-f", self.mount_point)
        self._frozen = True

    def thaw(self) -> None:
        """Let them go on."""
        if self._frozen:
            run("fsfreeze", "-u", self.mount_point)
            self._frozen = False

    def close(self) -> None:
        """Thaw and unmount."""
        self.thaw()
        run("umount", "--lazy", self.mount_point)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount_point = tmp_path / "shared/disk"
    mount_point.mkdir(parents=True)
    (tmp_path / "shared/elsewhere").touch()
    disk = Disk(tmp_path / "image", mount_point)
    (mount_point / "file").touch()
    yield disk
    disk.close()


@pytest.fixture
def daemon(tmp_path: Path, disk: Disk) -> Iterator[DaemonProcess]:
    with running(tmp_path / "socket", tmp_path / "shared") as process:
        yield process
        # It could not end.
        disk.thaw()


def allocate(daemon: DaemonProcess, guest: MountedGuest, disk: Disk) -> None:
    """Send a FALLOCATE that waits for the thaw."""
    directory = guest.lookup(ROOT, b"disk").nodeid
    nodeid = guest.lookup(directory, b"file").nodeid
    opened = guest.ask(Opcode.OPEN, nodeid, fuse.open_in.pack(flags=os.O_RDWR), fuse.open_out.size)
    fh = fuse.open_out.unpack_from(opened).fh
    disk.freeze()
    guest.start(Opcode.FALLOCATE, nodeid, fuse.fallocate_in.pack(fh=fh, length=1 << 20))
    wait_until(lambda: is_waiting(daemon), "a thread that waits for the thaw")


def is_waiting(daemon: DaemonProcess) -> bool:
    return WAITS_FOR_THAW in daemon.waits()


def test_others_are_served_and_rings_stop_while_a_disk_is_frozen(
    daemon: DaemonProcess, disk: Disk
) -> None:
    guest = MountedGuest(daemon)
    allocate(daemon, guest, disk)
    assert guest.lookup(ROOT, b"elsewhere").nodeid
    front_end = guest.front_end
    began = time.monotonic()
    front_end.stop_ring(front_end.channels.index(front_end.requests()))
    assert time.monotonic() - began < DRAIN_LIMIT + 1
    guest.leave()
    following = MountedGuest(daemon)
    assert b"elsewhere" in following.names(ROOT)
    # Not even the disk's own names wait.
    directory = following.lookup(ROOT, b"disk").nodeid
    assert b"file" in following.names(directory)
    following.leave()


def test_next_daemon_takes_the_socket_of_one_that_cannot_end(
    daemon: DaemonProcess, disk: Disk
) -> None:
    guest = MountedGuest(daemon)
    allocate(daemon, guest, disk)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(daemon), "the end of the listening socket")
    assert daemon.process.poll() is None
    guest.leave()
    with running(daemon.socket_path, disk.mount_point.parent) as following:
        next_guest = MountedGuest(following)
        assert next_guest.lookup(ROOT, b"elsewhere").nodeid
        disk.thaw()
        assert daemon.process.wait(LIMIT) == 0
        next_guest.leave()
        # The end of the first one has not taken the socket away.
        MountedGuest(following).leave()


def accepts(daemon: DaemonProcess) -> bool:
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return False
    return True
