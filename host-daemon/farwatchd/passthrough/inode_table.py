# SPDX-License-Identifier: Apache-2.0
"""The inodes that the guest knows: nodeid, the host's object, how many lookups it owes us.

A nodeid is used once in the life of the table, so every inode has generation 0.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.store import (
    OUT_OF_DESCRIPTORS,
    HostObject,
    ObjectTable,
    deleted_directory,
)
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import open_path
from farwatchd.passthrough.options import DEFAULT_MAX_INODES
from farwatchd.passthrough.procfd import as_systems_limit

GENERATION = 0


@dataclass(slots=True)
class Inode:
    """One inode.

    ``kind`` is its file type (``S_IFMT`` bits of the mode), which never changes. ``named``: it had
    a name when it was found; one that has none any more has been removed.
    """

    nodeid: int
    held: HostObject
    kind: int
    lookups: int
    named: bool

    @property
    def fd(self) -> int:
        """An O_PATH descriptor, from ``InodeTable.get`` or ``lookup`` to the end of the
        operation."""
        return self.held.fd

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.kind)


class InodeTable:
    """The table, over the objects of ``objects``, for at most ``most`` inodes. ``root_fd`` is taken
    over."""

    def __init__(self, root_fd: int, objects: ObjectTable, most: int = DEFAULT_MAX_INODES) -> None:
        self._objects = objects
        self._touch = objects.touch
        self._most = most
        self._next = ROOT
        self._by_nodeid: dict[int, Inode] = {}
        self._by_object: dict[HostObject, Inode] = {}
        self._root = self.adopt(root_fd)[0]

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode, open; ESTALE if the guest was never told of it or has forgotten it, or the
        host has removed it."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise failure(errno.ESTALE)
        held = inode.held
        if held.fd >= 0:
            if held.by_handle:
                self._touch(held)
            return inode
        try:
            self._objects.open(held)
        except OSError as error:
            raise as_systems_limit(error) from None
        return inode

    def nodeid(self, held: HostObject) -> int | None:
        """Return the guest's number of an object; None if the guest does not know it."""
        inode = self._by_object.get(held)
        return None if inode is None else inode.nodeid

    def deleted_directory(self, nodeid: int) -> os.stat_result | None:
        """Return the last attributes of a known directory that cannot be opened any more; None if
        it is none, or they were not seen."""
        inode = self._by_nodeid.get(nodeid)
        return None if inode is None else deleted_directory(inode.held)

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result] | None:
        """Look up one name and count it; None if it is not there."""
        fd = open_path(parent.held.fd, name)
        if fd < 0:
            if fd == -errno.ENOENT:
                return None
            if -fd not in OUT_OF_DESCRIPTORS:
                raise failure(-fd)
            fd = self._open_again(parent, name)
        return self.adopt(fd)

    def adopt(self, fd: int) -> tuple[Inode, os.stat_result]:
        """Take over an O_PATH descriptor as one lookup of its inode."""
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            held = self._objects.take(fd, status)
        except OSError as error:
            raise as_systems_limit(error) from None
        inode = self._by_object.get(held)
        if inode is None:
            if len(self._by_nodeid) >= self._most:
                self._objects.drop(held)
                raise failure(errno.ENFILE)
            inode = Inode(self._next, held, stat.S_IFMT(status.st_mode), 1, status.st_nlink > 0)
            self._next += 1
            self._by_nodeid[inode.nodeid] = self._by_object[held] = inode
        else:
            self._objects.drop(held)
            inode.lookups += 1
            inode.named = inode.named or status.st_nlink > 0
        return inode, status

    def count_again(self, inode: Inode) -> os.stat_result:
        """Count one more lookup of an open inode; returns its attributes."""
        status = os.fstat(inode.fd)
        inode.lookups += 1
        return status

    def forget(self, nodeid: int, count: int) -> bool:
        """Take back ``count`` lookups; True if that was the last one. The root stays, unknown
        inodes are ignored."""
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

    def _open_again(self, parent: Inode, name: bytes) -> int:
        """Open a name when there was no descriptor left: with one that the objects give back."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return self._objects.with_room(lambda: os.open(name, flags, dir_fd=parent.fd))
        except OSError as error:
            raise as_systems_limit(error) from None

    def _drop(self, inode: Inode) -> None:
        del self._by_nodeid[inode.nodeid]
        del self._by_object[inode.held]
        self._objects.drop(inode.held)
