# SPDX-License-Identifier: Apache-2.0
"""The state that all operations of the passthrough file system share."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from farwatchd.fuse.filesystem import Entry, Requester
from farwatchd.inode_store.remote_mounts import RemoteMounts
from farwatchd.inode_store.store import HostInode, InodeStore
from farwatchd.linux.libc import failure
from farwatchd.passthrough.creds import Credentials
from farwatchd.passthrough.inode_table import GENERATION, Inode, InodeTable
from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.open_file_table import OpenFileTable
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.procfd import ProcFd, open_at
from farwatchd.passthrough.set_id_bits import cleared


class ShareState:
    """The shared directory, its tables, and what INIT negotiated.

    It owns the descriptors in its tables of inodes, open files and locks.
    """

    def __init__(
        self, root: Path | int, options: ShareOptions, store: InodeStore | None = None
    ) -> None:
        """Open the share.

        ``root``: a path, or an O_PATH descriptor of a directory, whose ownership is taken.
        ``store``: has the host's inodes; by default one that references them by descriptor.
        """
        root_fd = (
            root
            if isinstance(root, int)
            else open_at(os.fsencode(root), os.O_PATH | os.O_DIRECTORY)
        )
        self.options = options
        self.proc = ProcFd()
        self.credentials = Credentials(options.id_translation)
        if store is None:
            store = InodeStore()
        self.inodes = InodeTable(root_fd, store, options.max_inodes)
        self.open_files = OpenFileTable(store.budget, self._close_remote)
        self.remote_mounts = RemoteMounts()
        #: Runs what may wait for a server, and whose result nobody needs.
        self.run_aside: Callable[[Callable[[], None]], None] = _run
        self.locks = LockTable(store.budget)
        store.needed = self._open_in_guest
        self.posix_acls = False
        self.writeback = False

    def set_negotiated(self, *, posix_acls: bool, writeback: bool) -> None:
        """Record what INIT negotiated."""
        self.posix_acls = posix_acls
        self.writeback = writeback

    def reset(self) -> None:
        """Forget all inodes but the root, close all files, release all locks."""
        self.locks.clear()
        self.open_files.clear()
        self.inodes.clear()

    def close(self) -> None:
        """Release everything, the root too; the share cannot be used any more."""
        self.locks.clear()
        self.open_files.clear()
        self.inodes.close()

    def existing(self, nodeid: int) -> Inode:
        """Return the inode, open; ESTALE if it is unlinked and the guest does not have it open.

        Upon ESTALE Linux looks the name up again, which may have another inode by now. Otherwise
        the guest would use the unlinked inode for as long as it caches the name.
        """
        inode = self.inodes.get(nodeid)
        if inode.named and not self.open_files.any_of(nodeid) and not os.fstat(inode.fd).st_nlink:
            raise failure(errno.ESTALE)
        return inode

    def _close_remote(self, fd: int) -> None:
        """Close a file, which may wait for the server that has it."""
        self.run_aside(partial(os.close, fd))

    def _open_in_guest(self, host_inode: HostInode) -> bool:
        nodeid = self.inodes.nodeid(host_inode)
        return nodeid is not None and self.open_files.any_of(nodeid)

    def missing(self, *directories: Inode) -> OSError:
        """Return the error for a missing name: ESTALE if one of the directories is unlinked."""
        return failure(errno.ESTALE if any(map(self.removed, directories)) else errno.ENOENT)

    def removed(self, inode: Inode) -> bool:
        """Return whether the inode had a name once and has none now."""
        return inode.named and not os.fstat(self.inodes.get(inode.nodeid).fd).st_nlink

    def refuse_if_readonly(self) -> None:
        """Raise EROFS if the share is read-only."""
        if self.options.readonly:
            raise failure(errno.EROFS)

    def set_security_xattrs(self, requester: Requester, fd: int) -> None:
        """Set the security xattrs of a new inode that the request carries.

        EINVAL: they are off.
        """
        if requester.security_xattrs and not self.options.security_labels:
            raise failure(errno.EINVAL)
        for name, value in requester.security_xattrs:
            os.setxattr(self.proc.path(fd), self.host_xattr(name), value)

    def host_xattr(self, name: bytes) -> bytes:
        """Return the host's name of the guest's extended attribute ``name``."""
        return self.options.xattrmap.to_host(name) if self.options.xattrmap else name

    def status_for_guest(self, status: os.stat_result) -> os.stat_result:
        """Return attributes with the guest's ids in the place of the host's."""
        translation = self.options.id_translation
        return status if translation is None else translation.status_for_guest(status)

    def entry(self, found: tuple[Inode, os.stat_result], parent: Inode | None = None) -> Entry:
        """Return the entry of an inode that was found in the directory ``parent``.

        Without ``parent`` the inode is no mount point.
        """
        inode, status = found
        submount = (
            inode.kind == stat.S_IFDIR
            and parent is not None
            and self.options.announce_submounts
            and _is_mount_point(found, parent)
        )
        return Entry(inode.nodeid, GENERATION, self.status_for_guest(status), submount)


class Operations:
    """The base of each group of operations: it has the share and nothing of the other groups."""

    def __init__(self, share: ShareState) -> None:
        self._share = share
        self._options = share.options
        self._proc = share.proc
        self._credentials = share.credentials
        self._inodes = share.inodes
        self._open_files = share.open_files
        self._locks = share.locks

    def _changing(self, fd: int, kill_suidgid: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a file's content changes, in any thread.

        ``kill_suidgid``: its set-id bits are cleared.
        """
        return cleared(fd, self._proc.path(fd)) if kill_suidgid else contextlib.nullcontext()


def _run(call: Callable[[], None]) -> None:
    call()


def remove_if_same(
    remove: Callable[..., None], directory: int, name: bytes, made: os.stat_result
) -> None:
    """Remove a name that was made, unless another process has given it to another inode since."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            remove(name, dir_fd=directory)


def _is_mount_point(found: tuple[Inode, os.stat_result], parent: Inode) -> bool:
    inode, status = found
    return (
        inode.host_inode.mount_id != parent.host_inode.mount_id
        or status.st_dev != os.fstat(parent.fd).st_dev
    )
