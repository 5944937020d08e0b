# SPDX-License-Identifier: Apache-2.0
"""What the FUSE session asks of a file system: one method an operation, no wire formats.

Every method may raise ``OSError``; its ``errno`` is what the guest gets. Names are bytes, checked
by the session: 1..255 bytes, no '/', no NUL, not '.' or '..'.

What is made for every request is a named tuple: that takes half the time of a frozen dataclass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

#: The root's nodeid (``FUSE_ROOT_ID``).
ROOT = 1

#: What is left to do of an operation and may take long; to be called once, in any thread, while
#: other operations are done. It may raise ``OSError``. What else an operation refuses, it refuses
#: before.
Job = Callable[[], int]


class Caller(NamedTuple):
    """Who asks, in the guest's ids.

    ``group``: a supplementary group to create with (FUSE_CREATE_SUPP_GROUP), or -1. ``labels``:
    extended attributes that a new inode must have (FUSE_SECURITY_CTX), names and values.
    """

    uid: int
    gid: int
    pid: int
    group: int = -1
    labels: tuple[tuple[bytes, bytes], ...] = ()


class Entry(NamedTuple):
    """A looked-up name: each one returned counts as one lookup until FORGET. ``submount``: a mount
    point."""

    nodeid: int
    generation: int
    stat: os.stat_result
    submount: bool = False


class Opened(NamedTuple):
    """An open file or directory: ``flags`` are FOPEN_*."""

    fh: int
    flags: int


@dataclass(frozen=True, slots=True)
class Changes:
    """SETATTR: None is unchanged. Times are nanoseconds since the epoch, or ``NOW``."""

    NOW = 1 << 100

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    fh: int | None = None
    kill_suidgid: bool = False


class Lock(NamedTuple):
    """A lock of the bytes from ``start`` to ``end``, both included; ``kind`` is F_RDLCK, F_WRLCK or
    F_UNLCK."""

    kind: int
    start: int
    end: int
    pid: int


class DirEntry(NamedTuple):
    """One directory entry; ``offset`` is where reading goes on after it (d_off), ``kind`` is
    DT_*."""

    name: bytes
    ino: int
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Statx:
    """What statx(2) gives beyond stat: birth time in ns (None if unknown), attributes and their
    mask, mount id."""

    stat: os.stat_result
    btime_ns: int | None
    file_attributes: int
    file_attributes_mask: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What the watch table needs of an inode: ``fd`` is O_PATH and stays the file system's."""

    generation: int
    fd: int
    is_dir: bool


class FileSystem(Protocol):
    """The operations, named as in FUSE."""

    @property
    def valid(self) -> float:
        """How long the guest may keep names and attributes, in seconds; always the same."""
        ...

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """None where there is no such name, as mostly: that is cheaper than
        ``FileNotFoundError``."""
        ...

    def forget(self, nodeid: int, nlookup: int) -> bool:
        """Take back lookups; True if the inode is gone now. Never raises: unknown nodeids are
        ignored."""
        ...

    def watched(self, nodeid: int) -> Watched: ...
    def getattr(self, nodeid: int, fh: int | None) -> os.stat_result: ...
    def statx(self, nodeid: int, fh: int | None) -> Statx: ...
    def setattr(self, nodeid: int, changes: Changes) -> os.stat_result: ...
    def readlink(self, nodeid: int) -> bytes: ...
    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Entry: ...
    def mknod(
        self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int, umask: int
    ) -> Entry: ...
    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int, umask: int) -> Entry: ...
    def unlink(self, parent: int, name: bytes) -> None: ...
    def rmdir(self, parent: int, name: bytes) -> None: ...
    def rename(
        self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None: ...
    def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry: ...
    def open(self, nodeid: int, flags: int, kill_suidgid: bool) -> Opened: ...
    def create(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        mode: int,
        flags: int,
        umask: int,
        kill_suidgid: bool,
    ) -> tuple[Entry, Opened]: ...
    def tmpfile(
        self, caller: Caller, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[Entry, Opened]: ...
    def read(
        self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview], size: int
    ) -> int | Job:
        """Fill ``views``, of ``size`` bytes, with one preadv(2), straight into guest memory; gives
        bytes read."""
        ...

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        views: Sequence[memoryview],
        kill_suidgid: bool,
        cached: bool,
    ) -> int | Job:
        """Write ``views``, straight from guest memory; gives bytes written.

        ``cached``: from the guest's page cache, so that ``fh`` is any handle of the file that can
        be written.
        """
        ...

    def flush(self, nodeid: int, fh: int) -> None: ...
    def getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None: ...
    def setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        """Take or give back at once; ``BlockingIOError`` where it would have to wait."""
        ...

    def flock(self, nodeid: int, fh: int, kind: int) -> None:
        """Take or give back at once; ``BlockingIOError`` where it would have to wait."""
        ...

    def unlock_owner(self, nodeid: int, owner: int) -> None: ...
    def release(self, nodeid: int, fh: int) -> None: ...
    def fsync(self, nodeid: int, fh: int, datasync: bool) -> Job: ...
    def fallocate(
        self, nodeid: int, fh: int, mode: int, offset: int, length: int, kill_suidgid: bool
    ) -> Job: ...
    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int: ...
    def copy_file_range(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        kill_suidgid: bool,
    ) -> Job:
        """Gives bytes copied."""
        ...

    def opendir(self, nodeid: int, flags: int) -> Opened: ...
    def readdir(self, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        """The entries from ``offset`` on, '.' and '..' included; the session takes as many as
        fit."""
        ...

    def releasedir(self, nodeid: int, fh: int) -> None: ...
    def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> Job: ...
    def statfs(self, nodeid: int) -> os.statvfs_result: ...
    def syncfs(self, nodeid: int) -> Job: ...
    def agree(self, *, posix_acls: bool, writeback: bool) -> None:
        """Take note of what INIT agreed on: FUSE_POSIX_ACL, FUSE_WRITEBACK_CACHE."""
        ...

    def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool
    ) -> None: ...
    def getxattr(self, nodeid: int, name: bytes) -> bytes: ...
    def listxattr(self, nodeid: int) -> Iterable[bytes]: ...
    def removexattr(self, nodeid: int, name: bytes) -> None: ...
    def reset(self) -> None:
        """Forget all inodes but the root and close all handles: the guest is gone."""
        ...
