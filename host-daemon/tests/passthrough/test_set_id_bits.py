# SPDX-License-Identifier: Apache-2.0
"""Set-id bits of a file whose content changes, as FUSE_HANDLE_KILLPRIV_V2 of fuse.h has them."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes
from farwatchd.passthrough.options import ShareOptions
from tests.support.passthrough_share import DAEMON, SharedDirectory, done, errno_of, settled

pytestmark = pytest.mark.root

#: Neither is the daemon's.
OWNER, GROUP = 1001, 2002
BITS = (stat.S_ISUID, stat.S_ISGID, stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH)
MODES = [
    0o666 | sum(chosen)
    for count in range(len(BITS) + 1)
    for chosen in itertools.combinations(BITS, count)
]


def with_handle(
    flags: int, change: Callable[[SharedDirectory, int, int, bool], object]
) -> Callable[[SharedDirectory, bool], object]:
    def operation(share: SharedDirectory, kill: bool) -> None:
        nodeid, fh = share.open("file", flags)
        change(share, nodeid, fh, kill)
        share.fs.release(nodeid, fh)

    return operation


def write(share: SharedDirectory, nodeid: int, fh: int, kill: bool) -> None:
    assert share.write(nodeid, fh, 0, b"x", kill_suidgid=kill) == 1


def write_page(share: SharedDirectory, nodeid: int, fh: int, kill: bool) -> None:
    assert share.write(nodeid, fh, 0, b"x", kill_suidgid=kill, cached=True) == 1


def fallocate(share: SharedDirectory, nodeid: int, fh: int, kill: bool) -> None:
    done(share.fs.fallocate(nodeid, fh, 0, 0, 100, kill))


def copy(share: SharedDirectory, nodeid: int, fh: int, kill: bool) -> None:
    source, source_fh = share.open("source", os.O_RDONLY)
    task = share.fs.copy_file_range(source, source_fh, 0, nodeid, fh, 0, 4, kill)
    assert done(task) == 4
    share.fs.release(source, source_fh)


def truncate_file(share: SharedDirectory, nodeid: int, fh: int, kill: bool) -> None:
    settled(share.fs.setattr, nodeid, Changes(size=1, fh=fh, kill_suidgid=kill))


def truncate(share: SharedDirectory, kill: bool) -> None:
    settled(share.fs.setattr, share.lookup("file"), Changes(size=1, kill_suidgid=kill))


def open_to_truncate(share: SharedDirectory, kill: bool) -> None:
    share.open("file", os.O_WRONLY | os.O_TRUNC, kill)


def create(share: SharedDirectory, kill: bool) -> None:
    flags = os.O_WRONLY | os.O_TRUNC
    settled(share.fs.create, DAEMON, ROOT, b"file", 0o644, flags, 0, kill)


OPERATIONS: dict[str, Callable[[SharedDirectory, bool], object]] = {
    "write": with_handle(os.O_RDWR, write),
    "append": with_handle(os.O_WRONLY | os.O_APPEND, write),
    "write O_DSYNC": with_handle(os.O_WRONLY | os.O_DSYNC, write),
    "write a page": with_handle(os.O_RDWR, write_page),
    "fallocate": with_handle(os.O_RDWR, fallocate),
    "copy_file_range": with_handle(os.O_RDWR, copy),
    "ftruncate": with_handle(os.O_RDWR, truncate_file),
    "truncate": truncate,
    "open O_TRUNC": open_to_truncate,
    "create O_TRUNC": create,
}


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    (tmp_path / "source").write_text("data")
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True))
    yield share
    share.close()


def make(share: SharedDirectory, mode: int, owner: int = OWNER, group: int = GROUP) -> Path:
    """Make the file again with this mode."""
    path = share.path / "file"
    path.unlink(missing_ok=True)
    path.write_text("old data")
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


def left(mode: int) -> int:
    """Return the mode that fuse.h leaves of ``mode``."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


@pytest.mark.parametrize("group", [GROUP, os.getegid()], ids=["foreign group", "own group"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_set_id_bits_go_as_the_guest_says(
    share: SharedDirectory, operation: str, group: int
) -> None:
    wrong = []
    for mode, kill in itertools.product(MODES, (False, True)):
        path = make(share, mode, group=group)
        OPERATIONS[operation](share, kill)
        found = stat.S_IMODE(path.stat().st_mode)
        expected = left(mode) if kill else mode
        if found != expected:
            wrong.append(f"{mode:o}, kill {kill}: {found:o} and not {expected:o}")
    assert not wrong


def test_failed_change_leaves_the_bits_or_takes_them(share: SharedDirectory) -> None:
    path = make(share, 0o6666)
    nodeid, fh = share.open("file", os.O_RDONLY)
    assert errno_of(share.write, nodeid, fh, 0, b"x") != 0
    assert path.read_text() == "old data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o6666
