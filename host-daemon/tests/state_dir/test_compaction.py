# SPDX-License-Identifier: Apache-2.0
"""A journal that is compacted while requests change the state has all of it at each moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from farwatchd.fuse.filesystem import ROOT, Lock
from farwatchd.fuse.session import Session, SessionOptions
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.state_dir import journal_writer
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.in_flight import InFlight
from farwatchd.state_dir.journal_files import JournalFiles
from farwatchd.state_dir.journal_writer import Journal
from farwatchd.wire.journal import PathInodeState, decode
from tests.support.passthrough_share import SharedDirectory

BOOT = bytes(16)
STEPS = 1500


class JournaledShare:
    """Changes the state of a share at random, and commits each change."""

    def __init__(self, directory: Path, keep: InodeFileHandles, random: Random) -> None:
        self.by_path = keep is InodeFileHandles.NEVER
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.share = SharedDirectory(self.shared, keep=keep)
        self.fs = self.share.passthrough
        self.queue: deque[Callable[[], None]] = deque()
        self.paths = [directory / "0", directory / "1"]
        self.table = directory / "in-flight"
        in_flight = InFlight(os.open(self.table, os.O_RDWR | os.O_CREAT, 0o600))
        session = Session(self.fs, None, SessionOptions())
        self.journal = Journal(
            self._files(), in_flight, self.fs.share, session, b"options", self.queue.append
        )
        self.journal.start()
        self.random = random
        self.names: list[bytes] = []
        self.open: list[tuple[int, int]] = []
        self.counts: dict[int, int] = {}
        self.steps = 0

    def _files(self) -> JournalFiles:
        first, second = (os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for path in self.paths)
        return JournalFiles((first, second), BOOT)

    def step(self) -> None:
        """Perform one operation."""
        self.steps += 1
        operation = self.random.choice(
            [self._create]
            + [self._lookup] * 3 * bool(self.names)
            + [self._rename] * self.by_path * bool(self.names)
            + [self._forget] * 2 * bool(self.counts)
            + [self._release, self._lock, self._flock] * bool(self.open)
        )
        operation()
        self.random.choice(
            [
                self.journal.commit,
                self.journal.commit_file,
                self.journal.commit_lookup,
                self.journal.commit_created,
            ]
        )(self.steps)

    def _create(self) -> None:
        name = b"file %d" % self.steps
        entry, opened = self.share.create(name)
        self.names.append(name)
        self.counts[entry.nodeid] = 1
        self.open.append((entry.nodeid, opened.fh))

    def _lookup(self) -> None:
        nodeid = self.share.find(ROOT, self.random.choice(self.names)).nodeid
        self.counts[nodeid] = self.counts.get(nodeid, 0) + 1

    def _forget(self) -> None:
        nodeid = self.random.choice(sorted(self.counts))
        if any(of == nodeid for of, _ in self.open):
            return
        self.fs.forget(nodeid, self.counts.pop(nodeid))

    def _rename(self) -> None:
        number = self.random.randrange(len(self.names))
        old, new = self.names[number], b"name %d" % self.steps
        self.names[number] = new
        self.fs.rename(ROOT, old, ROOT, new, 0)
        self.journal.changes.renames.append((old, new, False))

    def _release(self) -> None:
        nodeid, fh = self.open.pop(self.random.randrange(len(self.open)))
        self.fs.release(nodeid, fh)

    def _lock(self) -> None:
        nodeid, fh = self.random.choice(self.open)
        kind = self.random.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
        start = self.random.randrange(50)
        # Another owner may have it.
        with contextlib.suppress(BlockingIOError):
            self.fs.setlk(nodeid, fh, self.random.randrange(3), Lock(kind, start, start + 20, 1))

    def _flock(self) -> None:
        nodeid, fh = self.random.choice(self.open)
        self.fs.flock(nodeid, fh, self.random.choice([fcntl.F_WRLCK, fcntl.F_UNLCK]))

    def check(self) -> None:
        """Compare the journal with the share's tables."""
        files = self._files()
        contents = Contents()
        try:
            contents.apply(decode(memoryview(files.load())))
        finally:
            for fd in files.fds:
                os.close(fd)
        share = self.fs.share
        inodes = {inode.nodeid: inode for inode in share.inodes.all()}
        assert contents.inodes.keys() == inodes.keys()
        for nodeid, inode in inodes.items():
            found = contents.inodes[nodeid]
            assert (found.lookups, found.kind) == (inode.lookups, inode.kind)
            if isinstance(found, PathInodeState):
                assert found.path == (self.journal.places.path(inode.fd) or b"")
            else:
                assert found.key == inode.host_inode.key
                assert inode.host_inode.mount_id in contents.mounts
        assert {fh: each.nodeid for fh, each in contents.files.items()} == {
            fh: each.nodeid for fh, each in share.open_files.all()
        }
        assert contents.flocks.keys() <= contents.files.keys()
        assert {key: each.handles for key, each in contents.owners.items() if each.locks} == {
            key: sorted(share.locks.of_owner(*key)[1]) for key in share.locks.owners()
        }
        for key in share.locks.owners():
            locks = [tuple(each)[2:] for each in contents.owners[key].locks]
            assert locks == [tuple(lock) for lock in share.locks.of_owner(*key)[0]]
        assert contents.next_nodeid >= share.inodes.next_nodeid - 1


@pytest.fixture(params=[InodeFileHandles.PREFER, InodeFileHandles.NEVER])
def guest(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[JournaledShare]:
    """Yield a guest of a share whose inodes are found in each way."""
    monkeypatch.setattr(journal_writer, "_COMPACT_FROM", 500)
    monkeypatch.setattr(journal_writer, "_COMPACT_TIMES", 1)
    monkeypatch.setattr(journal_writer, "_BATCH", 2)
    monkeypatch.setattr(journal_writer, "_LAST", 3)
    seed = int(os.environ.get("FARWATCH_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    guest = JournaledShare(tmp_path, request.param, Random(seed))
    yield guest
    guest.share.close()


def test_journal_has_all_of_the_state(guest: JournaledShare) -> None:
    generations = set()
    for _ in range(STEPS):
        guest.step()
        while guest.queue and guest.random.randrange(3):
            guest.queue.popleft()()
        if not guest.random.randrange(10):
            guest.check()
        generations.add(tuple(path.stat().st_size > 0 for path in guest.paths))
    guest.check()
    # One file, the other one, and both meanwhile.
    assert len(generations) == 3


def test_session_that_ends_ends_the_compaction(guest: JournaledShare) -> None:
    while not guest.queue:
        guest.step()
    guest.queue.popleft()()
    guest.fs.reset()
    guest.journal.reset()
    while guest.queue:
        guest.queue.popleft()()
    guest.check()


@pytest.mark.root
def test_mount_that_is_released_is_written_again(tmp_path: Path) -> None:
    guest = JournaledShare(tmp_path, InodeFileHandles.PREFER, Random(1))
    (guest.shared / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", guest.shared / "mounted"], check=True)
    try:
        (guest.shared / "mounted/file").touch()
        turns: list[Callable[[], None]] = []
        guest.share.store.use_loop(lambda _seconds, _call: None, turns.append)
        nodeid = guest.share.lookup("mounted/file")
        guest.journal.commit(1)
        while turns:
            turns.pop()()
        inode = guest.fs.share.inodes.known(nodeid)
        assert inode is not None and inode.host_inode.mount is not None
        assert inode.host_inode.mount.fd < 0
        guest.journal.start()
        guest.check()
        guest.share.close()
    finally:
        subprocess.run(["umount", guest.shared / "mounted"], check=True)
