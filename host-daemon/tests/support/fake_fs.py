# SPDX-License-Identifier: Apache-2.0
"""A file system and a watch table for tests of the session.

They record each call, and always return the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from farwatchd.fuse.filesystem import (
    Changes,
    DataTask,
    DirEntry,
    Entry,
    Lock,
    OpenResult,
    Requester,
    Statx,
    Task,
    WatchTarget,
)
from farwatchd.wire.fsnotify import Event

#: st_mode ino dev nlink uid gid size atime mtime ctime, the times as floats, as nanoseconds,
#: blksize blocks rdev.
STAT = os.stat_result(
    (
        0o100644,
        77,
        5,
        2,
        1000,
        1001,
        12345,
        1,
        -2,
        3,
        1.5,
        -1.5,
        3.0,
        1_500_000_000,
        -1_500_000_000,
        3_000_000_007,
    ),
    {"st_blksize": 4096, "st_blocks": 24, "st_rdev": 0},
)
GENERATION = 7
ENTRY = Entry(42, GENERATION, STAT, submount=True)
OPENED = OpenResult(9, 2)
TASK_LIMIT = 30.0
STATVFS = os.statvfs_result((4096, 1024, 1000, 900, 800, 70, 60, 50, 0, 255))


class FakeFs:
    """Implements ``FileSystem``.

    ``calls`` has (operation, arguments); ``error`` is raised when set. Tasks fail with
    ``task_error`` when it is set. With ``hold`` they wait for it; READ and WRITE are tasks then.
    """

    timeout = 1.25

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.task_error: Exception | None = None
        self.hold: threading.Event | None = None
        self.tasks_begun = self.tasks_done = self.tasks_done_at_reset = 0
        self.gone: set[int] = set()
        self.content = b""
        self.written = b""
        self.writes: list[bytes] = []
        self.entries: list[DirEntry] = []
        self.values: dict[bytes, bytes] = {}
        self.vanished: set[bytes] = set()
        self.lock: Lock | None = None
        self.cached: list[bool] = []
        self.unlocked: list[tuple[int, int]] = []

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def _task(self, call: Task = lambda: 0) -> Task:
        def task() -> int:
            self.tasks_begun += 1
            if self.hold is not None and not self.hold.wait(TASK_LIMIT):
                raise TimeoutError(f"a task was held for {TASK_LIMIT} s")
            if self.task_error is not None:
                raise self.task_error
            self.tasks_done += 1
            return call()

        return task

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        self._note("lookup", parent, name)
        return None if name in self.vanished else ENTRY

    def forget(self, nodeid: int, nlookup: int) -> bool:
        self.calls.append(("forget", nodeid, nlookup))
        return nodeid in self.gone

    def watch_target(self, nodeid: int, *, answering: bool = False) -> WatchTarget:
        self._note("watched", nodeid)
        return WatchTarget(GENERATION, 33, True)

    def getattr(self, nodeid: int, fh: int | None) -> os.stat_result:
        self._note("getattr", nodeid, fh)
        return STAT

    def statx(self, nodeid: int, fh: int | None) -> Statx:
        self._note("statx", nodeid, fh)
        return Statx(STAT, 4_000_000_001, 0x10, 0x30)

    def setattr(self, nodeid: int, changes: Changes) -> os.stat_result:
        self._note("setattr", nodeid, changes)
        return STAT

    def readlink(self, nodeid: int) -> bytes:
        self._note("readlink", nodeid)
        return b"target"

    def symlink(self, requester: Requester, parent: int, name: bytes, target: bytes) -> Entry:
        self._note("symlink", requester, parent, name, target)
        return ENTRY

    def mknod(
        self, requester: Requester, parent: int, name: bytes, mode: int, rdev: int, umask: int
    ) -> Entry:
        self._note("mknod", requester, parent, name, mode, rdev, umask)
        return ENTRY

    def mkdir(self, requester: Requester, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        self._note("mkdir", requester, parent, name, mode, umask)
        return ENTRY

    def unlink(self, parent: int, name: bytes) -> None:
        self._note("unlink", parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._note("rmdir", parent, name)

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        self._note("rename", parent, name, newparent, newname, flags)

    def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        self._note("link", nodeid, newparent, newname)
        return ENTRY

    def open(self, nodeid: int, flags: int, kill_suidgid: bool) -> OpenResult:
        self._note("open", nodeid, flags, kill_suidgid)
        return OPENED

    def create(
        self,
        requester: Requester,
        parent: int,
        name: bytes,
        mode: int,
        flags: int,
        umask: int,
        kill_suidgid: bool,
    ) -> tuple[Entry, OpenResult]:
        self._note("create", requester, parent, name, mode, flags, umask, kill_suidgid)
        return ENTRY, OPENED

    def tmpfile(
        self, requester: Requester, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[Entry, OpenResult]:
        self._note("tmpfile", requester, parent, mode, flags, umask)
        return ENTRY, OPENED

    def read(
        self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview], size: int
    ) -> int | DataTask:
        self._note("read", nodeid, fh, offset, size)
        if self.hold is None:
            return self._read(offset, views)
        return lambda data: self._task(lambda: self._read(offset, data))()

    def _read(self, offset: int, views: Sequence[memoryview]) -> int:
        data = self.content[offset:]
        done = 0
        for view in views:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        views: Sequence[memoryview],
        kill_suidgid: bool,
        cached: bool,
    ) -> int | DataTask:
        self.cached.append(cached)
        self._note("write", nodeid, fh, offset, kill_suidgid)
        if self.hold is None:
            return self._write(views)
        return lambda data: self._task(lambda: self._write(data))()

    def _write(self, views: Sequence[memoryview]) -> int:
        self.written = b"".join(views)
        self.writes.append(self.written)
        return len(self.written)

    def flush(self, nodeid: int, fh: int) -> None:
        self._note("flush", nodeid, fh)

    def getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        self._note("getlk", nodeid, fh, owner, lock)
        return self.lock

    def setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        self._note("setlk", nodeid, fh, owner, lock)

    def flock(self, nodeid: int, fh: int, kind: int) -> None:
        self._note("flock", nodeid, fh, kind)

    def unlock_owner(self, nodeid: int, owner: int) -> None:
        self.unlocked.append((nodeid, owner))

    def release(self, nodeid: int, fh: int) -> None:
        self._note("release", nodeid, fh)

    def fsync(self, nodeid: int, fh: int, datasync: bool) -> Task:
        self._note("fsync", nodeid, fh, datasync)
        return self._task()

    def fallocate(
        self, nodeid: int, fh: int, mode: int, offset: int, length: int, kill_suidgid: bool
    ) -> Task:
        self._note("fallocate", nodeid, fh, mode, offset, length, kill_suidgid)
        return self._task()

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        self._note("lseek", nodeid, fh, offset, whence)
        return (offset + 1) % (1 << 64)

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
    ) -> Task:
        self._note(
            "copy_file_range",
            nodeid,
            fh,
            offset,
            nodeid_out,
            fh_out,
            offset_out,
            length,
            kill_suidgid,
        )
        return self._task(lambda: length)

    def opendir(self, nodeid: int, flags: int) -> OpenResult:
        self._note("opendir", nodeid, flags)
        return OPENED

    def readdir(self, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        self._note("readdir", nodeid, fh, offset)
        return (entry for entry in self.entries if entry.offset > offset)

    def releasedir(self, nodeid: int, fh: int) -> None:
        self._note("releasedir", nodeid, fh)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> Task:
        self._note("fsyncdir", nodeid, fh, datasync)
        return self._task()

    def statfs(self, nodeid: int) -> os.statvfs_result:
        self._note("statfs", nodeid)
        return STATVFS

    def syncfs(self, nodeid: int) -> Task:
        self._note("syncfs", nodeid)
        return self._task()

    def set_negotiated(self, *, posix_acls: bool, writeback: bool) -> None:
        self.posix_acls = posix_acls
        self.writeback = writeback

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        self._note("setxattr", nodeid, name, value, flags, kill_sgid)

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        self._note("getxattr", nodeid, name)
        return self.values.get(name, b"other")

    def listxattr(self, nodeid: int) -> Iterable[bytes]:
        self._note("listxattr", nodeid)
        return list(self.values)

    def removexattr(self, nodeid: int, name: bytes) -> None:
        self._note("removexattr", nodeid, name)

    def reset(self) -> None:
        self.calls.append(("reset",))
        self.tasks_done_at_reset = self.tasks_done


class FakeWatches:
    """Implements ``GuestWatches``; watches what it supports."""

    def __init__(
        self, supported: Event = Event.CREATE | Event.DELETE | Event.RENAME | Event.ON_CHILD
    ) -> None:
        self.supported = supported
        self.calls: list[tuple[Any, ...]] = []
        self.error: OSError | None = None

    def report_own(self, report: bool) -> None:
        self.reported_own = report

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        self.calls.append(("set_mask", nodeid, generation, fd, is_dir, mask))
        if self.error is not None:
            raise self.error
        return mask & self.supported

    def forget(self, nodeid: int) -> None:
        self.calls.append(("forget", nodeid))

    def reset(self) -> None:
        self.calls.append(("reset",))
