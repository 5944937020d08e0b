# SPDX-License-Identifier: Apache-2.0
"""Locks of the guest's owners against one another and against processes of the host.

The kernel is the model.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Lock
from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.linux.inotify import Inotify, InotifyBit
from farwatchd.passthrough import lock_table
from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.options import ShareOptions
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.passthrough_share import SharedDirectory, errno_of, open_descriptors

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
END = (1 << 63) - 1
A, B = 0xA, 0xB
FLOCK = struct.Struct("@hhqqi4x")


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path)
    yield share
    share.close()


@pytest.fixture
def file(share: SharedDirectory) -> tuple[int, int]:
    """Return the nodeid and handle of an open file of 100 bytes."""
    (share.path / "file").write_bytes(bytes(100))
    return share.open("file")


def whole(kind: int, pid: int = 1) -> Lock:
    return Lock(kind, 0, END, pid)


@contextlib.contextmanager
def held_on_host(path: Path, kind: int, start: int = 0, length: int = 0) -> Iterator[None]:
    """Hold a lock for an open file of the host's, as another process would."""
    with path.open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        yield


def test_locks_of_two_owners_conflict(share: SharedDirectory, file: tuple[int, int]) -> None:
    fs = share.fs
    fs.setlk(*file, A, Lock(WRITE, 10, 19, 77))
    assert errno_of(fs.setlk, *file, B, Lock(READ, 19, 30, 78)) == errno.EAGAIN
    assert fs.getlk(*file, B, Lock(READ, 0, END, 78)) == Lock(WRITE, 10, 19, 77)
    assert fs.getlk(*file, A, Lock(READ, 0, END, 77)) is None
    fs.setlk(*file, B, Lock(WRITE, 20, 30, 78))
    fs.setlk(*file, A, Lock(NONE, 10, 19, 77))
    fs.setlk(*file, B, Lock(WRITE, 10, 15, 78))


def test_readers_share(share: SharedDirectory, file: tuple[int, int]) -> None:
    share.fs.setlk(*file, A, whole(READ))
    share.fs.setlk(*file, B, whole(READ))
    assert share.fs.getlk(*file, B, whole(READ)) is None
    assert errno_of(share.fs.setlk, *file, B, whole(WRITE)) == errno.EAGAIN
    share.fs.setlk(*file, A, whole(NONE))
    share.fs.setlk(*file, B, whole(WRITE))


def test_locks_of_host_processes_and_the_guest_conflict(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    path = share.path / "file"
    with held_on_host(path, WRITE, 5, 5):
        assert errno_of(share.fs.setlk, *file, A, whole(READ)) == errno.EAGAIN
        assert share.fs.getlk(*file, A, whole(READ)) == Lock(WRITE, 5, 9, 0)
        share.fs.setlk(*file, A, Lock(WRITE, 10, END, 1))
        with path.open("r+b") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 50)
    share.fs.setlk(*file, A, whole(WRITE))


def test_flush_releases_all_locks_of_the_owner(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    before = open_descriptors()
    share.fs.setlk(*file, A, whole(WRITE))
    share.fs.unlock_owner(file[0], B)
    assert errno_of(share.fs.setlk, *file, B, whole(WRITE)) == errno.EAGAIN
    share.fs.unlock_owner(file[0], A)
    share.fs.setlk(*file, B, whole(WRITE))
    share.fs.unlock_owner(file[0], B)
    assert open_descriptors() <= before


def test_release_releases_locks_taken_through_the_file(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    nodeid, first = file
    _, second = share.open("file")
    share.fs.setlk(nodeid, first, A, Lock(WRITE, 0, 9, 1))
    share.fs.setlk(nodeid, second, B, Lock(WRITE, 10, 19, 1))
    share.fs.release(nodeid, first)
    assert share.fs.getlk(nodeid, second, A, whole(WRITE)) == Lock(WRITE, 10, 19, 1)
    share.fs.setlk(nodeid, second, B, whole(WRITE))
    share.fs.release(nodeid, second)
    assert len(share.passthrough.share.locks) == 0


def test_reset_and_forget_release_locks_and_descriptors(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    with (share.path / "file").open("r+b") as other:
        share.fs.setlk(*file, A, whole(WRITE))
        assert share.fs.forget(file[0], 1)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(other, fcntl.LOCK_UN)
    nodeid, fh = share.open("file")
    share.fs.setlk(nodeid, fh, A, whole(WRITE))
    share.fs.reset()
    assert len(share.passthrough.share.locks) == 0
    with (share.path / "file").open("r+b") as other:
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_belongs_to_the_open_file(share: SharedDirectory, file: tuple[int, int]) -> None:
    nodeid, first = file
    _, second = share.open("file")
    share.fs.flock(nodeid, first, WRITE)
    assert errno_of(share.fs.flock, nodeid, second, READ) == errno.EAGAIN
    # Neither kind of lock minds the other.
    share.fs.setlk(nodeid, second, B, whole(WRITE))
    with (share.path / "file").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    share.fs.flock(nodeid, first, READ)
    share.fs.flock(nodeid, second, READ)
    share.fs.release(nodeid, first)
    share.fs.flock(nodeid, second, WRITE)
    share.fs.flock(nodeid, second, NONE)


def test_lock_of_an_unknown_fh_is_ebadf(share: SharedDirectory, file: tuple[int, int]) -> None:
    nodeid, fh = file
    for operation in (lambda: share.fs.setlk(nodeid, fh + 1, A, whole(WRITE)),
                      lambda: share.fs.getlk(nodeid, fh + 1, A, whole(WRITE)),
                      lambda: share.fs.flock(nodeid, fh + 1, WRITE)):  # fmt: skip
        assert errno_of(operation) == errno.EBADF
    directory = share.fs.opendir(ROOT, 0).fh
    assert errno_of(share.fs.setlk, ROOT, directory, A, whole(READ)) == errno.EBADF


def test_number_of_locks_is_bounded(
    share: SharedDirectory, file: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_table, "MAX_LOCKS", 10)
    taken = 0
    while not (number := errno_of(share.fs.setlk, *file, A, Lock(WRITE, 2 * taken, 2 * taken, 1))):
        taken += 1
        assert taken <= 10
    assert number == errno.ENOLCK
    share.fs.setlk(*file, A, Lock(NONE, 0, 8, 1))
    share.fs.setlk(*file, A, Lock(WRITE, 0, 0, 1))


LOCKS = st.builds(
    lambda kind, start, length: Lock(kind, start, start + length, 5),
    st.sampled_from([READ, WRITE, NONE]),
    st.integers(0, 12),
    st.integers(0, 8),
)


@settings(max_examples=150)
@given(steps=st.lists(st.tuples(st.sampled_from([A, B]), LOCKS), max_size=25))
def test_table_has_the_locks_of_the_kernel(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, Lock]]
) -> None:
    path = tmp_path_factory.mktemp("model") / "file"
    path.write_bytes(bytes(40))
    share = SharedDirectory(path.parent)
    try:
        file = share.open("file")
        for owner, lock in steps:
            with contextlib.suppress(BlockingIOError):
                share.fs.setlk(*file, owner, lock)
        with path.open("r+b") as stranger:
            for at in range(25):
                asked = FLOCK.pack(WRITE, os.SEEK_SET, at, 1, 0)
                kind = FLOCK.unpack(fcntl.fcntl(stranger, fcntl.F_OFD_GETLK, asked))[0]
                found = share.passthrough.share.locks.conflict(file[0], 0, Lock(WRITE, at, at, 0))
                assert (NONE if found is None else found.kind) == kind, at
    finally:
        share.close()


def test_table_counts_and_joins() -> None:
    table = LockTable(DescriptorBudget(1000))
    fds = os.pipe()
    for owner, fd in zip((A, B), fds, strict=True):
        table.open(1, owner, fd)
        table.put(1, owner, Lock(READ, 0, 9, 1), 9)
    table.put(1, A, Lock(READ, 10, 19, 1), 9)
    assert len(table) == 2
    table.put(1, A, Lock(WRITE, 5, 6, 1), 9)
    assert len(table) == 4
    table.put(1, A, whole(NONE), 9)
    assert (len(table), table.fd(1, A)) == (1, None)
    table.clear()
    assert len(table) == 0
    for fd in fds:
        assert errno_of(os.fstat, fd) == errno.EBADF


@contextlib.contextmanager
def events_of(path: Path) -> Iterator[list[int]]:
    """Yield the masks of all inotify events of a path, complete at the end of the block."""
    seen: list[int] = []
    group = Inotify()
    try:
        group.add(str(path), 0xFFF)
        yield seen
        seen += [event.mask for event in group.read(1 << 16)]
    finally:
        group.close()


@pytest.mark.parametrize(
    ("flags", "kind"), [(os.O_RDWR, WRITE), (os.O_RDONLY, READ), (os.O_WRONLY, WRITE)]
)
def test_lock_is_no_event(share: SharedDirectory, flags: int, kind: int) -> None:
    path = share.path / "file"
    path.write_bytes(bytes(100))
    nodeid, fh = share.open("file", flags)
    before = open_descriptors()
    conflicting = WRITE if kind == READ else READ
    with events_of(path) as seen:
        share.fs.setlk(nodeid, fh, A, Lock(kind, 0, 9, 1))
        with path.open("r+b" if kind == READ else "rb") as other, pytest.raises(BlockingIOError):
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, FLOCK.pack(conflicting, 0, 0, 0, 0))
        share.fs.setlk(nodeid, fh, A, whole(NONE))
        share.fs.setlk(nodeid, fh, A, Lock(kind, 0, 9, 1))
        share.fs.unlock_owner(nodeid, A)
    # Those of the file that the test has opened, and none of a lock.
    assert seen == [
        InotifyBit.OPEN,
        InotifyBit.CLOSE_WRITE if kind == READ else InotifyBit.CLOSE_NOWRITE,
    ]
    assert open_descriptors() == before
    with held_on_host(path, WRITE):
        assert errno_of(share.fs.setlk, nodeid, fh, A, Lock(kind, 0, 9, 1)) == errno.EAGAIN


def test_read_only_share_has_no_locks_to_write(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(readonly=True))
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    nodeid, fh = share.open("file", os.O_RDONLY)
    with events_of(path) as seen:
        # No correct guest asks for that with this file.
        assert errno_of(share.fs.setlk, nodeid, fh, A, whole(WRITE)) == errno.EBADF
        share.fs.setlk(nodeid, fh, A, whole(READ))
        share.fs.setlk(nodeid, fh, B, whole(READ))
    assert InotifyBit.CLOSE_WRITE not in seen
    share.close()


@pytest.mark.root
def test_sync_is_no_event(share: SharedDirectory) -> None:
    with events_of(share.path) as seen:
        assert share.fs.syncfs(ROOT)() == 0
    assert seen == []


def test_owners_through_one_open_file_keep_each_other_out(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    fs = share.fs
    fs.setlk(*file, A, Lock(WRITE, 0, 9, 1))
    assert errno_of(fs.setlk, *file, B, Lock(WRITE, 5, 14, 2)) == errno.EAGAIN
    fs.setlk(*file, B, Lock(WRITE, 10, 14, 2))
    fs.unlock_owner(file[0], A)
    fs.setlk(*file, B, Lock(WRITE, 0, 9, 2))
    assert errno_of(fs.setlk, *file, A, Lock(READ, 12, 12, 1)) == errno.EAGAIN
    fs.unlock_owner(file[0], B)
    with held_on_host(share.path / "file", WRITE):
        pass


def test_owner_that_locked_to_read_locks_to_write_through_another_open_file(
    share: SharedDirectory,
) -> None:
    path = share.path / "file"
    path.write_bytes(bytes(100))
    nodeid, reading = share.open("file", os.O_RDONLY)
    writing = share.fs.open(nodeid, os.O_RDWR, False).fh
    fs = share.fs
    fs.setlk(nodeid, reading, A, Lock(READ, 0, 19, 1))
    fs.setlk(nodeid, writing, A, Lock(WRITE, 10, 29, 1))
    assert fs.getlk(nodeid, writing, B, Lock(WRITE, 0, 5, 2)) == Lock(READ, 0, 9, 1)
    with path.open("r+b") as other:
        for kind, start in ((WRITE, 0), (READ, 12), (READ, 25)):
            with pytest.raises(BlockingIOError):
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, FLOCK.pack(kind, 0, start, 1, 0))
    fs.release(nodeid, reading)
    with held_on_host(path, WRITE):
        pass
    fs.release(nodeid, writing)


def test_refused_lock_through_another_open_file_leaves_nothing_of_that_file(
    share: SharedDirectory, file: tuple[int, int]
) -> None:
    nodeid, writing = file
    reading = share.fs.open(nodeid, os.O_RDONLY, False).fh
    with held_on_host(share.path / "file", READ):
        share.fs.setlk(nodeid, reading, A, whole(READ))
        assert errno_of(share.fs.setlk, nodeid, writing, A, whole(WRITE)) == errno.EAGAIN
        # The guest need not send FLUSH.
        share.fs.release(nodeid, writing)
        assert share.passthrough.share.locks.owners() == []
        share.fs.release(nodeid, reading)
    share.fs.reset()
