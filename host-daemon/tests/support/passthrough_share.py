# SPDX-License-Identifier: Apache-2.0
"""A shared directory with its file system, and helpers to call both."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from farwatchd.fuse.filesystem import (
    ROOT,
    Entry,
    FileSystem,
    OpenResult,
    OperationDeferred,
    Requester,
)
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs

DAEMON = Requester(os.geteuid(), os.getegid(), 1)
USER = Requester(1000, 1001, 1)
IS_ROOT = os.geteuid() == 0


def errno_of(operation: Callable[..., Any], *arguments: Any) -> int:
    """Return the errno of an operation, or of its task; 0 if it succeeds."""
    try:
        done(settled(operation, *arguments))
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


def done(result: Any, *data: Any) -> Any:
    """Return the result of an operation; run its task here, with ``data``."""
    return result(*data) if callable(result) else result


def settled(operation: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of an operation; if it is deferred, run its task here."""

    def perform() -> Any:
        return operation(*arguments)

    while True:
        try:
            return perform()
        except OperationDeferred as deferred:
            perform = partial(_complete, deferred)


def _complete(deferred: OperationDeferred) -> Any:
    return deferred.complete(deferred.task())


def names_in(path: Path) -> set[bytes]:
    """Return the names in a directory."""
    return {os.fsencode(child.name) for child in path.iterdir()}


def open_descriptors() -> int:
    """How many descriptors the process has.

    May become fewer at any time: what an earlier test left in a cycle is collected then.
    """
    return len(names_in(Path("/proc/self/fd")))


def identity() -> list[str]:
    """Ids, groups and capabilities of the process."""
    kept = ("Uid:", "Gid:", "Groups:", "Cap")
    return [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kept)
    ]


class SharedDirectory:
    """A directory ``path`` and the file system ``fs`` over it.

    By default inodes are referenced by handle where that works, with few open descriptors.
    """

    def __init__(
        self,
        path: Path,
        options: ShareOptions | None = None,
        keep: InodeFileHandles = InodeFileHandles.PREFER,
        most_open: int = 4,
    ) -> None:
        self.path = path
        self.store = InodeStore(keep, most_open)
        self.passthrough = PassthroughFs(path, options or ShareOptions(xattr=True), self.store)
        self.fs: FileSystem = self.passthrough

    def close(self) -> None:
        self.passthrough.close()

    def lookup(self, path: str) -> int:
        """Return the nodeid of a path in the share."""
        nodeid = ROOT
        for name in Path(path).parts:
            nodeid = self.find(nodeid, os.fsencode(name)).nodeid
        return nodeid

    def find(self, parent: int, name: bytes) -> Entry:
        """Look up a name; ``FileNotFoundError``."""
        entry: Entry | None = settled(self.fs.lookup, parent, name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return entry

    def create(
        self,
        name: bytes,
        mode: int = 0o644,
        flags: int = os.O_RDWR,
        umask: int = 0,
        requester: Requester = DAEMON,
    ) -> tuple[Entry, OpenResult]:
        return self.fs.create(requester, ROOT, name, mode, flags, umask, False)

    def open(
        self, path: str, flags: int = os.O_RDWR, kill_suidgid: bool = False
    ) -> tuple[int, int]:
        """Open a file; return its nodeid and handle."""
        nodeid = self.lookup(path)
        return nodeid, self.fs.open(nodeid, flags, kill_suidgid).fh

    def open_made(self, path: str, flags: int = os.O_RDWR) -> tuple[int, int]:
        """Create a file on the host and open it; return its nodeid and handle."""
        (self.path / path).touch()
        return self.open(path, flags)

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        *data: bytes,
        kill_suidgid: bool = False,
        cached: bool = False,
    ) -> int:
        views = [memoryview(part) for part in data]
        return int(done(self.fs.write(nodeid, fh, offset, views, kill_suidgid, cached), views))

    def read(self, nodeid: int, fh: int, offset: int, *sizes: int) -> bytes:
        buffers = [bytearray(size) for size in sizes]
        views = [memoryview(buffer) for buffer in buffers]
        size = int(done(self.fs.read(nodeid, fh, offset, views, sum(map(len, buffers))), views))
        return b"".join(buffers)[:size]
