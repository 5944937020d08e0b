# SPDX-License-Identifier: Apache-2.0
"""What all operations of the passthrough file system share: its tables, options and credentials."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from farwatchd.fuse.filesystem import Caller, Entry
from farwatchd.inode_store.store import ObjectTable
from farwatchd.linux.libc import failure
from farwatchd.passthrough.creds import Credentials
from farwatchd.passthrough.handle_table import HandleTable
from farwatchd.passthrough.inode_table import GENERATION, Inode, InodeTable
from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.options import Options
from farwatchd.passthrough.procfd import ProcFd, open_at


class Operations:
    """The base of each group of operations.

    ``root`` is a path, or an O_PATH descriptor of a directory that is taken over. ``objects`` are
    those that inodes are kept in, by descriptor unless given.
    """

    def __init__(
        self, root: Path | int, options: Options, objects: ObjectTable | None = None
    ) -> None:
        root_fd = (
            root
            if isinstance(root, int)
            else open_at(os.fsencode(root), os.O_PATH | os.O_DIRECTORY)
        )
        self._options = options
        self.valid = options.cache.seconds
        self._proc = ProcFd()
        self._owners = options.owners
        self._credentials = Credentials(options.owners)
        self._inodes = InodeTable(
            root_fd, objects if objects is not None else ObjectTable(), options.max_inodes
        )
        self._handles = HandleTable()
        self._locks = LockTable()
        self._posix_acls = False
        self._writeback = False

    def agree(self, *, posix_acls: bool, writeback: bool) -> None:
        """Take note of what INIT agreed on.

        ``posix_acls``: the guest knows ACLs; without, the attributes that hold them are hidden.
        ``writeback``: the guest caches writes, so it reads what it opened to write, and finds the
        end of a file itself when it appends.
        """
        self._posix_acls = posix_acls
        self._writeback = writeback

    def _existing(self, nodeid: int) -> Inode:
        """Return the inode, open; ESTALE if it was removed and the guest does not have it open.

        Upon ESTALE Linux looks the name up again, which may have another inode by now. Without it
        the guest would work on an inode that nobody can find, as long as it caches the name.
        """
        inode = self._inodes.get(nodeid)
        if self._removed(inode) and not self._handles.any_of(nodeid):
            raise failure(errno.ESTALE)
        return inode

    def _missing(self, *directories: Inode) -> OSError:
        """Return the error of a name that is missing: ESTALE if a directory itself was removed."""
        return failure(errno.ESTALE if any(map(self._removed, directories)) else errno.ENOENT)

    def _removed(self, inode: Inode) -> bool:
        return inode.named and not os.fstat(self._inodes.get(inode.nodeid).fd).st_nlink

    def _refuse_if_readonly(self) -> None:
        if self._options.readonly:
            raise failure(errno.EROFS)

    def _label(self, caller: Caller, fd: int) -> None:
        """Give a new inode the labels that it must have."""
        if caller.labels and not self._options.security_label:
            raise failure(errno.EINVAL)
        for name, value in caller.labels:
            os.setxattr(self._proc.path(fd), self._host_xattr(name), value)

    def _host_xattr(self, name: bytes) -> bytes:
        """What the guest's extended attribute ``name`` is called on the host."""
        return self._options.xattrmap.to_host(name) if self._options.xattrmap else name

    def _seen(self, status: os.stat_result) -> os.stat_result:
        """What the guest sees of it."""
        return status if self._owners is None else self._owners.seen(status)

    def _entry(self, found: tuple[Inode, os.stat_result], parent: Inode | None = None) -> Entry:
        """The entry of what was found in ``parent``, or of what can be no mount point."""
        inode, status = found
        submount = (
            inode.kind == stat.S_IFDIR
            and parent is not None
            and self._options.announce_submounts
            and _apart(found, parent)
        )
        return Entry(inode.nodeid, GENERATION, self._seen(status), submount)


def _apart(found: tuple[Inode, os.stat_result], parent: Inode) -> bool:
    inode, status = found
    return (
        inode.held.mount_id != parent.held.mount_id or status.st_dev != os.fstat(parent.fd).st_dev
    )
