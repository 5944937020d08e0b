# SPDX-License-Identifier: Apache-2.0
"""What all operations of the passthrough file system share: its tables, options and credentials."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from farwatchd.fuse.filesystem import Attributes, Entry
from farwatchd.objects.table import ObjectTable
from farwatchd.passthrough.creds import Credentials
from farwatchd.passthrough.errors import failure
from farwatchd.passthrough.handles import HandleTable
from farwatchd.passthrough.inodes import GENERATION, Inode, InodeTable
from farwatchd.passthrough.locktable import LockTable
from farwatchd.passthrough.options import Options
from farwatchd.passthrough.procfd import ProcFd, open_at


class Operations:
    """The base of each group of operations.

    ``root`` is a path, or an O_PATH descriptor of a directory that is taken over. ``objects`` are those that inodes
    are kept in, by descriptor unless given.
    """

    def __init__(self, root: Path | int, options: Options, objects: ObjectTable | None = None) -> None:
        root_fd = root if isinstance(root, int) else open_at(os.fsencode(root), os.O_PATH | os.O_DIRECTORY)
        self._options = options
        self._seconds = options.cache.seconds
        self._proc = ProcFd()
        self._credentials = Credentials()
        self._inodes = InodeTable(root_fd, objects if objects is not None else ObjectTable())
        self._handles = HandleTable()
        self._locks = LockTable()

    def _refuse_if_readonly(self) -> None:
        if self._options.readonly:
            raise failure(errno.EROFS)

    def _attributes(self, status: os.stat_result) -> Attributes:
        return Attributes(status, self._seconds)

    def _entry(self, found: tuple[Inode, os.stat_result]) -> Entry:
        inode, status = found
        return Entry(inode.nodeid, GENERATION, self._attributes(status), self._seconds)
