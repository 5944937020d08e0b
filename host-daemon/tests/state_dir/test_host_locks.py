# SPDX-License-Identifier: Apache-2.0
"""What becomes of open files whose locks another process has taken meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import Lock
from farwatchd.state_dir.host_locks import HostLocks, OwnersLocks
from tests.support.passthrough_share import SharedDirectory, errno_of

#: Fewer than descriptors may be open.
FILES = 600
TO_READ = Lock(fcntl.F_RDLCK, 0, 9, 1)
TO_WRITE = Lock(fcntl.F_WRLCK, 0, 9, 1)


@pytest.fixture
def few_nested_calls() -> Iterator[None]:
    """Permit fewer nested calls than FILES."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(FILES - 100)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("few_nested_calls")
def test_files_are_lost_with_those_that_share_locks_with_them(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path)
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(bytes(100))
    nodeid = share.lookup("file")
    files = [share.fs.open(nodeid, os.O_RDWR, False).fh for _ in range(FILES)]
    other = share.open("other")
    share.fs.setlk(*other, 1, TO_WRITE)
    for owner, pair in enumerate(pairwise(files), start=1):
        for fh in pair:
            share.fs.setlk(nodeid, fh, owner, TO_READ)
    HostLocks(share.passthrough).posix(OwnersLocks(nodeid, FILES, files[:1], [TO_WRITE]))
    assert {errno_of(share.fs.lseek, nodeid, fh, 0, os.SEEK_END) for fh in files} == {errno.EIO}
    assert share.passthrough.share.locks.owners() == [(other[0], 1)]
    share.close()
