# SPDX-License-Identifier: Apache-2.0
"""The files and directories that the guest has open.

A file's number (``fh``) is used once in the life of the table.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.linux.libc import failure
from farwatchd.passthrough.changes import StateChanges
from farwatchd.wire.state import (
    NONE,
    Descriptors,
    FlockState,
    OpenFileState,
    ReceivedDescriptors,
    State,
    StateError,
)


class Reading(Enum):
    """How a file is read."""

    #: Reading never waits for a disk.
    IMMEDIATE = "immediate"
    #: What is in memory immediately, the rest by a task.
    IF_IN_MEMORY = "if in memory"
    #: Reading may wait for a disk, and the kernel cannot say when.
    BY_TASK = "by task"


_BY_TASK, _IF_IN_MEMORY = Reading.BY_TASK, Reading.IF_IN_MEMORY


@dataclass(slots=True)
class OpenFile:
    """An open file or directory of one inode.

    ``flags`` are those of open(2) that the guest meant. With O_APPEND among them each write goes to
    the end of the file, but for pages of the guest's cache; ``fd`` itself appends only if
    ``append_only``, where the host allows nothing else. ``remote``: it is on the file system of a
    server, for which reads, writes and closing may wait. ``flock``: the kind of its flock(2) lock
    on the host, None for none. ``cached_writes`` counts those in progress for which O_DIRECT is
    off.
    """

    nodeid: int
    fd: int
    flags: int
    reading: Reading
    append_only: bool = False
    remote: bool = False
    flock: int | None = None
    cached_writes: int = 0


class OpenFileTable:
    """The open files and directories by number. Owns their descriptors."""

    def __init__(
        self, budget: DescriptorBudget, close_remote: Callable[[int], None] = os.close
    ) -> None:
        """``budget`` counts the descriptors in the table, too.

        ``close_remote`` closes those of remote files; it does not wait for a server.
        """
        self._budget = budget
        self._close_remote = close_remote
        self._files: dict[int, OpenFile] = {}
        self._count_of: dict[int, int] = {}
        self._next = 1
        #: Files of a former process that this one could not open again, with their nodeids.
        self._lost: dict[int, int] = {}
        #: Gets what changes, unless it is None.
        self.changes: StateChanges | None = None

    def __len__(self) -> int:
        return len(self._files)

    def check_room(self, more: int = 0) -> None:
        """Raise ENFILE if no descriptor is left for an open file and ``more`` descriptors.

        Call it before a file is opened: opening it may create or truncate it.
        """
        self._budget.check(1 + more)

    def add(
        self,
        nodeid: int,
        fd: int,
        flags: int,
        append_only: bool = False,
        remote: bool = False,
    ) -> int:
        """Take ownership of ``fd``; return the number of the open file."""
        number = self._next
        self._next += 1
        reading = _BY_TASK if remote or flags & os.O_DIRECT else _IF_IN_MEMORY
        self._count_of[nodeid] = self._count_of.get(nodeid, 0) + 1
        self._budget.used += 1
        self._files[number] = OpenFile(nodeid, fd, flags, reading, append_only, remote)
        if self.changes is not None:
            self.changes.files.add(number)
        return number

    def get(self, nodeid: int, fh: int) -> OpenFile:
        """Return the open file.

        EBADF unless ``fh`` is an open one of that inode, EIO if it is lost.
        """
        handle = self._files.get(fh)
        if handle is None or handle.nodeid != nodeid:
            raise failure(errno.EIO if self._lost.get(fh) == nodeid else errno.EBADF)
        return handle

    def find(self, fh: int) -> OpenFile | None:
        """Return the open file; None if there is none, or it is lost."""
        return self._files.get(fh)

    def all(self) -> Iterable[tuple[int, OpenFile]]:
        """Return the numbers and files in the table."""
        return self._files.items()

    def lost(self) -> Mapping[int, int]:
        """Return the nodeids of the lost files, by their numbers."""
        return self._lost

    def record_flock(self, fh: int, kind: int) -> None:
        """Record that the kernel has given a file a flock(2) lock, F_UNLCK for none."""
        self._files[fh].flock = None if kind == fcntl.F_UNLCK else kind
        if self.changes is not None:
            self.changes.flocks[fh] = kind

    def recover(self, fh: int, nodeid: int, fd: int | None, record: OpenFileState) -> None:
        """Add a file that a former process of the daemon had, by the descriptor ``fd``.

        None: it could not be opened again.
        """
        self._next = fh
        if fd is None:
            self.add_lost(nodeid, fh)
            return
        self.add(nodeid, fd, record.flags, bool(record.append_only), bool(record.remote))

    def skip_numbers(self, next_fh: int) -> None:
        """Give no number below ``next_fh``."""
        self._next = max(self._next, next_fh)

    def add_lost(self, nodeid: int, fh: int) -> None:
        """Add a file that cannot be opened again: each use of it is EIO, until its release."""
        self._lost[fh] = nodeid
        self._count_of[nodeid] = self._count_of.get(nodeid, 0) + 1

    def lose(self, nodeid: int, fh: int) -> None:
        """Close a file, but have each further use of it be EIO, until its release."""
        file = self._files.pop(fh)
        self._budget.used -= 1
        self._close(file)
        self._lost[fh] = nodeid

    def any_of(self, nodeid: int) -> bool:
        """Return whether the guest has the inode open."""
        return nodeid in self._count_of

    def fd(self, nodeid: int, fh: int) -> int:
        """Return the descriptor; EBADF as in ``get``."""
        return self.get(nodeid, fh).fd

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file, which may be lost; EBADF as in ``get``."""
        if self._lost.get(fh) == nodeid:
            del self._lost[fh]
            self._released(nodeid, fh)
            return
        file = self.get(nodeid, fh)
        del self._files[fh]
        self._released(nodeid, fh)
        self._budget.used -= 1
        self._close(file)

    def tables(self) -> dict[str, object]:
        """Return what the native part looks open files up in."""
        return {
            "files": self._files,
            "count_of": self._count_of,
            "budget": self._budget,
            "lost": self._lost,
        }

    def export_state(self, state: State, fds: Descriptors) -> None:
        """Add all files to a state."""
        state.open_files += [
            OpenFileState(
                fh, file.nodeid, fds.add(file.fd), file.flags, file.append_only, file.remote
            )
            for fh, file in self._files.items()
        ]
        state.open_files += [
            OpenFileState(fh, nodeid, NONE, 0, False, False) for fh, nodeid in self._lost.items()
        ]
        state.open_files.sort()
        state.flocks += [
            FlockState(fh, file.flock) for fh, file in self._files.items() if file.flock is not None
        ]

    def restore_state(
        self,
        records: list[OpenFileState],
        flocks: list[FlockState],
        fds: ReceivedDescriptors,
        next_fh: int,
    ) -> None:
        """Add the files of a state, and take ownership of their descriptors; ``StateError``."""
        for record in records:
            if (
                record.fh in self._files
                or record.fh in self._lost
                or not self._next <= record.fh < next_fh
            ):
                raise StateError("an open file has a number of another one")
            self._next = record.fh
            fd = fds.take_any(record.fd)
            if fd is None:
                self.add_lost(record.nodeid, record.fh)
                continue
            self.add(record.nodeid, fd, record.flags, bool(record.append_only), bool(record.remote))
        for lock in flocks:
            file = self._files.get(lock.fh)
            if file is None:
                raise StateError("a lock is that of no open file")
            file.flock = lock.kind
        self._next = next_fh

    @property
    def next_fh(self) -> int:
        """The number of the next open file."""
        return self._next

    def clear(self) -> None:
        """Close all files."""
        handles = list(self._files.values())
        self._files.clear()
        self._lost.clear()
        self._count_of.clear()
        self._budget.used -= len(handles)
        for handle in handles:
            self._close(handle)

    def _released(self, nodeid: int, fh: int) -> None:
        self._count_of[nodeid] -= 1
        if not self._count_of[nodeid]:
            del self._count_of[nodeid]
        if self.changes is not None:
            self.changes.files.add(fh)

    def _close(self, file: OpenFile) -> None:
        if file.remote:
            self._close_remote(file.fd)
        else:
            os.close(file.fd)
