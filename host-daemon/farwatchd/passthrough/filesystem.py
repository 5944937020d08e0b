# SPDX-License-Identifier: Apache-2.0
"""The passthrough file system as the FUSE session sees it
(``farwatchd.fuse.filesystem.FileSystem``)."""

from __future__ import annotations

from farwatchd.passthrough.attributes import AttributeOperations
from farwatchd.passthrough.data import DataOperations
from farwatchd.passthrough.directories import DirectoryOperations
from farwatchd.passthrough.locks import LockOperations
from farwatchd.passthrough.namespace import NameOperations
from farwatchd.passthrough.open import OpenOperations
from farwatchd.passthrough.xattrs import XattrOperations


class PassthroughFs(
    NameOperations,
    OpenOperations,
    DataOperations,
    AttributeOperations,
    DirectoryOperations,
    XattrOperations,
    LockOperations,
):
    """A directory of the host. Every error is ``OSError`` with the errno for the guest: the host
    kernel's mostly; ESTALE for an unknown nodeid, EBADF for an unknown handle."""

    def forget(self, nodeid: int, nlookup: int) -> bool:
        """Take back lookups; True if the inode is gone now, and the locks on it with it."""
        gone = super().forget(nodeid, nlookup)
        if gone:
            self._locks.drop(nodeid)
        return gone

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file, and give back the locks that were taken through it."""
        super().release(nodeid, fh)
        self._locks.release(nodeid, fh)

    def reset(self) -> None:
        """Forget all inodes but the root, close all handles, give back all locks: the guest is
        gone."""
        self._locks.clear()
        self._handles.clear()
        self._inodes.clear()

    def close(self) -> None:
        """Give everything back, the root too; the file system cannot be used any more."""
        self._locks.clear()
        self._handles.clear()
        self._inodes.close()
