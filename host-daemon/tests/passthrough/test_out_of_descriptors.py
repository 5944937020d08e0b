# SPDX-License-Identifier: Apache-2.0
"""Each operation with each number of free descriptors: it is done right, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes, Lock
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from tests.support.passthrough_share import DAEMON, done, open_descriptors, settled

#: Free descriptors to try: no operation needs as many.
MOST_FREE = 30
#: Errors that say that there is no descriptor left.
REFUSALS = {errno.ENFILE}
ALL = Changes(mode=0o600, size=3, atime_ns=1, mtime_ns=2)


class PairedDirectories:
    """Two directories with equal names, which a mix-up of descriptors would confuse."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for directory in ("a", "b"):
            (path / directory / "empty").mkdir(parents=True)
            for name in ("x", "y"):
                (path / directory / name).write_text(f"{directory}/{name}")
            os.setxattr(path / directory / "x", "user.there", b"value")
            (path / directory / "link").symlink_to(f"{directory}-target")
        store = InodeStore(InodeFileHandles.PREFER, most_open=8)
        self.fs = PassthroughFs(path, ShareOptions(xattr=True), store)
        self.a, self.b = (self.find(ROOT, name) for name in (b"a", b"b"))
        self.ax, self.bx = (self.find(parent, b"x") for parent in (self.a, self.b))
        self.link = self.find(self.a, b"link")

    def find(self, parent: int, name: bytes) -> int:
        entry = self.fs.lookup(parent, name)
        assert entry
        return entry.nodeid

    def tree(self) -> dict[str, object]:
        """Names, contents, targets, modes, attributes and link counts."""
        found: dict[str, object] = {}
        for path in sorted(self.path.rglob("*")):
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
                content = (path.read_bytes(), attributes, status.st_mtime_ns == 2)
            elif stat.S_ISLNK(status.st_mode):
                content = path.readlink()
            found[str(path.relative_to(self.path))] = (status.st_mode, status.st_nlink, content)
        return found


def written(share: PairedDirectories) -> object:
    opened = share.fs.open(share.ax, os.O_RDWR, False)
    try:
        views = [memoryview(b"W")]
        return done(share.fs.write(share.ax, opened.fh, 0, views, False, False), views)
    finally:
        share.fs.release(share.ax, opened.fh)


def listed(share: PairedDirectories) -> object:
    opened = share.fs.opendir(share.a, os.O_RDONLY)
    share.fs.releasedir(share.a, opened.fh)
    return None


def copied(share: PairedDirectories) -> object:
    source = share.fs.open(share.ax, os.O_RDONLY, False)
    try:
        target = share.fs.open(share.bx, os.O_WRONLY, False)
        try:
            return done(
                share.fs.copy_file_range(share.ax, source.fh, 0, share.bx, target.fh, 1, 2, False)
            )
        finally:
            share.fs.release(share.bx, target.fh)
    finally:
        share.fs.release(share.ax, source.fh)


def allocated(share: PairedDirectories) -> object:
    opened = share.fs.open(share.bx, os.O_RDWR, False)
    try:
        return done(share.fs.fallocate(share.bx, opened.fh, 0, 0, 10, False))
    finally:
        share.fs.release(share.bx, opened.fh)


def locked(share: PairedDirectories) -> object:
    """Have two owners lock through one open file, and a process of the guest close it."""
    opened = share.fs.open(share.bx, os.O_RDWR, False)
    try:
        for owner in (1, 2):
            share.fs.setlk(share.bx, opened.fh, owner, Lock(fcntl.F_RDLCK, 0, 9, owner))
        share.fs.flush(share.bx, opened.fh)
    finally:
        share.fs.release(share.bx, opened.fh)
    return None


def unnamed(share: PairedDirectories) -> object:
    """Make a file without a name; link() gives it one."""
    entry, opened = share.fs.tmpfile(DAEMON, share.a, 0o644, os.O_RDWR, 0)
    share.fs.release(entry.nodeid, opened.fh)
    return None


OPERATIONS: dict[str, Callable[[PairedDirectories], object]] = {
    "lookup": lambda share: share.fs.lookup(share.b, b"y"),
    "rename": lambda share: share.fs.rename(share.a, b"x", share.b, b"moved", 0),
    "rename over": lambda share: share.fs.rename(share.b, b"x", share.a, b"x", 0),
    "exchange": lambda share: share.fs.rename(share.a, b"y", share.b, b"empty", 2),
    "link": lambda share: share.fs.link(share.ax, share.b, b"linked"),
    "link a symlink": lambda share: share.fs.link(share.link, share.b, b"linked"),
    "unlink": lambda share: share.fs.unlink(share.a, b"x"),
    "rmdir": lambda share: share.fs.rmdir(share.b, b"empty"),
    "mkdir": lambda share: share.fs.mkdir(DAEMON, share.b, b"made", 0o755, 0),
    "mknod": lambda share: share.fs.mknod(DAEMON, share.a, b"made", stat.S_IFIFO | 0o644, 0, 0),
    "symlink": lambda share: share.fs.symlink(DAEMON, share.b, b"made", b"target"),
    "create": lambda share: share.fs.create(DAEMON, share.a, b"made", 0o644, os.O_RDWR, 0, False),
    "create there": lambda share: share.fs.create(
        DAEMON, share.b, b"x", 0o644, os.O_RDWR, 0, False
    ),
    "setattr": lambda share: settled(share.fs.setattr, share.ax, ALL),
    "setxattr": lambda share: share.fs.setxattr(share.bx, b"user.a", b"v", 0, False),
    "removexattr": lambda share: share.fs.removexattr(share.ax, b"user.there"),
    "getxattr": lambda share: share.fs.getxattr(share.ax, b"user.there"),
    "listxattr": lambda share: share.fs.listxattr(share.ax),
    "getattr": lambda share: share.fs.getattr(share.bx, None),
    "statx": lambda share: share.fs.statx(share.bx, None),
    "syncfs": lambda share: done(share.fs.syncfs(share.a)),
    "tmpfile": unnamed,
    "copy": copied,
    "allocate": allocated,
    "lock": locked,
    "write": written,
    "list": listed,
    "readlink": lambda share: share.fs.readlink(share.link),
    "statfs": lambda share: share.fs.statfs(share.b),
}


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave this many numbers for descriptors."""
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    # The limit is one above the highest number: the numbers below it that are free get a filler.
    limit = max(used) + 1 + count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    while (filler := os.open("/dev/null", os.O_PATH)) < max(used):
        fillers.append(filler)
    os.close(filler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


def closed(share: PairedDirectories, keep: int) -> None:
    """Leave ``keep`` inodes with a descriptor: those that were used last."""
    store = share.fs.share.inodes._store
    while store._count_open() > keep:
        store._close_oldest()


@pytest.mark.root
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_without_descriptors_succeeds_or_is_refused(tmp_path: Path, name: str) -> None:
    expected = PairedDirectories(tmp_path / "model")
    before = expected.tree()
    OPERATIONS[name](expected)
    after = expected.tree()
    expected.fs.close()
    outcomes = set()
    for free in range(MOST_FREE + 1):
        for opened in range(4):
            share = PairedDirectories(tmp_path / f"{free}-{opened}")
            closed(share, opened)
            result: object = None
            with free_descriptors(free):
                try:
                    OPERATIONS[name](share)
                except OSError as error:
                    assert error.errno in REFUSALS, (free, opened, error)
                    result = error
            assert share.tree() == (after if result is None else before), (free, opened, result)
            outcomes.add(result is None)
            share.fs.close()
    assert True in outcomes


@pytest.mark.root
def test_nothing_is_left_open_after_a_refusal(tmp_path: Path) -> None:
    failed: list[str] = []
    for name, operation in OPERATIONS.items():
        share = PairedDirectories(tmp_path / name)
        closed(share, 0)
        before = open_descriptors()
        with free_descriptors(1):
            try:
                operation(share)
            except OSError:
                failed.append(name)
        if name in failed:
            # At most the inodes in use are open, which were closed before.
            assert open_descriptors() <= before + 4, name
        share.fs.close()
    assert failed
