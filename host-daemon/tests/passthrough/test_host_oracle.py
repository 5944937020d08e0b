# SPDX-License-Identifier: Apache-2.0
"""Random operations through the passthrough file system, and on a directory of the host.

Both have the same results.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farwatchd.fuse.filesystem import ROOT, Changes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.passthrough_share import DAEMON, SharedDirectory, errno_of, settled

NAMES = st.sampled_from([b"a", b"b", b"\xff"])
PLACES = st.sampled_from(["", "a", "b"])
STEPS = st.one_of(
    st.tuples(st.just("mkdir"), PLACES, NAMES),
    st.tuples(st.just("rmdir"), PLACES, NAMES),
    st.tuples(st.just("create"), PLACES, NAMES),
    st.tuples(st.just("symlink"), PLACES, NAMES),
    st.tuples(st.just("unlink"), PLACES, NAMES),
    st.tuples(st.just("rename"), PLACES, NAMES, PLACES, NAMES),
    st.tuples(st.just("link"), PLACES, NAMES, PLACES, NAMES),
    st.tuples(st.just("chmod"), PLACES, NAMES),
    st.tuples(st.just("truncate"), PLACES, NAMES),
)


class HostOperations:
    """The operations on a plain directory.

    Symbolic links are not followed, as the guest's kernel resolves them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, place: str, name: bytes) -> Path:
        directory = self._root / place
        # Immediately, as a path is resolved before the next one.
        if not stat.S_ISDIR(directory.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return directory / os.fsdecode(name)

    def mkdir(self, place: str, name: bytes) -> None:
        self._path(place, name).mkdir(0o755)

    def rmdir(self, place: str, name: bytes) -> None:
        self._path(place, name).rmdir()

    def create(self, place: str, name: bytes) -> None:
        os.close(os.open(self._path(place, name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644))

    def symlink(self, place: str, name: bytes) -> None:
        self._path(place, name).symlink_to("a")

    def unlink(self, place: str, name: bytes) -> None:
        self._path(place, name).unlink()

    def rename(self, place: str, name: bytes, newplace: str, newname: bytes) -> None:
        self._path(place, name).rename(self._path(newplace, newname))

    def link(self, place: str, name: bytes, newplace: str, newname: bytes) -> None:
        source = self._path(place, name)
        source.lstat()
        os.link(source, self._path(newplace, newname), follow_symlinks=False)

    def chmod(self, place: str, name: bytes) -> None:
        path = self._path(place, name)
        if not stat.S_ISLNK(path.lstat().st_mode):
            path.chmod(0o710)

    def truncate(self, place: str, name: bytes) -> None:
        path = self._path(place, name)
        if not stat.S_ISLNK(path.lstat().st_mode):
            os.truncate(path, 3)


class GuestOperations:
    """The same operations through the file system, with a lookup of each name first."""

    def __init__(self, root: Path) -> None:
        self.share = SharedDirectory(root)
        self._fs = self.share.fs

    def _at(self, place: str) -> int:
        return self.share.lookup(place)

    def _directory(self, place: str) -> int:
        """Look up a directory as a guest's kernel resolves a path.

        Another file type is refused before the next path is resolved.
        """
        nodeid = self._at(place)
        if not stat.S_ISDIR(self._fs.getattr(nodeid, None).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return nodeid

    def _inode(self, place: str, name: bytes) -> tuple[int, bool]:
        entry = self.share.find(self._at(place), name)
        return entry.nodeid, stat.S_ISLNK(entry.stat.st_mode)

    def mkdir(self, place: str, name: bytes) -> None:
        self._fs.mkdir(DAEMON, self._at(place), name, 0o755, 0)

    def rmdir(self, place: str, name: bytes) -> None:
        self._fs.rmdir(self._at(place), name)

    def create(self, place: str, name: bytes) -> None:
        entry, opened = self._fs.create(DAEMON, self._at(place), name, 0o644, os.O_RDWR, 0, False)
        self._fs.release(entry.nodeid, opened.fh)

    def symlink(self, place: str, name: bytes) -> None:
        self._fs.symlink(DAEMON, self._at(place), name, b"a")

    def unlink(self, place: str, name: bytes) -> None:
        self._fs.unlink(self._at(place), name)

    def rename(self, place: str, name: bytes, newplace: str, newname: bytes) -> None:
        source, target = self._directory(place), self._directory(newplace)
        self._fs.rename(source, name, target, newname, 0)

    def link(self, place: str, name: bytes, newplace: str, newname: bytes) -> None:
        nodeid, _ = self._inode(place, name)
        self._fs.link(nodeid, self._at(newplace), newname)

    def chmod(self, place: str, name: bytes) -> None:
        nodeid, is_link = self._inode(place, name)
        if not is_link:
            self._fs.setattr(nodeid, Changes(mode=0o710))

    def truncate(self, place: str, name: bytes) -> None:
        nodeid, is_link = self._inode(place, name)
        if not is_link:
            settled(self._fs.setattr, nodeid, Changes(size=3))

    def same_as(self, root: Path) -> bool:
        """Whether each name in ``root`` can be looked up and has the inode that the host shows."""
        return all(
            self._fs.getattr(self.share.lookup(str(path.relative_to(root))), None) == path.lstat()
            for path in root.rglob("*")
        )


def _tree(root: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_nlink,
            _size(path.lstat()),
        )
        for path in root.rglob("*")
    }


def _size(status: os.stat_result) -> int:
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_size


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=12))
@example([("symlink", "", b"a"), ("rename", "b", b"a", "a", b"a")])
def test_random_operations_end_as_on_the_host(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        ours, hosts = Path(name, "ours"), Path(name, "hosts")
        ours.mkdir()
        hosts.mkdir()
        previous = os.umask(0)
        guest, host = GuestOperations(ours), HostOperations(hosts)
        try:
            for operation, *arguments in steps:
                ask: Callable[..., Any] = getattr(guest, operation)
                expect: Callable[..., Any] = getattr(host, operation)
                assert errno_of(ask, *arguments) == errno_of(expect, *arguments), (
                    operation,
                    arguments,
                )
            assert _tree(ours) == _tree(hosts)
            assert guest.same_as(ours)
            assert guest.share.lookup("") == ROOT
        finally:
            guest.share.close()
            os.umask(previous)
