# SPDX-License-Identifier: Apache-2.0
"""Host inodes by file handle: few descriptors, reused numbers, submounts, exhaustion."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store import handle_probe, mounts
from farwatchd.inode_store.handle_probe import HandlesUnavailableError, open_store
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import HostInode, InodeStore, most_open
from farwatchd.linux import file_handles
from farwatchd.linux.syscalls import open_path
from farwatchd.passthrough import inode_table
from tests.support.daemon_process import DaemonProcess, running
from tests.support.passthrough_share import USER, SharedDirectory, errno_of, open_descriptors

#: Has tmpfs below it, whose handles work, and devpts, which has none.
DEVICES = Path("/dev")
NUMBERS_TRIED = 2000


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path)
    yield share
    share.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the descriptors that were opened by handle since the test began."""
    descriptors: list[int] = []
    original = file_handles.open_handle

    def count(mount_fd: int, handle: bytes) -> int:
        descriptors.append(original(mount_fd, handle))
        return descriptors[-1]

    monkeypatch.setattr(mounts, "open_handle", count)
    return descriptors


def take(store: InodeStore, path: Path) -> HostInode:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    return store.adopt(fd, os.fstat(fd))


@pytest.mark.root
def test_known_inodes_have_no_descriptor_for_long(share: SharedDirectory) -> None:
    for number in range(200):
        (share.path / f"{number}").touch()
    before = open_descriptors()
    nodeids = [share.lookup(f"{number}") for number in range(200)]
    # Those few that were used last.
    assert open_descriptors() <= before + 4
    for number, nodeid in enumerate(nodeids):
        status = share.fs.getattr(nodeid, None)
        assert status.st_ino == (share.path / f"{number}").stat().st_ino
    for nodeid in nodeids:
        assert share.fs.forget(nodeid, 1)
    assert open_descriptors() <= before


@pytest.mark.root
def test_deleted_inode_is_stale_while_its_number_is_reused(tmp_path: Path) -> None:
    # The two processes meet in about one of a thousand tries on ext4.
    gone = [tmp_path / f"gone-{number}" for number in range(20)]
    reader = file_handles.HandleReader()
    known = []
    for path in gone:
        path.mkdir()
        fd = os.open(path, os.O_PATH)
        known.append(file_handles.handle_of(reader.read(fd)))
        os.close(fd)
    mount = os.open(tmp_path, os.O_RDONLY)
    script = (
        "import os\nwhile True:\n    for call in os.mkdir, os.rmdir:\n        for n in range(20):"
        " call(str(n))\n"
    )
    for path in gone:
        path.rmdir()
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as busy:
        try:
            found = {
                errno_of(file_handles.open_handle, mount, handle)
                for _ in range(1000)
                for handle in known
            }
        finally:
            busy.kill()
    os.close(mount)
    assert found == {errno.ESTALE}


@pytest.mark.root
def test_inode_used_last_is_not_opened_again(share: SharedDirectory, opened: list[int]) -> None:
    for name in "abcdef":
        (share.path / name).touch()
    nodeids = [share.lookup(name) for name in "abc"]
    for _ in range(10):
        for nodeid in nodeids:
            share.fs.getattr(nodeid, None)
    assert opened == []
    for name in "def":
        share.lookup(name)
    share.fs.getattr(nodeids[0], None)
    assert len(opened) == 1


@pytest.fixture
def opened_by_name(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the names that lookups have opened since the test began."""
    names: list[bytes] = []

    def record(directory: int, name: bytes) -> int:
        names.append(name)
        return open_path(directory, name)

    monkeypatch.setattr(inode_table, "open_path", record)
    return names


@pytest.mark.root
def test_open_inode_is_looked_up_without_opening_its_name(
    tmp_path: Path, opened_by_name: list[bytes]
) -> None:
    share = SharedDirectory(tmp_path, most_open=16)
    try:
        for name in "abc":
            (tmp_path / name).touch()
        nodeids = [share.lookup(name) for name in "abc"]
        assert share.lookup("a") == nodeids[0]
        opened_by_name.clear()
        (tmp_path / "a").write_bytes(b"12345")
        entry = share.fs.lookup(ROOT, b"a")
        assert entry is not None
        assert (entry.nodeid, entry.stat.st_size) == (nodeids[0], 5)
        assert [share.lookup(name) for name in "bc"] == nodeids[1:]
        assert share.fs.lookup(ROOT, b"none") is None
        assert opened_by_name == []
        # All of these lookups count.
        assert not share.fs.forget(nodeids[0], 2)
        assert share.fs.forget(nodeids[0], 1)
    finally:
        share.close()


@pytest.mark.root
def test_name_that_another_inode_has_got_is_looked_up(share: SharedDirectory) -> None:
    for name in "abc":
        (share.path / name).write_text(name)
    a, b, c = (share.lookup(name) for name in "abc")
    for name, nodeid in zip("abc", (a, b, c), strict=True):
        assert share.lookup(name) == nodeid
    (share.path / "a").rename(share.path / "b")
    (share.path / "c").unlink()
    (share.path / "c").symlink_to("b")
    (share.path / "d").hardlink_to(share.path / "b")
    assert share.fs.lookup(ROOT, b"a") is None
    assert share.lookup("b") == share.lookup("d") == a
    entry = share.fs.lookup(ROOT, b"c")
    assert entry is not None
    assert entry.nodeid not in (a, b, c)
    assert stat.S_ISLNK(entry.stat.st_mode)


@pytest.mark.root
def test_reused_inode_number_is_another_inode(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.touch()
    number, old = path.stat().st_ino, share.lookup("file")
    path.unlink()
    others = [share.path / f"{number}" for number in range(5)]
    for other in others:
        other.touch()
        share.lookup(other.name)
    for attempt in range(NUMBERS_TRIED):
        path = share.path / f"new{attempt}"
        path.touch()
        if path.stat().st_ino == number:
            break
    else:
        # A file system that gives a number only once.
        assert errno_of(share.fs.getattr, old, None) == errno.ESTALE
        return
    new = share.lookup(path.name)
    assert new != old
    assert errno_of(share.fs.getattr, old, None) == errno.ESTALE
    assert share.fs.getattr(new, None).st_ino == number
    assert share.fs.forget(old, 1)
    assert share.lookup(path.name) == new


def test_open_inode_is_usable_when_unlinked(share: SharedDirectory) -> None:
    (share.path / "file").write_text("data")
    nodeid, fh = share.open("file")
    (share.path / "file").unlink()
    for name in "abcdef":
        (share.path / name).touch()
        share.lookup(name)
    status = share.fs.getattr(nodeid, None)
    assert (status.st_nlink, status.st_size) == (0, 4)
    assert share.read(nodeid, fh, 0, 10) == b"data"


def test_a_moved_file_is_still_found(share: SharedDirectory) -> None:
    (share.path / "a").mkdir()
    (share.path / "file").write_text("data")
    nodeid = share.lookup("file")
    (share.path / "file").rename(share.path / "a/moved")
    for name in "bcdefg":
        (share.path / name).touch()
        share.lookup(name)
    fh = share.fs.open(nodeid, os.O_RDONLY, False).fh
    assert share.read(nodeid, fh, 0, 10) == b"data"
    assert share.lookup("a/moved") == nodeid


@pytest.mark.root
def test_mounts_inside_are_served_through_their_own_root() -> None:
    share = SharedDirectory(DEVICES)
    before = open_descriptors()
    with tempfile.TemporaryDirectory(dir=DEVICES / "shm") as name:
        base = Path(name)
        for number in range(20):
            (base / f"{number}").write_text(f"{number}")
        nodeids = [share.lookup(f"shm/{base.name}/{number}") for number in range(20)]
        assert open_descriptors() <= before + 4 + 1
        for number, nodeid in enumerate(nodeids):
            fh = share.fs.open(nodeid, os.O_RDONLY, False).fh
            assert share.read(nodeid, fh, 0, 10) == b"%d" % number
            share.fs.release(nodeid, fh)
    share.close()
    assert open_descriptors() < before


@pytest.mark.root
def test_a_mount_without_handles_is_served_by_descriptor_unless_they_are_mandatory() -> None:
    share = SharedDirectory(DEVICES)
    nodeid = share.lookup("pts/ptmx")
    for _ in range(2):
        assert share.fs.getattr(nodeid, None).st_ino == (DEVICES / "pts/ptmx").stat().st_ino
        share.lookup("shm")
    share.close()
    strict = SharedDirectory(DEVICES, keep=InodeFileHandles.MANDATORY)
    assert errno_of(strict.lookup, "pts") == errno.EOPNOTSUPP
    assert errno_of(strict.lookup, "shm") == 0
    strict.close()


@pytest.mark.root
def test_mount_is_closed_with_its_last_inode() -> None:
    store = InodeStore(InodeFileHandles.PREFER)
    before = open_descriptors()
    inodes = [take(store, DEVICES / "shm"), take(store, DEVICES / "shm"), take(store, DEVICES)]
    # Each object has its own, and each of the two mounts.
    assert open_descriptors() == before + 4
    assert inodes[0] is inodes[1]
    assert inodes[0].mount_id != inodes[2].mount_id
    store.put(inodes[0])
    assert open_descriptors() == before + 4
    store.put(inodes[1])
    assert open_descriptors() == before + 2
    store.put(inodes[2])
    assert open_descriptors() == before
    assert len(store) == 0


@pytest.mark.parametrize("magic", [0x65735546, 0x4D44], ids=["FUSE", "vfat"])
def test_a_file_system_that_forgets_its_handles_is_served_by_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(mounts, "file_system_type", lambda _fd: magic)
    store = InodeStore(InodeFileHandles.PREFER, most_open=1)
    inodes = [take(store, tmp_path), take(store, tmp_path / "file")]
    assert [each.by_handle for each in inodes] == [False, False]
    assert all(each.fd >= 0 for each in inodes)
    for each in inodes:
        store.put(each)


def test_get_does_not_close_the_caller_s_descriptor(tmp_path: Path) -> None:
    for keep in (InodeFileHandles.NEVER, InodeFileHandles.PREFER):
        store = InodeStore(keep)
        before = open_descriptors()
        fd = os.open(tmp_path, os.O_PATH)
        inode = store.get(fd, os.fstat(fd))
        assert store.get(fd, os.fstat(fd)) is inode
        os.close(fd)
        assert os.fstat(store.open(inode)).st_ino == tmp_path.stat().st_ino
        store.put(inode)
        store.put(inode)
        assert open_descriptors() == before


@pytest.mark.parametrize(
    ("limit", "expected"), [(64, 16), (1024, 128), (20_000, 2500), (1_000_000, 4096)]
)
def test_open_inodes_leave_most_descriptors_to_open_files(limit: int, expected: int) -> None:
    assert most_open(limit) == expected


@pytest.mark.parametrize(
    ("path", "capable", "reason"),
    [
        (Path("/proc"), True, "no file handles that last"),
        (Path("/"), False, "needs CAP_DAC_READ_SEARCH"),
    ],
)
def test_without_file_handles_descriptors_are_used_and_that_is_logged(
    path: Path, capable: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = open_descriptors()
    root_fd = os.open(path, os.O_PATH)
    assert (
        open_store(InodeFileHandles.PREFER, root_fd, 1000, capable).keep is InodeFileHandles.NEVER
    )
    assert reason in caplog.text
    with pytest.raises(HandlesUnavailableError, match=reason) as caught:
        open_store(InodeFileHandles.MANDATORY, root_fd, 1000, capable)
    assert "\n" not in str(caught.value)
    os.close(root_fd)
    assert open_descriptors() == before


def test_without_dac_read_search_descriptors_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_mount_fd: int, _handle: bytes) -> int:
        raise OSError(errno.EPERM, "refused")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(mounts, "open_handle", refuse)
    root_fd = os.open(tmp_path, os.O_PATH)
    assert (
        handle_probe.open_store(InodeFileHandles.PREFER, root_fd, 1000).keep
        is InodeFileHandles.NEVER
    )
    assert "CAP_DAC_READ_SEARCH" in caplog.text
    os.close(root_fd)


def test_inodes_are_opened_by_handle_while_acting_as_the_requester(share: SharedDirectory) -> None:
    (share.path / "directory").mkdir()
    (share.path / "directory").chmod(0o777)
    directory = share.lookup("directory")
    for make in (
        partial(share.fs.mkdir, USER, directory, b"x", 0o755, 0),
        partial(share.fs.symlink, USER, directory, b"y", b"target"),
        partial(share.fs.mknod, USER, directory, b"z", 0o100644, 0, 0),
        partial(share.fs.create, USER, directory, b"f", 0o644, os.O_RDWR, 0, False),
        partial(share.fs.tmpfile, USER, directory, 0o644, os.O_RDWR, 0),
    ):
        for name in "abcdef":
            (share.path / name).touch()
            share.lookup(name)
        assert errno_of(make) == 0


@pytest.mark.root
def test_daemon_logs_how_it_references_inodes(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    for options, said in (((), True), (("--inode-file-handles=never",), False)):
        with running(tmp_path / "socket", share, *options) as daemon:
            assert ("inodes are referenced by file handle" in daemon.log) == said


def test_daemon_refuses_mandatory_file_handles_where_there_are_none(tmp_path: Path) -> None:
    socket_path = tmp_path / "socket"
    options = [
        f"--socket-path={socket_path}",
        "--shared-dir=/proc/sys",
        "--inode-file-handles=mandatory",
    ]
    daemon = DaemonProcess(socket_path, [*options, "--sandbox=none", "--log-level=off"])
    assert daemon.wait() == 1
    assert (
        daemon.log
        == "farwatchd: --inode-file-handles=mandatory: the share's file system has no file handles"
        " that last; use --inode-file-handles=prefer\n"
    )
