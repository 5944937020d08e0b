# SPDX-License-Identifier: Apache-2.0
"""The files and directories that the guest holds open. A handle's number is used once in the life of the table."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from farwatchd.passthrough.errors import failure


class Handle(NamedTuple):
    """An open file or directory of one inode."""

    nodeid: int
    fd: int


class HandleTable:
    """The table. It owns the descriptors in it."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, nodeid: int, fd: int) -> int:
        """Take over ``fd``; returns the handle's number."""
        number = self._next
        self._next += 1
        self._handles[number] = Handle(nodeid, fd)
        return number

    def fd(self, nodeid: int, fh: int) -> int:
        """The descriptor; EBADF unless ``fh`` is an open handle of that inode."""
        handle = self._handles.get(fh)
        if handle is None or handle.nodeid != nodeid:
            raise failure(errno.EBADF)
        return handle.fd

    def release(self, nodeid: int, fh: int) -> None:
        """Close a handle; EBADF as in ``fd``."""
        fd = self.fd(nodeid, fh)
        del self._handles[fh]
        os.close(fd)

    def clear(self) -> None:
        """Close all."""
        handles = list(self._handles.values())
        self._handles.clear()
        for handle in handles:
            os.close(handle.fd)
