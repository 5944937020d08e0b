# SPDX-License-Identifier: Apache-2.0
"""The mounts that objects are on, each with the descriptor through which its objects are opened by
handle.

A mount is kept while an object of it is, so its id, which the host uses again, stays its own.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass

from farwatchd.linux.file_handles import handle_of, mount_of, open_handle
from farwatchd.linux.syscalls import file_system_type

_log = logging.getLogger(__name__)

#: A FUSE file system forgets the handles of what it has no use for at the moment
#: (``FUSE_SUPER_MAGIC``).
_FORGETFUL = 0x65735546


@dataclass(slots=True, eq=False)
class Mount:
    """A mount. ``fd`` is -1 while, and where (``refused``), objects cannot be opened by handle;
    ``objects`` counts."""

    ident: int
    fd: int = -1
    refused: bool = False
    objects: int = 0


class MountTable:
    """The mounts by their ids. ``mandatory``: a mount on which handles do not work is an error."""

    def __init__(self, mandatory: bool) -> None:
        self._mandatory = mandatory
        self._by_id: dict[int, Mount] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def hold(self, key: bytes, fd: int, mode: int) -> Mount:
        """The mount of the object that has that key (``HandleReader``), descriptor and mode; counts
        the object.

        A directory is needed to open the mount. It is entered by its root, so that is seen first,
        and what is seen before is a single file that is mounted: a descriptor for its mount would
        be one more than for the file.
        """
        ident = mount_of(key)
        mount = self._by_id.get(ident)
        if mount is None:
            mount = Mount(ident)
        if mount.fd < 0 and not mount.refused and stat.S_ISDIR(mode):
            self._open(mount, key, fd)
        self._by_id[ident] = mount
        mount.objects += 1
        return mount

    def release(self, mount: Mount) -> None:
        """One object less; the last one ends the mount."""
        mount.objects -= 1
        if not mount.objects:
            del self._by_id[mount.ident]
            if mount.fd >= 0:
                os.close(mount.fd)

    def _open(self, mount: Mount, key: bytes, fd: int) -> None:
        try:
            mount.fd = open_mount(key, fd)
        except OSError as error:
            if self._mandatory or error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            _log.info(
                "a file system in the share has no file handles of use (%s): descriptors serve",
                error.strerror,
            )
            mount.refused = True


def open_mount(key: bytes, fd: int) -> int:
    """A descriptor for ``open_handle`` from a directory's key and descriptor, tried out;
    ``OSError`` if it fails."""
    mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        if file_system_type(mount_fd) == _FORGETFUL:
            raise OSError(errno.EOPNOTSUPP, "FUSE keeps no file handles")
        os.close(open_handle(mount_fd, handle_of(key)))
    except OSError:
        os.close(mount_fd)
        raise
    return mount_fd
