# SPDX-License-Identifier: Apache-2.0
"""The reserve of descriptors for the daemon itself: the guest gets ENFILE, without an effect."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Lock
from farwatchd.inode_store.descriptors import for_guest
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from tests.support.passthrough_share import DAEMON, errno_of, names_in

MOST = 10
MOST_OPEN = 4
KEEP = [InodeFileHandles.NEVER, InodeFileHandles.PREFER]


def share(path: Path, keep: InodeFileHandles) -> PassthroughFs:
    return PassthroughFs(path, ShareOptions(), InodeStore(keep, MOST_OPEN, MOST))


def test_half_of_a_low_limit_is_reserved() -> None:
    assert [for_guest(limit) for limit in (64, 512, 1_000_000)] == [32, 256, 1_000_000 - 256]


@pytest.mark.parametrize("keep", KEEP)
def test_operation_beyond_the_limit_is_refused_before_it_changes_a_file(
    tmp_path: Path, keep: InodeFileHandles
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    fs = share(tmp_path, keep)
    entry = fs.lookup(ROOT, b"file")
    assert entry
    before = fs.share.inodes._store.budget.used
    handles = []
    while not errno_of(lambda: handles.append(fs.open(entry.nodeid, os.O_RDWR, False).fh)):
        assert len(handles) < MOST
    assert len(handles) > 1
    names = names_in(tmp_path)
    lock = Lock(fcntl.F_RDLCK, 0, 10, 1)
    # The first owner's locks need no descriptor, those of the second one do.
    fs.setlk(entry.nodeid, handles[0], 2, lock)
    refused = {
        "open": errno_of(fs.open, entry.nodeid, os.O_RDWR | os.O_TRUNC, False),
        "create": errno_of(fs.create, DAEMON, ROOT, b"new", 0o644, os.O_RDWR, 0, False),
        "create there": errno_of(
            fs.create, DAEMON, ROOT, b"file", 0o644, os.O_RDWR | os.O_TRUNC, 0, False
        ),
        "tmpfile": errno_of(fs.tmpfile, DAEMON, ROOT, 0o644, os.O_RDWR, 0),
        "opendir": errno_of(fs.opendir, ROOT, os.O_RDONLY),
        "setlk": errno_of(fs.setlk, entry.nodeid, handles[0], 1, lock),
    }
    assert refused == dict.fromkeys(refused, errno.ENFILE)
    assert names_in(tmp_path) == names
    assert (tmp_path / "file").read_bytes() == b"content"
    for fh in handles:
        fs.release(entry.nodeid, fh)
    assert fs.share.inodes._store.budget.used == before
    fh = fs.open(entry.nodeid, os.O_RDWR, False).fh
    fs.setlk(entry.nodeid, fh, 1, lock)
    fs.reset()
    fs.close()
    assert fs.share.inodes._store.budget.used == 0


def test_inodes_without_a_file_handle_count(tmp_path: Path) -> None:
    for number in range(MOST + 1):
        (tmp_path / f"{number}").touch()
    fs = share(tmp_path, InodeFileHandles.NEVER)
    entries = []
    with pytest.raises(OSError, match=os.strerror(errno.ENFILE)):
        for number in range(MOST + 1):
            entries.append(fs.lookup(ROOT, b"%d" % number))
    # The root is one.
    assert len(entries) == MOST - 1
    assert errno_of(fs.mkdir, DAEMON, ROOT, b"new", 0o755, 0) == errno.ENFILE
    assert not (tmp_path / "new").exists()
    assert entries[0]
    fs.forget(entries[0].nodeid, 1)
    assert fs.lookup(ROOT, b"0")
    fs.close()
