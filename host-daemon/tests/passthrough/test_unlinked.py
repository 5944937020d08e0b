# SPDX-License-Identifier: Apache-2.0
"""Inodes that the host has removed.

A change of one is ESTALE, after which Linux looks the name up again; an open file stays usable as
on a local file system.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.passthrough.options import ShareOptions
from tests.support.passthrough_share import DAEMON, SharedDirectory, errno_of, settled

FILE: dict[str, Callable[[SharedDirectory, int], object]] = {
    "open": lambda share, nodeid: share.fs.open(nodeid, os.O_RDWR | os.O_TRUNC, False),
    "open to read": lambda share, nodeid: share.fs.open(nodeid, os.O_RDONLY, False),
    "truncate": lambda share, nodeid: settled(share.fs.setattr, nodeid, Changes(size=0)),
    "chmod": lambda share, nodeid: share.fs.setattr(nodeid, Changes(mode=0o600)),
    "setxattr": lambda share, nodeid: share.fs.setxattr(nodeid, b"user.a", b"b", 0, False),
    "removexattr": lambda share, nodeid: share.fs.removexattr(nodeid, b"user.a"),
    "link": lambda share, nodeid: share.fs.link(nodeid, ROOT, b"linked"),
}
DIRECTORY: dict[str, Callable[[SharedDirectory, int], object]] = {
    "create": lambda share, nodeid: share.fs.create(
        DAEMON, nodeid, b"new", 0o644, os.O_RDWR, 0, False
    ),
    "tmpfile": lambda share, nodeid: share.fs.tmpfile(DAEMON, nodeid, 0o644, os.O_RDWR, 0),
    "mkdir": lambda share, nodeid: share.fs.mkdir(DAEMON, nodeid, b"new", 0o755, 0),
    "mknod": lambda share, nodeid: share.fs.mknod(DAEMON, nodeid, b"new", 0o100644, 0, 0),
    "symlink": lambda share, nodeid: share.fs.symlink(DAEMON, nodeid, b"new", b"target"),
    "link": lambda share, nodeid: share.fs.link(share.lookup("other"), nodeid, b"new"),
    "rename": lambda share, nodeid: share.fs.rename(ROOT, b"other", nodeid, b"new", 0),
}


@pytest.fixture(
    params=[InodeFileHandles.NEVER, pytest.param(InodeFileHandles.PREFER, marks=pytest.mark.root)]
)
def share(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True), request.param)
    (tmp_path / "other").touch()
    yield share
    share.close()


@pytest.mark.parametrize("operation", FILE)
def test_removed_file_is_stale(share: SharedDirectory, operation: str) -> None:
    path = share.path / "file"
    path.write_text("old")
    nodeid = share.lookup("file")
    path.unlink()
    path.write_text("new")
    assert errno_of(FILE[operation], share, nodeid) == errno.ESTALE
    assert path.read_text() == "new"
    assert errno_of(FILE[operation], share, share.lookup("file")) in {0, errno.ENODATA}


@pytest.mark.parametrize("operation", DIRECTORY)
def test_removed_directory_is_stale(share: SharedDirectory, operation: str) -> None:
    path = share.path / "directory"
    path.mkdir()
    nodeid = share.lookup("directory")
    shutil.rmtree(path)
    path.mkdir()
    assert errno_of(DIRECTORY[operation], share, nodeid) == errno.ESTALE
    assert (share.path / "other").exists()
    assert errno_of(DIRECTORY[operation], share, share.lookup("directory")) == 0


@pytest.mark.parametrize("operation", FILE)
def test_unlinked_file_that_the_guest_has_open_is_usable(
    share: SharedDirectory, operation: str
) -> None:
    path = share.path / "file"
    path.write_text("data")
    nodeid, fh = share.open("file")
    path.unlink()
    # A file whose last name was removed gets no new one, on a local file system neither.
    expected = {"link": {errno.ENOENT}, "removexattr": {errno.ENODATA}}.get(operation, {0})
    assert errno_of(FILE[operation], share, nodeid) in expected
    assert share.write(nodeid, fh, 0, b"x") == 1
    share.fs.release(nodeid, fh)


def test_file_without_a_name_can_be_opened_again_while_it_is_open(share: SharedDirectory) -> None:
    entry, opened = share.fs.tmpfile(DAEMON, ROOT, 0o644, os.O_RDWR, 0)
    again = share.fs.open(entry.nodeid, os.O_RDWR, False)
    share.fs.release(entry.nodeid, opened.fh)
    assert share.write(entry.nodeid, again.fh, 0, b"x") == 1


def test_missing_name_in_an_existing_directory_is_enoent(share: SharedDirectory) -> None:
    assert errno_of(share.fs.unlink, ROOT, b"missing") == errno.ENOENT
    assert errno_of(share.fs.rename, ROOT, b"missing", ROOT, b"new", 0) == errno.ENOENT


def test_times_of_a_removed_file_can_be_set(share: SharedDirectory) -> None:
    path = share.path / "file"
    path.touch()
    nodeid = share.lookup("file")
    path.unlink()
    # With a write-back cache Linux sends the times later, and a failure fails a later syncfs(2).
    assert share.fs.setattr(nodeid, Changes(mtime_ns=5)).st_mtime_ns == 5


def test_removed_directory_can_be_opened_and_readdir_is_enoent(share: SharedDirectory) -> None:
    path = share.path / "directory"
    path.mkdir()
    nodeid = share.lookup("directory")
    path.rmdir()
    # As on a local file system for a process that works in it: getdents64(2) says ENOENT.
    opened = share.fs.opendir(nodeid, os.O_RDONLY)
    assert errno_of(share.fs.readdir, nodeid, opened.fh, 0) == errno.ENOENT
    share.fs.releasedir(nodeid, opened.fh)
