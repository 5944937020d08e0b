# SPDX-License-Identifier: Apache-2.0
"""What all operations of the passthrough file system work with: its tables, options and
credentials."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from farwatchd.fuse.filesystem import Caller, Entry
from farwatchd.inode_store.store import HostObject, ObjectTable
from farwatchd.linux.libc import failure
from farwatchd.passthrough.creds import Credentials
from farwatchd.passthrough.inode_table import GENERATION, Inode, InodeTable
from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.open_file_table import HandleTable
from farwatchd.passthrough.options import Options
from farwatchd.passthrough.procfd import ProcFd, open_at


class Share:
    """The shared directory, what the guest knows and has open of it, and what INIT agreed on.

    It owns the descriptors in its tables.
    """

    def __init__(
        self, root: Path | int, options: Options, objects: ObjectTable | None = None
    ) -> None:
        """Open the share.

        ``root``: a path, or an O_PATH descriptor of a directory, whose ownership is taken.
        ``objects``: holds the host's inodes; by descriptor unless given.
        """
        root_fd = (
            root
            if isinstance(root, int)
            else open_at(os.fsencode(root), os.O_PATH | os.O_DIRECTORY)
        )
        self.options = options
        self.proc = ProcFd()
        self.credentials = Credentials(options.owners)
        if objects is None:
            objects = ObjectTable()
        self.inodes = InodeTable(root_fd, objects, options.max_inodes)
        self.handles = HandleTable(objects.budget)
        self.locks = LockTable(objects.budget)
        objects.needed = self._open_in_guest
        self.posix_acls = False
        self.writeback = False

    def agree(self, *, posix_acls: bool, writeback: bool) -> None:
        """Take note of what INIT agreed on."""
        self.posix_acls = posix_acls
        self.writeback = writeback

    def reset(self) -> None:
        """Forget all inodes but the root, close all files, release all locks."""
        self.locks.clear()
        self.handles.clear()
        self.inodes.clear()

    def close(self) -> None:
        """Release everything, the root too; the share cannot be used any more."""
        self.locks.clear()
        self.handles.clear()
        self.inodes.close()

    def existing(self, nodeid: int) -> Inode:
        """Return the inode, open; ESTALE if it was removed and the guest does not have it open.

        Upon ESTALE Linux looks the name up again, which may have another inode by now. Without it
        the guest would work on an inode that nobody can find, as long as it caches the name.
        """
        inode = self.inodes.get(nodeid)
        if self.removed(inode) and not self.handles.any_of(nodeid):
            raise failure(errno.ESTALE)
        return inode

    def _open_in_guest(self, held: HostObject) -> bool:
        nodeid = self.inodes.nodeid(held)
        return nodeid is not None and self.handles.any_of(nodeid)

    def missing(self, *directories: Inode) -> OSError:
        """Return the error of a name that is missing: ESTALE if a directory itself was removed."""
        return failure(errno.ESTALE if any(map(self.removed, directories)) else errno.ENOENT)

    def removed(self, inode: Inode) -> bool:
        """Return whether the inode had a name once and has none now."""
        return inode.named and not os.fstat(self.inodes.get(inode.nodeid).fd).st_nlink

    def refuse_if_readonly(self) -> None:
        """Raise EROFS if the share is read-only."""
        if self.options.readonly:
            raise failure(errno.EROFS)

    def set_security_xattrs(self, caller: Caller, fd: int) -> None:
        """Give a new inode the security xattrs that came with the request; EINVAL if they are
        off."""
        if caller.labels and not self.options.security_labels:
            raise failure(errno.EINVAL)
        for name, value in caller.labels:
            os.setxattr(self.proc.path(fd), self.host_xattr(name), value)

    def host_xattr(self, name: bytes) -> bytes:
        """Return the host's name of the guest's extended attribute ``name``."""
        return self.options.xattrmap.to_host(name) if self.options.xattrmap else name

    def seen(self, status: os.stat_result) -> os.stat_result:
        """Return attributes with the guest's ids in the place of the host's."""
        owners = self.options.owners
        return status if owners is None else owners.seen(status)

    def entry(self, found: tuple[Inode, os.stat_result], parent: Inode | None = None) -> Entry:
        """Return the entry of what was found in ``parent``, or of what can be no mount point."""
        inode, status = found
        submount = (
            inode.kind == stat.S_IFDIR
            and parent is not None
            and self.options.announce_submounts
            and _is_mount_point(found, parent)
        )
        return Entry(inode.nodeid, GENERATION, self.seen(status), submount)


class Operations:
    """The base of each group of operations: it has the share and nothing of the other groups."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._options = share.options
        self._proc = share.proc
        self._credentials = share.credentials
        self._inodes = share.inodes
        self._handles = share.handles
        self._locks = share.locks


def _is_mount_point(found: tuple[Inode, os.stat_result], parent: Inode) -> bool:
    inode, status = found
    return (
        inode.held.mount_id != parent.held.mount_id or status.st_dev != os.fstat(parent.fd).st_dev
    )
