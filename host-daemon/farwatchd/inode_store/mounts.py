# SPDX-License-Identifier: Apache-2.0
"""The mounts of the stored inodes, each with a descriptor to open its inodes by handle.

The host reuses the ids of mounts. While the table has a mount, its descriptor or an
inode on it keeps the mount, and so its id.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from farwatchd.linux.file_handles import handle_of, mount_of, open_handle
from farwatchd.linux.syscalls import file_system_type

_log = logging.getLogger(__name__)

#: ``FUSE_SUPER_MAGIC``, ``MSDOS_SUPER_MAGIC``: such a file system does not find an inode by its
#: handle once it has evicted the inode. vfat does with the mount option ``nfs=nostale_ro``, which
#: it does not show.
_FORGETFUL = (0x65735546, 0x4D44)


@dataclass(slots=True, eq=False)
class Mount:
    """A mount.

    ``fd`` is -1 while inodes cannot be opened by handle, and stays so where the file system has
    refused (``refused``). ``inodes`` counts the inodes on the mount.
    """

    ident: int
    fd: int = -1
    refused: bool = False
    inodes: int = 0


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
            mount = Mount(ident, refused=remote and not self._mandatory)
        if mount.fd < 0 and not mount.refused and stat.S_ISDIR(mode):
            self._open(mount, key, fd)
        self._by_id[ident] = mount
        mount.inodes += 1
        return mount

    def put(self, mount: Mount) -> None:
        """Count one inode less; the last one closes the mount."""
        mount.inodes -= 1
        if not mount.inodes:
            del self._by_id[mount.ident]
            if mount.fd >= 0:
                os.close(mount.fd)

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
            mount.fd = open_mount(key, fd)
        except OSError as error:
            if self._mandatory or error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            _log.info(
                "a file system in the share has no usable file handles (%s): using descriptors",
                error.strerror,
            )
            mount.refused = True


def open_mount(key: bytes, fd: int) -> int:
    """Return a descriptor for ``open_handle``, opened by a directory's key and descriptor.

    The caller owns it. ``OSError``: opening the directory by its handle fails.
    """
    mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        if file_system_type(mount_fd) in _FORGETFUL:
            raise OSError(errno.EOPNOTSUPP, "handles of FUSE and vfat work for a while only")
        os.close(open_handle(mount_fd, handle_of(key)))
    except OSError:
        os.close(mount_fd)
        raise
    return mount_fd
