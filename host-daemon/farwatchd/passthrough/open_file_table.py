# SPDX-License-Identifier: Apache-2.0
"""The files and directories that the guest has open.

A file's number (``fh``) is used once in the life of the table.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.linux.libc import failure
from farwatchd.wire.state import Descriptors, OpenFileState, ReceivedDescriptors, State, StateError


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
    server, for which reads, writes and closing may wait.
    """

    nodeid: int
    fd: int
    flags: int
    reading: Reading
    append_only: bool = False
    remote: bool = False


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
        return number

    def get(self, nodeid: int, fh: int) -> OpenFile:
        """Return the open file; EBADF unless ``fh`` is an open one of that inode."""
        handle = self._files.get(fh)
        if handle is None or handle.nodeid != nodeid:
            raise failure(errno.EBADF)
        return handle

    def any_of(self, nodeid: int) -> bool:
        """Return whether the guest has the inode open."""
        return nodeid in self._count_of

    def fd(self, nodeid: int, fh: int) -> int:
        """Return the descriptor; EBADF as in ``get``."""
        return self.get(nodeid, fh).fd

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file; EBADF as in ``get``."""
        file = self.get(nodeid, fh)
        del self._files[fh]
        self._count_of[nodeid] -= 1
        if not self._count_of[nodeid]:
            del self._count_of[nodeid]
        self._budget.used -= 1
        self._close(file)

    def export_state(self, state: State, fds: Descriptors) -> None:
        """Add all files to a state."""
        state.open_files += [
            OpenFileState(
                fh, file.nodeid, fds.add(file.fd), file.flags, file.append_only, file.remote
            )
            for fh, file in self._files.items()
        ]

    def restore_state(
        self, records: list[OpenFileState], fds: ReceivedDescriptors, next_fh: int
    ) -> None:
        """Add the files of a state, and take ownership of their descriptors; ``StateError``."""
        for record in records:
            if record.fh in self._files or not self._next <= record.fh < next_fh:
                raise StateError("an open file has a number of another one")
            self._next = record.fh
            self.add(
                record.nodeid,
                fds.take(record.fd),
                record.flags,
                bool(record.append_only),
                bool(record.remote),
            )
        self._next = next_fh

    @property
    def next_fh(self) -> int:
        """The number of the next open file."""
        return self._next

    def clear(self) -> None:
        """Close all files."""
        handles = list(self._files.values())
        self._files.clear()
        self._count_of.clear()
        self._budget.used -= len(handles)
        for handle in handles:
            self._close(handle)

    def _close(self, file: OpenFile) -> None:
        if file.remote:
            self._close_remote(file.fd)
        else:
            os.close(file.fd)
