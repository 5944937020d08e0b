# SPDX-License-Identifier: Apache-2.0
"""Reading directories through the passthrough file system, also while they change."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.encode import directory
from farwatchd.fuse.filesystem import ROOT, DirEntry
from farwatchd.passthrough import directories
from farwatchd.wire.fuse import dirent
from tests.support.passthrough_share import SharedDirectory, errno_of

MANY = 1200


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path)
    yield share
    share.close()


@pytest.fixture
def full(share: SharedDirectory) -> set[bytes]:
    names = {b"entry %d of a large directory" % number for number in range(MANY)}
    for name in names:
        (share.path / os.fsdecode(name)).touch()
    return names


def _in_steps(share: SharedDirectory, fh: int, size: int) -> Iterator[list[DirEntry]]:
    offset = 0
    while entries := list(itertools.islice(share.fs.readdir(ROOT, fh, offset), size)):
        yield entries
        offset = entries[-1].offset


def test_entries_are_those_of_the_host(share: SharedDirectory) -> None:
    (share.path / "file").touch()
    (share.path / "directory").mkdir()
    (share.path / "link").symlink_to("nowhere")
    os.mkfifo(share.path / "fifo")
    (share.path / os.fsdecode(b"\xff" * 255)).touch()
    entries = {
        entry.name: entry for entry in share.fs.readdir(ROOT, share.fs.opendir(ROOT, 0).fh, 0)
    }
    for child in share.path.iterdir():
        entry = entries.pop(os.fsencode(child.name))
        assert entry.ino == child.lstat().st_ino
        assert entry.kind == stat.S_IFMT(child.lstat().st_mode) >> 12
    assert set(entries) == {b".", b".."}
    assert entries[b"."].ino == share.path.stat().st_ino


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_a_large_directory_is_read_whole_in_steps_of_any_size(
    share: SharedDirectory, full: set[bytes], size: int
) -> None:
    fh = share.fs.opendir(ROOT, 0).fh
    names = [entry.name for entries in _in_steps(share, fh, size) for entry in entries]
    assert len(names) == MANY + 2
    assert set(names) == full | {b".", b".."}


def test_reading_goes_on_from_any_position_any_number_of_times(
    share: SharedDirectory, full: set[bytes]
) -> None:
    fh = share.fs.opendir(ROOT, 0).fh
    entries = list(share.fs.readdir(ROOT, fh, 0))
    for index in (0, MANY, 5, 600, MANY + 1):
        assert list(share.fs.readdir(ROOT, fh, entries[index].offset)) == entries[index + 1 :]
    assert list(share.fs.readdir(ROOT, fh, 0)) == entries


def test_unchanged_entries_are_listed_once_while_others_change(
    share: SharedDirectory, full: set[bytes]
) -> None:
    fh = share.fs.opendir(ROOT, 0).fh
    leaving = sorted(full)[::3]
    seen: list[bytes] = []
    for step, entries in enumerate(_in_steps(share, fh, 20)):
        seen += [entry.name for entry in entries]
        for name in leaving[step * 10 : step * 10 + 10]:
            (share.path / os.fsdecode(name)).unlink()
        (share.path / f"new {step}").touch()
    for name in full - set(leaving):
        assert seen.count(name) == 1
    assert len(seen) == len(set(seen))


def test_an_entry_made_after_opening_is_seen_after_rewinding(share: SharedDirectory) -> None:
    fh = share.fs.opendir(ROOT, 0).fh
    assert len(list(share.fs.readdir(ROOT, fh, 0))) == 2
    (share.path / "new").touch()
    assert b"new" in {entry.name for entry in share.fs.readdir(ROOT, fh, 0)}


def test_two_handles_and_two_readings_have_positions_of_their_own(
    share: SharedDirectory, full: set[bytes]
) -> None:
    first, second = share.fs.opendir(ROOT, 0).fh, share.fs.opendir(ROOT, 0).fh
    one = share.fs.readdir(ROOT, first, 0)
    beginning = list(itertools.islice(one, 3))
    other = list(share.fs.readdir(ROOT, second, 0))
    assert beginning + list(one) == other


def test_opendir_of_a_file_is_enotdir(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    assert errno_of(share.fs.opendir, entry.nodeid, 0) == errno.ENOTDIR
    assert errno_of(share.fs.readdir, entry.nodeid, opened.fh, 0) == errno.ENOTDIR
    fh = share.fs.opendir(ROOT, 0).fh
    assert errno_of(share.read, ROOT, fh, 0, 10) == errno.EISDIR
    assert errno_of(share.fs.readdir, ROOT, fh, 2**64 - 1) == errno.EINVAL
    share.fs.releasedir(ROOT, fh)
    assert errno_of(share.fs.readdir, ROOT, fh, 0) == errno.EBADF


def test_readdir_of_a_removed_directory_is_empty(share: SharedDirectory) -> None:
    (share.path / "directory").mkdir()
    nodeid = share.lookup("directory")
    fh = share.fs.opendir(nodeid, 0).fh
    (share.path / "directory").rmdir()
    assert list(_names(share, nodeid, fh)) == []


def _names(share: SharedDirectory, nodeid: int, fh: int) -> list[bytes]:
    try:
        return [entry.name for entry in share.fs.readdir(nodeid, fh, 0)]
    except FileNotFoundError:
        return []


def test_position_beyond_the_signed_range_is_passed_on(
    share: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE and some network file systems use all 64 bits of d_off."""
    position = (1 << 64) - 2
    read = iter([struct.pack("=QQHB", 7, position, 24, stat.S_IFREG >> 12) + b"name\0"])
    sought: list[int] = []

    def getdents64(_fd: int, buffer: bytearray) -> int:
        record = next(read, b"").ljust(24, b"\0")
        buffer[:24] = record
        return 24 if any(record) else 0

    monkeypatch.setattr(directories, "getdents64", getdents64)
    monkeypatch.setattr(os, "lseek", lambda _fd, offset, _whence: sought.append(offset))
    fh = share.fs.opendir(ROOT, 0).fh
    entries = list(share.fs.readdir(ROOT, fh, position))
    assert sought == [-2]
    assert [(entry.name, entry.offset) for entry in entries] == [(b"name", position)]
    assert dirent.unpack_from(directory(iter(entries), 4096, None)).off == position
