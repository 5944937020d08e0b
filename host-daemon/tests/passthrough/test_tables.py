# SPDX-License-Identifier: Apache-2.0
"""The tables of the passthrough file system.

Lookups are counted exactly, no descriptor is left, numbers are never reused.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.procfd import ProcFd
from tests.support.passthrough_share import (
    DAEMON,
    SharedDirectory,
    errno_of,
    names_in,
    open_descriptors,
)


@pytest.fixture(params=[InodeFileHandles.NEVER, InodeFileHandles.PREFER])
def share(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True), request.param)
    yield share
    share.close()


def test_inode_is_stale_when_all_lookups_are_forgotten(share: SharedDirectory) -> None:
    before = open_descriptors()
    entry, opened = share.create(b"file")
    share.fs.release(entry.nodeid, opened.fh)
    for _ in range(4):
        assert share.lookup("file") == entry.nodeid
    share.fs.link(entry.nodeid, ROOT, b"other")
    assert not share.fs.forget(entry.nodeid, 5)
    assert share.fs.getattr(entry.nodeid, None).st_nlink == 2
    assert share.fs.forget(entry.nodeid, 1)
    assert errno_of(share.fs.getattr, entry.nodeid, None) == errno.ESTALE
    assert open_descriptors() <= before


def test_forgetting_too_many_lookups_or_unknown_nodeids_is_harmless(share: SharedDirectory) -> None:
    entry, _ = share.create(b"file")
    assert share.fs.forget(entry.nodeid, 2**64 - 1)
    assert not share.fs.forget(entry.nodeid, 1)
    assert not share.fs.forget(12345, 1)
    assert not share.fs.forget(ROOT, 2**64 - 1)
    assert share.fs.getattr(ROOT, None) == share.path.stat()


def test_a_nodeid_and_a_handle_are_never_used_again(share: SharedDirectory) -> None:
    nodeids, handles = set(), set()
    for _ in range(20):
        entry, opened = share.create(b"file")
        nodeids.add(entry.nodeid)
        handles.add(opened.fh)
        share.fs.release(entry.nodeid, opened.fh)
        assert share.fs.forget(entry.nodeid, 1)
        share.fs.unlink(ROOT, b"file")
        share.passthrough.reset()
    assert len(nodeids) == len(handles) == 20


def test_an_inode_that_the_host_replaced_is_another(share: SharedDirectory) -> None:
    (share.path / "file").write_text("old")
    old = share.lookup("file")
    (share.path / "file").unlink()
    (share.path / "file").write_text("new")
    new = share.lookup("file")
    assert old != new
    # The guest looks the name up again.
    assert errno_of(share.fs.getattr, old, None) == errno.ESTALE
    assert share.fs.getattr(new, None).st_nlink == 1


def test_link_that_the_host_replaced_is_stale(share: SharedDirectory) -> None:
    (share.path / "link").symlink_to("old")
    old = share.lookup("link")
    assert share.fs.readlink(old) == b"old"
    (share.path / "new").symlink_to("new")
    (share.path / "new").rename(share.path / "link")
    assert errno_of(share.fs.readlink, old) == errno.ESTALE
    assert share.fs.readlink(share.lookup("link")) == b"new"


def test_unlinked_file_that_the_guest_has_open_has_attributes(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    (share.path / "file").unlink()
    assert share.fs.getattr(entry.nodeid, None).st_nlink == 0
    share.fs.release(entry.nodeid, opened.fh)
    assert errno_of(share.fs.getattr, entry.nodeid, None) == errno.ESTALE


def test_deleted_directory_has_attributes(share: SharedDirectory) -> None:
    (share.path / "directory").mkdir()
    nodeid = share.lookup("directory")
    (share.path / "directory").rmdir()
    assert share.fs.getattr(nodeid, None).st_nlink == 0


def test_a_handle_outlives_its_name_and_its_inodes_lookups(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    share.write(entry.nodeid, opened.fh, 0, b"data")
    share.fs.unlink(ROOT, b"file")
    assert share.fs.forget(entry.nodeid, 1)
    assert share.read(entry.nodeid, opened.fh, 0, 10) == b"data"
    share.fs.release(entry.nodeid, opened.fh)


def test_reset_leaves_only_the_root(share: SharedDirectory) -> None:
    before = open_descriptors()
    entry, opened = share.create(b"file")
    share.fs.mkdir(DAEMON, ROOT, b"directory", 0o755, 0)
    share.fs.opendir(ROOT, 0)
    share.fs.reset()
    assert open_descriptors() <= before
    assert errno_of(share.fs.getattr, entry.nodeid, None) == errno.ESTALE
    assert errno_of(share.read, entry.nodeid, opened.fh, 0, 1) == errno.EBADF
    assert share.lookup("file") > entry.nodeid


def test_failures_leave_no_descriptor(share: SharedDirectory) -> None:
    (share.path / "link").symlink_to("x")
    os.mkfifo(share.path / "fifo")
    before = open_descriptors()
    for name in (b"link", b"fifo"):
        assert errno_of(share.create, name)
        assert errno_of(share.create, name, 0o600, os.O_RDWR | os.O_EXCL)
    assert share.fs.lookup(ROOT, b"none") is None
    assert errno_of(share.fs.tmpfile, DAEMON, ROOT, 0o600, os.O_RDONLY, 0)
    assert open_descriptors() <= before


def test_close_closes_all_descriptors(tmp_path: Path) -> None:
    before = open_descriptors()
    share = SharedDirectory(tmp_path)
    share.create(b"file")
    share.close()
    assert open_descriptors() <= before


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """For a while the process may open ``count`` more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What earlier tests have left must not be closed meanwhile.
    gc.collect()
    # The limit is of numbers, and some may be free below the highest one that is used.
    used = names_in(Path("/proc/self/fd"))
    free = (number for number in itertools.count() if str(number).encode() not in used)
    highest = next(itertools.islice(free, count - 1, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_running_out_of_descriptors_is_the_systems_limit_for_the_guest(
    share: SharedDirectory,
) -> None:
    for number in range(40):
        (share.path / f"{number}").write_text("data")
    nodeid, fh = share.open("0")
    with descriptors_left(20):
        opened = [errno_of(share.open, f"{number}") for number in range(40)]
        assert set(opened) == {0, errno.ENFILE}
        assert (
            errno_of(share.create, b"new") == errno_of(share.fs.flush, nodeid, fh) == errno.ENFILE
        )
        # Known inodes and open files are served, and released ones can be opened again.
        assert errno_of(share.fs.getattr, nodeid, None) == 0
        assert share.read(nodeid, fh, 0, 10) == b"data"
        share.fs.release(nodeid, fh)
        assert errno_of(share.fs.open, nodeid, os.O_RDONLY, False) == 0
    assert share.open("39")


def test_inodes_by_descriptor_run_out_with_them(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, keep=InodeFileHandles.NEVER)
    for number in range(40):
        (share.path / f"{number}").touch()
    with descriptors_left(20):
        assert {errno_of(share.lookup, f"{number}") for number in range(40)} == {0, errno.ENFILE}
    assert share.lookup("39")
    share.close()


@pytest.mark.root
def test_inodes_by_handle_go_on_where_opening_files_has_used_up_the_descriptors(
    tmp_path: Path,
) -> None:
    share = SharedDirectory(tmp_path)
    for number in range(80):
        (share.path / f"{number}").touch()
    nodeids = [share.lookup(f"{number}") for number in range(40)]
    with descriptors_left(20):
        assert errno.ENFILE in [
            errno_of(share.fs.open, nodeid, os.O_RDONLY, False) for nodeid in nodeids
        ]
        assert {errno_of(share.lookup, f"{number}") for number in range(80)} == {0}
        assert {errno_of(share.fs.getattr, nodeid, None) for nodeid in nodeids} == {0}
    share.close()


def test_watch_target_has_generation_descriptor_and_type(share: SharedDirectory) -> None:
    entry, _ = share.create(b"file")
    watched = share.fs.watch_target(entry.nodeid)
    assert (watched.generation, watched.is_dir) == (entry.generation, False)
    assert os.fstat(watched.fd).st_ino == (share.path / "file").stat().st_ino
    assert share.fs.watch_target(ROOT).is_dir
    assert Path(ProcFd().path(watched.fd)).samefile(share.path / "file")
    assert errno_of(share.fs.watch_target, 12345) == errno.ENOENT


def test_file_system_works_when_proc_is_only_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc/self/fd")
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True))
    entry, opened = share.create(b"file")
    assert ProcFd().path(opened.fh) == f"{opened.fh}"
    share.write(entry.nodeid, opened.fh, 0, b"data")
    share.fs.setxattr(entry.nodeid, b"user.a", b"b", 0, False)
    share.fs.link(entry.nodeid, ROOT, b"other")
    nodeid, fh = share.open("other", os.O_RDONLY)
    assert (nodeid, share.read(nodeid, fh, 0, 10)) == (entry.nodeid, b"data")
    share.close()
