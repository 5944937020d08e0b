# SPDX-License-Identifier: Apache-2.0
"""The inodes that the guest knows: nodeid, O_PATH descriptor, how many lookups it owes us.

A nodeid is used once in the life of the table, so every inode has generation 0. While an inode is here its descriptor
keeps it alive on the host, so device and inode number name it alone; the mount tells two bind mounts of it apart.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from farwatchd.fuse.filesystem import ROOT
from farwatchd.passthrough.errors import failure
from farwatchd.passthrough.procfd import open_at
from farwatchd.passthrough.syscalls import statx

GENERATION = 0

_Key = tuple[int, int, int]


@dataclass(slots=True)
class Inode:
    """One inode. ``kind`` is its file type (``S_IFMT`` bits of the mode), which never changes."""

    nodeid: int
    fd: int
    kind: int
    key: _Key
    lookups: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.kind)


class InodeTable:
    """The table. It owns the descriptors in it, also the root's."""

    def __init__(self, root_fd: int) -> None:
        status = os.fstat(root_fd)
        self._root = Inode(ROOT, root_fd, stat.S_IFMT(status.st_mode), _key(root_fd, status), 1)
        self._next = ROOT + 1
        self._by_nodeid = {ROOT: self._root}
        self._by_key = {self._root.key: self._root}

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode; ESTALE if the guest was never told of it or has forgotten it."""
        try:
            return self._by_nodeid[nodeid]
        except KeyError:
            raise failure(errno.ESTALE) from None

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result]:
        """Look up one name and count it."""
        return self.adopt(open_at(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent.fd))

    def adopt(self, fd: int) -> tuple[Inode, os.stat_result]:
        """Take over an O_PATH descriptor as one lookup of its inode; it is closed if the inode is known already."""
        try:
            status = os.fstat(fd)
            key = _key(fd, status)
        except BaseException:
            os.close(fd)
            raise
        inode = self._by_key.get(key)
        if inode is None:
            inode = Inode(self._next, fd, stat.S_IFMT(status.st_mode), key, 1)
            self._next += 1
            self._by_nodeid[inode.nodeid] = self._by_key[key] = inode
        else:
            os.close(fd)
            inode.lookups += 1
        return inode, status

    def forget(self, nodeid: int, count: int) -> bool:
        """Take back ``count`` lookups; True if that was the last one. The root stays, unknown inodes are ignored."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None or inode is self._root:
            return False
        inode.lookups -= count
        if inode.lookups > 0:
            return False
        self._drop(inode)
        return True

    def clear(self) -> None:
        """Forget all but the root."""
        for inode in list(self._by_nodeid.values()):
            if inode is not self._root:
                self._drop(inode)

    def close(self) -> None:
        """Forget all, the root too."""
        self.clear()
        self._drop(self._root)

    def _drop(self, inode: Inode) -> None:
        del self._by_nodeid[inode.nodeid]
        del self._by_key[inode.key]
        os.close(inode.fd)


def _key(fd: int, status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino, statx(fd).mount_id
