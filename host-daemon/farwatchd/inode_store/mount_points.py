# SPDX-License-Identifier: Apache-2.0
"""The mounts inside of the share: released when they are not in use, and found again.

A descriptor on a mount keeps the host from unmounting it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.inode_store.mounts import Mount, MountPoint, MountTable
from farwatchd.linux.libc import failure

if TYPE_CHECKING:
    from farwatchd.inode_store.store import HostInode, InodeStore

_log = logging.getLogger(__name__)


class MountPoints:
    """Releases the mounts of a store when the loop's turn ends, and finds them again.

    ``mounts`` has the mounts, ``store`` the inodes. For one thread.
    """

    def __init__(self, store: InodeStore, mounts: MountTable) -> None:
        self._store = store
        self._mounts = mounts
        self._call_soon: Callable[[Callable[[], None]], None] | None = None
        #: In use in this turn: mounts with a descriptor, and inodes that may have one.
        self._used: list[Mount] = []
        self._used_inodes: list[HostInode] = []
        #: The ids of the mounts that are released.
        self.released: set[int] = set()

    def use_loop(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        """Start to release mounts. ``call_soon(call)`` calls when no operation is in progress."""
        self._call_soon = call_soon
        if self._used:
            call_soon(self.release)

    def use(self, mount: Mount, inode: HostInode | None = None) -> None:
        """Have a mount released when the turn ends, and an inode of it closed."""
        self.released.discard(mount.ident)
        if not self._used and self._call_soon is not None:
            self._call_soon(self.release)
        if mount not in self._used:
            self._used.append(mount)
        if inode is not None:
            self._used_inodes.append(inode)

    def release(self) -> None:
        """Close the descriptors on these mounts. No operation may be in progress."""
        inodes, self._used_inodes = self._used_inodes, []
        for inode in inodes:
            self._store.close(inode)
        mounts, self._used = self._used, []
        for mount in mounts:
            if mount.fd >= 0 and not mount.kept and self._knows_place(mount):
                self._mounts.release(mount)
                self.released.add(mount.ident)

    def find_again(self, mount: Mount) -> None:
        """Open a released mount for this turn.

        ``OSError``: ESTALE, it is not there any more; ENFILE and EMFILE.
        """
        point = mount.point
        if point is None:
            raise failure(errno.ESTALE)
        directory = self._store.open(point.directory)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = self._store.with_room(lambda: os.open(point.name, flags, dir_fd=directory))
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                raise
        else:
            if point.leads_to(fd):
                mount.fd = fd
                self.use(mount)
                return
            os.close(fd)
        _log.info("a file system was unmounted from the share")
        self._mounts.remove(mount)
        self._store.make_stale(mount)
        self.forget(mount)
        raise failure(errno.ESTALE)

    def check(self, ident: int) -> None:
        """Make sure that the id of a mount that was released is not another mount's by now.

        ``OSError``: ENFILE, EMFILE.
        """
        if ident not in self.released:
            return
        mount = self._mounts.find(ident)
        assert mount is not None
        try:
            self.find_again(mount)
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                raise

    def forget(self, mount: Mount) -> None:
        """Drop what finds a mount again that is not in the table any more."""
        if self._mounts.find(mount.ident) is None:
            self.released.discard(mount.ident)
        point, mount.point = mount.point, None
        if point is not None:
            self._store.put(point.directory)

    def _knows_place(self, mount: Mount) -> bool:
        """Find out where a mount is; return false if its descriptor is not of its root."""
        if mount.point is None:
            try:
                mount.point = self._place(mount)
            except OSError as error:
                # There is no descriptor left: the next use tries again.
                _log.debug("mount %d: %s", mount.ident, error)
                return False
            mount.kept = mount.point is None
        return not mount.kept

    def _place(self, mount: Mount) -> MountPoint | None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        parent = self._store.with_room(lambda: os.open("..", flags, dir_fd=mount.fd))
        try:
            directory = self._store.get(parent, os.fstat(parent))
        finally:
            os.close(parent)
        if directory.mount_id == mount.ident:
            self._store.put(directory)
            return None
        return MountPoint.of(mount.fd, directory)
