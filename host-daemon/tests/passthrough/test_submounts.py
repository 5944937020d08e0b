# SPDX-License-Identifier: Apache-2.0
"""Mount points in the share are announced to the guest; inodes of each mount are separate."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire.fuse import ATTR_SUBMOUNT, Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess

# The daemon gets a mount namespace, in which the tests mount.
pytestmark = pytest.mark.root

MOUNTS = """
mount -t tmpfs -o size=1m none "$0/tmpfs" && echo on the tmpfs > "$0/tmpfs/file" &&
mkdir "$0/tmpfs/below" &&
mount --bind "$0/directory" "$0/again" && mount --bind "$0/file" "$0/bound-file" && exec "$@"
"""


class MountedDaemon(DaemonProcess):
    """A daemon with mounts in its share, in a mount namespace of their own."""

    command = ("unshare", "-m", "sh", "-c", MOUNTS)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    for name in ("directory", "tmpfs", "again"):
        (shared / name).mkdir(parents=True)
    (shared / "directory" / "file").write_text("in the directory")
    (shared / "file").touch()
    (shared / "bound-file").touch()
    return shared


@contextlib.contextmanager
def guest_of(tmp_path: Path, shared: Path, *options: str) -> Iterator[MountedGuest]:
    socket = tmp_path / "socket"
    words = [
        str(shared),
        sys.executable,
        "-m",
        "farwatchd",
        f"--socket-path={socket}",
        f"--shared-dir={shared}",
    ]
    daemon = MountedDaemon(socket, [*words, *options])
    daemon.wait_for("listening on")
    guest = MountedGuest(daemon)
    yield guest
    guest.leave()
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log and "ERROR" not in daemon.log


@pytest.mark.parametrize("handles", ["never", "prefer"])
@pytest.mark.parametrize("sandbox", ["namespace", "chroot", "none"])
def test_mount_points_are_announced(
    sandbox: str, handles: str, tmp_path: Path, shared: Path
) -> None:
    options = (f"--sandbox={sandbox}", f"--inode-file-handles={handles}")
    with guest_of(tmp_path, shared, *options) as guest:
        flags = {
            name: guest.lookup(ROOT, name).attr_flags
            for name in (b"directory", b"tmpfs", b"again", b"bound-file")
        }
        assert flags == {
            b"directory": 0,
            b"tmpfs": ATTR_SUBMOUNT,
            b"again": ATTR_SUBMOUNT,
            b"bound-file": 0,
        }
        below = guest.lookup(guest.lookup(ROOT, b"tmpfs").nodeid, b"below")
        assert below.attr_flags == 0


def test_mount_points_are_not_announced_when_that_is_off(tmp_path: Path, shared: Path) -> None:
    with guest_of(tmp_path, shared, "--no-announce-submounts") as guest:
        assert not guest.flags & wire.InitFlag.SUBMOUNTS
        assert guest.lookup(ROOT, b"tmpfs").attr_flags == 0


def test_inode_seen_through_two_mounts_is_two_inodes(tmp_path: Path, shared: Path) -> None:
    with guest_of(tmp_path, shared) as guest:
        first, second = (guest.lookup(ROOT, name).nodeid for name in (b"directory", b"again"))
        assert first != second
        files = [guest.lookup(node, b"file") for node in (first, second)]
        assert files[0].nodeid != files[1].nodeid
        assert files[0].attr_ino == files[1].attr_ino


def test_each_mount_has_its_own_statistics_and_is_synced_by_itself(
    tmp_path: Path, shared: Path
) -> None:
    with guest_of(tmp_path, shared) as guest:
        tmpfs = guest.lookup(ROOT, b"tmpfs").nodeid
        blocks = [
            wire.statfs_out.unpack_from(
                guest.ask(Opcode.STATFS, node, b"", wire.statfs_out.size)
            ).st_blocks
            for node in (ROOT, tmpfs)
        ]
        assert blocks[1] == 256 != blocks[0]
        for node in (ROOT, tmpfs):
            guest.ask(Opcode.SYNCFS, node, bytes(8))


def test_names_do_not_cross_mounts(tmp_path: Path, shared: Path) -> None:
    with guest_of(tmp_path, shared) as guest:
        tmpfs = guest.lookup(ROOT, b"tmpfs").nodeid
        renamed = wire.rename2_in.pack(newdir=tmpfs) + b"file\0file\0"
        assert guest.fails(Opcode.RENAME2, ROOT, renamed) == errno.EXDEV
        assert guest.fails(Opcode.RMDIR, ROOT, b"tmpfs\0") == errno.EBUSY
