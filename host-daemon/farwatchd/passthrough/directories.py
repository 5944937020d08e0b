# SPDX-License-Identifier: Apache-2.0
"""Reading directories. Positions are the host file system's own, so they hold while entries come
and go."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

from farwatchd.fuse.filesystem import DirEntry, Job, Opened
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import getdents64, signed
from farwatchd.passthrough.share import Operations
from farwatchd.passthrough.tasks import sync

#: As much as the guest's smallest request takes. What does not fit there is read again next time.
_BATCH = 4096
#: struct linux_dirent64 (getdents64(2)): d_ino, d_off, d_reclen, d_type; then the name and a NUL.
_DIRENT = struct.Struct("=QQHB")
_DIRENT_SIZE = _DIRENT.size


class DirectoryOperations(Operations):
    """Operations on open directories."""

    def opendir(self, nodeid: int, flags: int) -> Opened:
        """Open a directory; of ``flags`` nothing concerns the host."""
        inode = self._inodes.get(nodeid)
        if not stat.S_ISDIR(inode.kind):
            raise failure(errno.ENOTDIR)
        self._handles.check_room()
        own = os.O_RDONLY | os.O_DIRECTORY
        fd = self._proc.reopen(inode.fd, own)
        return Opened(self._handles.add(nodeid, fd, own), self._options.cache.directory_flags)

    def readdir(self, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        """The entries from ``offset`` on (0, or an entry's), as they are now.

        Errors of the first batch are raised at once, later ones end the iteration: they come again
        in the next call.
        """
        fd = self._handles.fd(nodeid, fh)
        os.lseek(fd, signed(offset), os.SEEK_SET)
        buffer = bytearray(_BATCH)
        return _entries(fd, buffer, getdents64(fd, buffer))

    def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a directory."""
        self._handles.release(nodeid, fh)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> Job:
        """Bring a directory to its disk."""
        return sync(self._handles.fd(nodeid, fh), datasync)


def _entries(fd: int, buffer: bytearray, size: int) -> Iterator[DirEntry]:
    view = memoryview(buffer)
    while size:
        position = 0
        while position < size:
            ino, offset, length, kind = _DIRENT.unpack_from(buffer, position)
            start = position + _DIRENT_SIZE
            yield DirEntry(view[start : buffer.index(0, start)].tobytes(), ino, kind, offset)
            position += length
        try:
            size = getdents64(fd, buffer)
        except OSError:
            return
