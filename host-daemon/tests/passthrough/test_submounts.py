# SPDX-License-Identifier: Apache-2.0
"""Mount points in the share are announced to the guest; inodes of each mount are separate."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import ATTR_SUBMOUNT, Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import COMMAND, DaemonProcess

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


#: A mount namespace of its own, whose mounts in the share the daemon receives.
NAMESPACE = """
mount --bind "$0" "$0" && mount --make-private "$0" && mount --make-shared "$0" &&
echo made && exec sleep infinity
"""


class HostMounts:
    """A mount namespace, in which the host mounts in the share. Use it with "with"."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared

    def __enter__(self) -> Self:
        argv = ["unshare", "-m", "sh", "-c", NAMESPACE, str(self._shared)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None and self._holder.stdout.readline() == "made\n"
        self.enter = ("nsenter", f"--target={self._holder.pid}", "--mount")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    def run(self, *argv: str) -> None:
        """Run a program in the share of the namespace, which must succeed."""
        command = [*self.enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self._shared), *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, f"{argv}: {done.stderr}"


@contextlib.contextmanager
def guest_with_host(
    tmp_path: Path, shared: Path, *options: str
) -> Iterator[tuple[MountedGuest, HostMounts]]:
    """Yield a guest, and a host that mounts after the daemon has started."""
    socket = tmp_path / "socket"
    with HostMounts(shared) as host:

        class DaemonInNamespace(DaemonProcess):
            command = (*host.enter, *COMMAND)

        daemon = DaemonInNamespace(
            socket, [f"--socket-path={socket}", f"--shared-dir={shared}", *options]
        )
        daemon.wait_for("listening on")
        guest = MountedGuest(daemon)
        yield guest, host
        guest.leave()
        assert daemon.end() == 0
        assert "Traceback" not in daemon.log and "ERROR" not in daemon.log


def use(guest: MountedGuest, directory: int) -> int:
    """Use a directory and the file in it in several ways; return the file's nodeid."""
    file = guest.lookup(directory, b"file")
    for node in (directory, file.nodeid):
        guest.ask(Opcode.GETATTR, node, wire.getattr_in.pack(), wire.attr_out.size)
    opened = wire.open_out.unpack_from(
        guest.ask(Opcode.OPENDIR, directory, wire.open_in.pack(), wire.open_out.size)
    )
    guest.ask(Opcode.READDIRPLUS, directory, wire.read_in.pack(fh=opened.fh, size=4096), room=4096)
    guest.ask(Opcode.RELEASEDIR, directory, wire.release_in.pack(fh=opened.fh))
    guest.ask(Opcode.SYNCFS, directory, bytes(8))
    guest.watch(directory, Event.CREATE)
    return int(file.nodeid)


def unmount(guest: MountedGuest, host: HostMounts, mount_point: str) -> None:
    """Unmount on the host, which must succeed once the daemon's turn has ended."""
    guest.daemon.wait_until_idle()
    host.run("umount", mount_point)


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


SANDBOXES = pytest.mark.parametrize("sandbox", ["namespace", "chroot", "none"])


def assert_stale(guest: MountedGuest, directories: Sequence[int], files: Sequence[int]) -> None:
    """Check that these nodeids lead to nothing; a directory's last attributes may still be read."""
    for node in directories:
        assert guest.fails(Opcode.OPENDIR, node, wire.open_in.pack(), 16) == errno.ESTALE
        assert guest.fails(Opcode.LOOKUP, node, b"file\0", wire.entry_out.size) == errno.ESTALE
    for node in files:
        getattr_in = wire.getattr_in.pack()
        assert guest.fails(Opcode.GETATTR, node, getattr_in, wire.attr_out.size) == errno.ESTALE


@SANDBOXES
@pytest.mark.parametrize("mode", ["others", "remote"])
def test_host_can_unmount_what_the_guest_has_used(
    mode: str, sandbox: str, tmp_path: Path, shared: Path
) -> None:
    options = (f"--sandbox={sandbox}", f"--fsnotify={mode}")
    with guest_with_host(tmp_path, shared, *options) as (guest, host):
        host.run("mount", "-t", "tmpfs", "none", "tmpfs")
        host.run("sh", "-c", "mkdir tmpfs/inner && mount --bind directory tmpfs/inner")
        host.run("touch", "tmpfs/file")
        outer = guest.lookup(ROOT, b"tmpfs")
        assert outer.attr_flags == ATTR_SUBMOUNT
        inner = guest.lookup(outer.nodeid, b"inner")
        files = [use(guest, node) for node in (inner.nodeid, outer.nodeid, inner.nodeid)]
        unmount(guest, host, "tmpfs/inner")
        use(guest, outer.nodeid)
        unmount(guest, host, "tmpfs")
        assert_stale(guest, (inner.nodeid, outer.nodeid), files)
        assert guest.lookup(ROOT, b"tmpfs").attr_flags == 0


@SANDBOXES
def test_mount_in_the_place_of_another_has_its_own_inodes(
    sandbox: str, tmp_path: Path, shared: Path
) -> None:
    with guest_with_host(tmp_path, shared, f"--sandbox={sandbox}") as (guest, host):
        for name in ("private", "public"):
            (shared / name).mkdir()
            (shared / name / "file").write_text(name)
        host.run("mount", "--bind", "private", "again")
        before = guest.lookup(ROOT, b"again").nodeid
        file = use(guest, before)
        unmount(guest, host, "again")
        # The kernel gives the new mount the free id, and the file system is the same one.
        host.run("mount", "--bind", "public", "again")
        after = guest.lookup(ROOT, b"again").nodeid
        assert after != before
        assert use(guest, after) != file
        assert_stale(guest, [before], [file])
        unmount(guest, host, "again")
        host.run("mount", "--bind", "private", "again")
        assert use(guest, guest.lookup(ROOT, b"again").nodeid) != file
        unmount(guest, host, "again")


def test_open_file_of_the_guest_keeps_its_mount(tmp_path: Path, shared: Path) -> None:
    with guest_with_host(tmp_path, shared) as (guest, host):
        host.run("mount", "--bind", "directory", "again")
        file = guest.lookup(guest.lookup(ROOT, b"again").nodeid, b"file").nodeid
        opened = wire.open_out.unpack_from(
            guest.ask(Opcode.OPEN, file, wire.open_in.pack(), wire.open_out.size)
        )
        # The kernel still sees a file that is in use.
        with pytest.raises(AssertionError, match="busy"):
            unmount(guest, host, "again")
        guest.ask(Opcode.RELEASE, file, wire.release_in.pack(fh=opened.fh))
        unmount(guest, host, "again")


def test_directories_above_a_mount_may_be_renamed(tmp_path: Path, shared: Path) -> None:
    with guest_with_host(tmp_path, shared) as (guest, host):
        (shared / "above" / "point").mkdir(parents=True)
        host.run("mount", "--bind", "directory", "above/point")
        above = guest.lookup(ROOT, b"above").nodeid
        point = guest.lookup(above, b"point").nodeid
        file = use(guest, point)
        host.run("mv", "above", "moved")
        assert use(guest, point) == file
        unmount(guest, host, "moved/point")
