# SPDX-License-Identifier: Apache-2.0
"""States that no daemon has made: a front-end must get nothing by one that a guest cannot get."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatchd.linux import file_handles
from farwatchd.linux.file_handles import HandleReader, handle_of, key_of, mount_of
from farwatchd.migration.options import MigrationMode
from farwatchd.passthrough.options import ShareOptions
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.journal import HandleInodeState
from farwatchd.wire.state import NONE, OpenFileState
from tests.support.fuse_client import Client
from tests.support.kernel_features import kernel_knows_paths
from tests.support.migration_side import MigrationSide

pytestmark = pytest.mark.root

BY_HANDLE = MigrationMode.FILE_HANDLES
NODEID, FH = 77, 88


class Destination:
    """What a state can be loaded into, and the records of a session in which nothing is open."""

    def __init__(self, tmp_path: Path, options: ShareOptions | None = None) -> None:
        self.share = tmp_path / "share"
        self.outside = tmp_path / "outside"
        for each in (self.share, self.outside):
            (each / "dir").mkdir(parents=True)
            (each / "dir" / "file").write_text("content")
        self._side = MigrationSide(self.share, BY_HANDLE, options)
        Client(self._side.session).init()
        self._records = self._side.records()

    def load(self, path: Path, *, kind: int | None = None, flags: int | None = None) -> Client:
        """Load a state in which NODEID is the inode at ``path``; return a client.

        ``kind``: instead of its own. ``flags``: it is open as FH with these.
        """
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self.load_fd(fd, kind=kind, flags=flags)
        finally:
            os.close(fd)

    def load_fd(self, fd: int, *, kind: int | None = None, flags: int | None = None) -> Client:
        """Do the same with the inode of a descriptor."""
        root = next(each for each in self._records if isinstance(each, HandleInodeState))
        key = key_of(mount_of(root.key), handle_of(HandleReader().read(fd)))
        kind = stat.S_IFMT(os.fstat(fd).st_mode) if kind is None else kind
        records: list[Any] = [*self._records, HandleInodeState(NODEID, kind, 1, True, key)]
        if flags is not None:
            records.append(OpenFileState(FH, NODEID, NONE, flags, False, False))
        return self._side.load(records)

    def close(self) -> None:
        self._side.close()


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    destination = Destination(tmp_path)
    yield destination
    destination.close()


@pytest.fixture(params=["any", "before 6.13"])
def knows_paths(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> bool:
    """Return whether the kernel knows that a path leads to an inode; it does not before 6.13."""
    if request.param != "any":
        monkeypatch.setattr(file_handles, "_CONNECTABLE", 1 << 24)
    return kernel_knows_paths(tmp_path)


def error_of(call: Callable[[], object]) -> int | None:
    """Return the errno with which a call fails; None if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def uses(client: Client, fh: int | None = None) -> dict[str, Callable[[], object]]:
    """Return what a guest does with NODEID, and with FH."""
    getattr_in = fuse.getattr_in.pack()
    made = fuse.mkdir_in.pack(mode=0o755) + b"made\0"
    read = fuse.read_in.pack(fh=FH, size=100)
    write = fuse.write_in.pack(fh=FH, size=4) + b"BAD!"
    by_inode: dict[str, Callable[[], object]] = {
        "getattr": lambda: client.call(Opcode.GETATTR, NODEID, getattr_in),
        "open": lambda: client.call(Opcode.OPEN, NODEID, fuse.open_in.pack(flags=os.O_RDWR)),
        "lookup": lambda: client.lookup(NODEID, b"file"),
        "mkdir": lambda: client.call(Opcode.MKDIR, NODEID, made),
        "readlink": lambda: client.call(Opcode.READLINK, NODEID),
    }
    by_file: dict[str, Callable[[], object]] = {
        "read": lambda: client.call(Opcode.READ, NODEID, read),
        "write": lambda: client.call(Opcode.WRITE, NODEID, write),
    }
    return by_inode if fh is None else by_file


@pytest.mark.parametrize("name", [".", "dir", "dir/file"])
def test_inode_outside_of_the_share_is_stale(
    destination: Destination, knows_paths: bool, name: str
) -> None:
    client = destination.load(destination.outside / name)
    for use in uses(client).values():
        assert error_of(use) == errno.ESTALE
    assert not (destination.outside / "dir" / "made").exists()


def test_open_file_outside_of_the_share_is_lost(
    destination: Destination, knows_paths: bool
) -> None:
    client = destination.load(destination.outside / "dir" / "file", flags=os.O_RDWR)
    for use in uses(client, FH).values():
        assert error_of(use) == errno.EIO
    assert (destination.outside / "dir" / "file").read_text() == "content"


def test_deleted_file_outside_of_the_share_is_lost(
    destination: Destination, knows_paths: bool
) -> None:
    path = destination.outside / "dir" / "file"
    with path.open("rb") as file:
        path.unlink()
        client = destination.load_fd(file.fileno(), flags=os.O_RDWR)
        for use in uses(client, FH).values():
            assert error_of(use) == errno.EIO


@pytest.mark.parametrize("name", ["dir", "dir/file"])
def test_inode_in_the_share_is_found_by_its_handle(
    destination: Destination, knows_paths: bool, name: str
) -> None:
    client = destination.load(destination.share / name)
    found = fuse.attr_out.unpack_from(client.call(Opcode.GETATTR, NODEID, fuse.getattr_in.pack()))
    assert found.attr_ino == (destination.share / name).stat().st_ino


def test_deleted_file_of_the_share_is_found_where_the_kernel_knows_its_place(
    destination: Destination, knows_paths: bool
) -> None:
    path = destination.share / "dir" / "file"
    with path.open("rb") as file:
        path.unlink()
        client = destination.load_fd(file.fileno(), flags=os.O_RDWR)
        error = error_of(uses(client, FH)["read"])
        assert error == (None if knows_paths else errno.EIO)


def test_what_is_no_file_is_not_opened(destination: Destination) -> None:
    fifo = destination.share / "fifo"
    os.mkfifo(fifo)
    opened = threading.Event()

    def load(kind: int) -> None:
        client = destination.load(fifo, kind=kind, flags=os.O_RDONLY)
        assert error_of(uses(client, FH)["read"]) == errno.EIO
        assert error_of(uses(client)["open"]) in (errno.ESTALE, errno.ENXIO)
        opened.set()

    for kind in (stat.S_IFIFO, stat.S_IFREG):
        opened.clear()
        thread = threading.Thread(target=load, args=(kind,), daemon=True)
        thread.start()
        ended = opened.wait(5)
        # What waits for a writer gets one.
        os.close(os.open(fifo, os.O_RDWR))
        thread.join(5)
        assert ended, "the daemon waits for a FIFO"


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_CREAT | os.O_TRUNC | os.O_RDWR])
def test_flags_that_no_open_file_has_are_not_used(destination: Destination, flags: int) -> None:
    client = destination.load(destination.share / "dir" / "file", flags=flags)
    assert client.call(Opcode.READ, NODEID, fuse.read_in.pack(fh=FH, size=100)) == b"content"


def test_open_file_of_a_readonly_share_cannot_be_written(tmp_path: Path) -> None:
    destination = Destination(tmp_path, ShareOptions(readonly=True))
    client = destination.load(destination.share / "dir" / "file", flags=os.O_RDWR)
    assert error_of(uses(client, FH)["write"]) == errno.EIO
    assert (destination.share / "dir" / "file").read_text() == "content"
    destination.close()
