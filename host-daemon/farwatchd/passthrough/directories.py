# SPDX-License-Identifier: Apache-2.0
"""Reads directories.

Offsets are the host file system's own, so they stay valid while entries are added and removed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

from farwatchd.fuse.filesystem import DirEntry, OpenResult, Task
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import getdents64, signed
from farwatchd.passthrough.cache_flags import DIRECTORY_FLAGS
from farwatchd.passthrough.inode_table import Inode
from farwatchd.passthrough.share import Operations
from farwatchd.passthrough.tasks import Owned, sync

#: Bytes of one getdents64(2): the guest's smallest request. Entries that do not fit the reply are
#: read again by the next request.
_BATCH = 4096
#: The same on a remote file system, where a request asks for one batch.
_REMOTE_BATCH = 32768
#: struct linux_dirent64 (getdents64(2)): d_ino, d_off, d_reclen, d_type; then the name and a NUL.
_DIRENT = struct.Struct("=QQHB")
_DIRENT_SIZE = _DIRENT.size


class DirectoryOperations(Operations):
    """Operations on open directories."""

    def opendir(self, nodeid: int, flags: int) -> OpenResult:
        """Open a directory; none of ``flags`` concerns the host."""
        inode = self._inodes.get(nodeid)
        if not stat.S_ISDIR(inode.kind):
            raise failure(errno.ENOTDIR)
        self._open_files.check_room()
        own = os.O_RDONLY | os.O_DIRECTORY
        if inode.remote:
            raise self._share.later(
                lambda own_fd: Owned(self._proc.reopen(own_fd, own), self._share.close_remote),
                lambda owned: self._opened(self._inodes.get(nodeid), owned.take()),
                inode.fd,
            )
        return self._opened(inode, self._proc.reopen(inode.fd, own))

    def _opened(self, inode: Inode, fd: int) -> OpenResult:
        fh = self._open_files.add(
            inode.nodeid, fd, os.O_RDONLY | os.O_DIRECTORY, remote=inode.remote
        )
        return OpenResult(fh, DIRECTORY_FLAGS[self._options.cache])

    def readdir(self, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        """Return the entries from ``offset`` on (0, or that of an entry), as they are now.

        Errors of the first batch are raised here; a later one ends the iteration, and the next call
        raises it again.
        """
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.later(lambda own_fd: _batch(own_fd, offset), iter, file.fd)
        fd = file.fd
        os.lseek(fd, signed(offset), os.SEEK_SET)
        buffer = bytearray(_BATCH)
        return _entries(fd, buffer, getdents64(fd, buffer))

    def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a directory."""
        self._open_files.release(nodeid, fh)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> Task:
        """Return a task that writes a directory to its disk."""
        file = self._open_files.get(nodeid, fh)
        return sync(file.fd, file.remote, datasync)


def _batch(fd: int, offset: int) -> list[DirEntry]:
    """Return some entries from ``offset`` on, in any thread; none: it is the end."""
    os.lseek(fd, signed(offset), os.SEEK_SET)
    buffer = bytearray(_REMOTE_BATCH)
    return list(_decoded(buffer, getdents64(fd, buffer)))


def _entries(fd: int, buffer: bytearray, size: int) -> Iterator[DirEntry]:
    while size:
        yield from _decoded(buffer, size)
        try:
            size = getdents64(fd, buffer)
        except OSError:
            return


def _decoded(buffer: bytearray, size: int) -> Iterator[DirEntry]:
    view = memoryview(buffer)
    position = 0
    while position < size:
        ino, offset, length, kind = _DIRENT.unpack_from(buffer, position)
        start = position + _DIRENT_SIZE
        yield DirEntry(view[start : buffer.index(0, start)].tobytes(), ino, kind, offset)
        position += length
