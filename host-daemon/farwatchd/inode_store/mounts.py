# SPDX-License-Identifier: Apache-2.0
"""The mounts of the stored inodes, each with a descriptor to open its inodes by handle.

A descriptor keeps the host from unmounting. So that of a mount inside of the share is released when
it is not in use, and the mount is found again by its mount point. The host reuses the ids of
mounts: what is found there may be another one.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.linux.file_handles import (
    HandleReader,
    handle_of,
    mount_of,
    open_handle,
    open_handle_in,
)
from farwatchd.linux.syscalls import file_system_type

if TYPE_CHECKING:
    from farwatchd.inode_store.store import HostInode

_log = logging.getLogger(__name__)

#: ``FUSE_SUPER_MAGIC``, ``MSDOS_SUPER_MAGIC``: such a file system does not find an inode by its
#: handle once it has evicted the inode. vfat does with the mount option ``nfs=nostale_ro``, which
#: it does not show.
_FORGETFUL = (0x65735546, 0x4D44)


@dataclass(frozen=True, slots=True)
class MountPoint:
    """Where a mount is found again: the entry ``name`` of ``directory``, which it references.

    ``root``: the key of the mount's root. ``file_system``: its device and its id, as a handle means
    something on one file system only.
    """

    directory: HostInode
    name: bytes
    root: bytes
    file_system: tuple[int, int]

    @classmethod
    def of(cls, root_fd: int, directory: HostInode) -> MountPoint:
        """Return the mount point of a mount's root, an entry of ``directory``."""
        name = os.fsencode(_link_of(root_fd)).rpartition(b"/")[2]
        return cls(directory, name, HandleReader().read(root_fd), _file_system_of(root_fd))

    def leads_to(self, fd: int) -> bool:
        """Return whether this is the mount's root, and not that of another mount in its place."""
        try:
            key = HandleReader().read(fd)
        except OSError:
            return False
        return key == self.root and _file_system_of(fd) == self.file_system


def _link_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except FileNotFoundError:
        # In the sandbox the current directory is /proc/self/fd.
        return os.readlink(str(fd))  # noqa: PTH115


def _file_system_of(fd: int) -> tuple[int, int]:
    return os.fstat(fd).st_dev, os.fstatvfs(fd).f_fsid


@dataclass(slots=True, eq=False)
class Mount:
    """A mount.

    ``by_handle``: its inodes are opened by handle. ``refused``: its file system cannot do that.
    ``fd`` is a descriptor of a directory on it, O_PATH but for the share's own mount (``is_own``);
    -1: it is released, and ``point`` says where the mount was. ``kept``: its descriptor is never
    released. ``inodes`` counts the inodes on the mount.
    """

    ident: int
    fd: int = -1
    refused: bool = False
    inodes: int = 0
    by_handle: bool = False
    is_own: bool = False
    kept: bool = False
    point: MountPoint | None = None

    def open_inode(self, key: bytes) -> int:
        """Open an inode of this mount, by its key, with O_PATH; the caller owns the descriptor.

        ``OSError``: as of ``open_handle``.
        """
        return (open_handle if self.is_own else open_handle_in)(self.fd, handle_of(key))


class MountTable:
    """The mounts by their ids.

    ``mandatory``: a mount on which file handles do not work is an error.
    """

    def __init__(self, mandatory: bool) -> None:
        self._mandatory = mandatory
        self._by_id: dict[int, Mount] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, key: bytes, fd: int, mode: int, remote: bool) -> Mount:
        """Return the mount of an inode, and count the inode.

        ``key`` is the inode's (``HandleReader``), ``fd`` its descriptor, ``mode`` its ``st_mode``.
        A ``remote`` mount has no descriptor unless handles are mandatory: to open an inode by its
        handle may wait for the server.
        The mount is opened by a directory. The guest enters a mount by its root, which is seen
        first, unless a single file is mounted: for that one, a descriptor of the mount would be one
        more than for the file.
        """
        ident = mount_of(key)
        mount = self._by_id.get(ident)
        if mount is None:
            # The first one is the share's own, which the share's root keeps in any case.
            own = not self._by_id
            mount = Mount(ident, refused=remote and not self._mandatory, is_own=own, kept=own)
        if not mount.by_handle and not mount.refused and stat.S_ISDIR(mode):
            self._open(mount, key, fd)
        self._by_id[ident] = mount
        mount.inodes += 1
        return mount

    def put(self, mount: Mount) -> None:
        """Count one inode less; the last one closes the mount."""
        mount.inodes -= 1
        if not mount.inodes:
            if self._by_id.get(mount.ident) is mount:
                del self._by_id[mount.ident]
            self.release(mount)

    def find(self, ident: int) -> Mount | None:
        """Return the mount with this id; None if no inode is on it."""
        return self._by_id.get(ident)

    def release(self, mount: Mount) -> None:
        """Close a mount's descriptor, if it has one."""
        if mount.fd >= 0:
            os.close(mount.fd)
            mount.fd = -1

    def remove(self, mount: Mount) -> None:
        """Take out a mount that the host has unmounted, while inodes of it are still counted."""
        del self._by_id[mount.ident]

    def all(self) -> Iterable[Mount]:
        """Return the mounts in the table."""
        return self._by_id.values()

    def restore(self, mount: Mount) -> None:
        """Add a mount whose inodes will follow, and take ownership of its descriptor."""
        if mount.ident not in self._by_id:
            self._by_id[mount.ident] = mount
        elif mount.fd >= 0:
            os.close(mount.fd)

    def count_restored(self, ident: int) -> Mount:
        """Return the restored mount with this id, and count an inode; ``KeyError``."""
        mount = self._by_id[ident]
        mount.inodes += 1
        return mount

    def _open(self, mount: Mount, key: bytes, fd: int) -> None:
        try:
            mount.fd = open_mount(key, fd, mount.is_own)
            mount.by_handle = True
        except OSError as error:
            if self._mandatory or error.errno in OUT_OF_DESCRIPTORS:
                raise
            _log.info(
                "a file system in the share has no usable file handles (%s): using descriptors",
                error.strerror,
            )
            mount.refused = True


def open_mount(key: bytes, fd: int, own: bool) -> int:
    """Return a descriptor of a mount, opened by a directory's key and descriptor.

    It is for ``open_handle`` if ``own``, else for ``open_handle_in``. The caller owns it.
    ``OSError``: opening the directory by its handle fails.
    """
    flags = os.O_DIRECTORY | os.O_CLOEXEC | (os.O_RDONLY if own else os.O_PATH)
    mount_fd = os.open(".", flags, dir_fd=fd)
    try:
        if file_system_type(mount_fd) in _FORGETFUL:
            raise OSError(errno.EOPNOTSUPP, "handles of FUSE and vfat work for a while only")
        os.close((open_handle if own else open_handle_in)(mount_fd, handle_of(key)))
    except OSError:
        os.close(mount_fd)
        raise
    return mount_fd
