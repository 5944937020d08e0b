# SPDX-License-Identifier: Apache-2.0
"""Idle descriptors of inodes are closed, so that the space of deleted files is freed.

For the guest, the deleted inodes stay as on a local file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.filesystem import ROOT, Changes
from farwatchd.inode_store import store
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from tests.support.daemon_guest import MountedGuest
from tests.support.daemon_process import TIMEOUT, DaemonProcess, running
from tests.support.passthrough_share import (
    DAEMON,
    SharedDirectory,
    errno_of,
    names_in,
    open_descriptors,
)

FILES = 200
#: Bytes of the file whose space is asked for.
BIG = 64 << 20
KEEP = [InodeFileHandles.NEVER, pytest.param(InodeFileHandles.PREFER, marks=pytest.mark.root)]


@pytest.fixture(params=KEEP)
def share(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True), request.param, most_open=2 * FILES)
    yield share
    share.close()


def is_open(share: SharedDirectory, inode: int) -> bool:
    """Whether the process has a descriptor of the inode with this number."""
    for name in names_in(Path("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino == inode:
                return True
    return False


def wait_until_idle(share: SharedDirectory) -> None:
    """Do what two seconds without a request do."""
    share.store.close_idle()
    share.store.close_idle()


def test_descriptor_of_a_deleted_file_is_closed_when_idle(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.write_text("data")
    number, nodeid = path.stat().st_ino, share.lookup("file")
    path.unlink()
    assert is_open(share, number)
    wait_until_idle(share)
    assert not is_open(share, number)
    assert errno_of(share.fs.getattr, nodeid, None) == errno.ESTALE
    assert errno_of(share.fs.open, nodeid, os.O_RDWR, False) == errno.ESTALE
    assert share.fs.forget(nodeid, 1)


def test_space_of_a_deleted_file_is_free_when_idle(share: SharedDirectory) -> None:
    path = share.path / "big"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, BIG)
    nodeid, fh = share.open("big", os.O_RDONLY)
    share.read(nodeid, fh, 0, 1)
    share.fs.release(nodeid, fh)
    before = os.statvfs(share.path)
    path.unlink()
    wait_until_idle(share)
    os.sync()
    after = os.statvfs(share.path)
    assert (after.f_bfree - before.f_bfree) * after.f_frsize > BIG // 2


@pytest.mark.root
def test_idle_descriptors_are_closed_and_opened_when_used(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, most_open=2 * FILES)
    for number in range(FILES):
        (tmp_path / f"{number}").touch()
    before = open_descriptors()
    nodeids = [share.lookup(f"{number}") for number in range(FILES)]
    assert open_descriptors() >= before + FILES
    share.store.close_idle()
    # One look does not know which of them are idle.
    assert open_descriptors() >= before + FILES
    for nodeid in nodeids[:10]:
        share.fs.getattr(nodeid, None)
    share.store.close_idle()
    assert open_descriptors() <= before + 10
    for number, nodeid in enumerate(nodeids):
        assert share.fs.getattr(nodeid, None).st_ino == (tmp_path / f"{number}").stat().st_ino
    share.close()


@pytest.mark.root
def test_most_open_limits_descriptors_between_two_timers(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path)
    before = open_descriptors()
    for number in range(FILES):
        (tmp_path / f"{number}").touch()
        share.lookup(f"{number}")
        if number % 7 == 0:
            share.store.close_idle()
    assert open_descriptors() <= before + 4
    share.close()


def test_file_that_the_guest_has_open_keeps_its_descriptor(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.write_text("data")
    nodeid, fh = share.open("file")
    path.unlink()
    wait_until_idle(share)
    assert share.fs.getattr(nodeid, None).st_nlink == 0
    assert share.fs.setattr(nodeid, Changes(mode=0o600)).st_mode & 0o777 == 0o600
    assert share.read(nodeid, fh, 0, 4) == b"data"
    share.fs.release(nodeid, fh)


def test_file_that_has_a_name_is_served_on(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.write_text("data")
    os.link(path, share.path / "other")
    nodeid = share.lookup("file")
    path.unlink()
    wait_until_idle(share)
    assert share.fs.getattr(nodeid, None).st_nlink == 1


def test_new_inode_with_the_number_of_a_deleted_one_is_another(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.write_text("old")
    nodeid = share.lookup("file")
    path.unlink()
    wait_until_idle(share)
    for number in range(100):
        (share.path / f"{number}").write_text("new")
        assert share.lookup(f"{number}") != nodeid
    assert errno_of(share.fs.getattr, nodeid, None) == errno.ESTALE
    share.fs.forget(nodeid, 1)


def test_descriptors_of_deleted_files_do_not_count_against_the_guest(tmp_path: Path) -> None:
    store = InodeStore(InodeFileHandles.NEVER, most_for_guest=3)
    fs = PassthroughFs(tmp_path, ShareOptions(), store)
    for number in range(50):
        path = tmp_path / f"{number}"
        path.touch()
        assert fs.lookup(ROOT, os.fsencode(path.name)) is not None
        path.unlink()
        store.close_idle()
    assert store.budget.used == 1
    fs.reset()
    assert store.budget.used == 1
    fs.close()


@pytest.mark.parametrize("deleted_first", [True, False])
def test_deleted_directory_keeps_its_attributes(
    share: SharedDirectory, deleted_first: bool
) -> None:
    path = share.path / "directory"
    path.mkdir(0o751)
    os.chown(path, os.geteuid(), os.getegid())
    nodeid = share.lookup("directory")
    before = share.fs.getattr(nodeid, None)
    if deleted_first:
        path.rmdir()
    wait_until_idle(share)
    if not deleted_first:
        path.rmdir()
    after = share.fs.getattr(nodeid, None)
    assert after.st_nlink == 0
    assert (after.st_mode, after.st_ino, after.st_uid, after.st_gid, after.st_dev) == (
        before.st_mode,
        before.st_ino,
        before.st_uid,
        before.st_gid,
        before.st_dev,
    )
    assert after.st_mtime_ns >= before.st_mtime_ns
    assert errno_of(share.fs.mkdir, DAEMON, nodeid, b"x", 0o755, 0) == errno.ESTALE


def test_timer_runs_while_there_is_something_to_close(
    share: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Callable[[], None]] = []
    share.store.use_loop(lambda _seconds, call: timers.append(call), timers.append)
    path = share.path / "file"
    path.touch()
    nodeid = share.lookup("file")
    number = path.stat().st_ino
    path.unlink()
    for _ in range(3):
        assert len(timers) == 1
        timers.pop()()
        if not is_open(share, number):
            break
    assert not is_open(share, number)
    share.fs.forget(nodeid, 1)
    while timers:
        timers.pop()()
    path.touch()
    share.lookup("file")
    assert len(timers) == 1


def test_loop_closes_idle_descriptors(
    share: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "IDLE_SECONDS", 0.01)
    loop = Loop()
    share.store.use_loop(loop.call_later, loop.call_soon)
    path = share.path / "file"
    path.touch()
    number = path.stat().st_ino
    share.lookup("file")
    path.unlink()
    for _ in range(10):
        loop.run_once(1)
        if not is_open(share, number):
            break
    assert not is_open(share, number)
    loop.close()


def opened_by(daemon: DaemonProcess) -> list[str]:
    """Return the paths of the daemon's open files."""
    paths = []
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(fd))  # noqa: PTH115
    return paths


@pytest.mark.root
def test_daemon_closes_what_the_host_has_deleted(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "victim").write_text("data")
    with running(tmp_path / "socket", shared) as daemon:
        guest = MountedGuest(daemon)
        guest.lookup(ROOT, b"victim")
        (shared / "victim").unlink()
        deadline = time.monotonic() + TIMEOUT
        while any("victim" in path for path in opened_by(daemon)):
            assert time.monotonic() < deadline, f"not closed within {TIMEOUT} s"
            time.sleep(0.05)
        guest.front_end.close()


@pytest.mark.root
def test_option_limits_the_descriptors_of_inodes(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with running(tmp_path / "socket", shared, "--inode-descriptors=5") as daemon:
        guest = MountedGuest(daemon)
        before = daemon.descriptors()
        for number in range(20):
            (shared / f"{number}").touch()
            guest.lookup(ROOT, b"%d" % number)
        assert daemon.descriptors() <= before + 5
        guest.front_end.close()
