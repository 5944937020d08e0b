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
from typing import Any, NamedTuple, TypeVar

from farwatchd.fuse.filesystem import Entry, OperationDeferred, Requester
from farwatchd.inode_store.store import HostInode, InodeStore
from farwatchd.linux.libc import failure
from farwatchd.linux.remote_file_systems import is_remote
from farwatchd.linux.syscalls import mount_id, open_path
from farwatchd.passthrough.changes import StateChanges
from farwatchd.passthrough.creds import Credentials
from farwatchd.passthrough.inode_table import GENERATION, Inode, InodeTable
from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.open_file_table import OpenFileTable
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.procfd import ProcFd, as_systems_limit, open_at
from farwatchd.passthrough.set_id_bits import cleared
from farwatchd.passthrough.tasks import Owned, deferred

T = TypeVar("T")
R = TypeVar("R")


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
        self.open_files = OpenFileTable(store.budget, self.close_remote)
        #: How many sessions have ended.
        self.ended = 0
        #: Runs what may wait for a server, and whose result nobody needs.
        self.run_aside: Callable[[Callable[[], None]], None] = _run
        #: Whether a task may set the umask(2). Else the loop makes files, also where it may wait.
        self.own_umask: Callable[[], bool] = lambda: True
        self.locks = LockTable(store.budget, self.close_remote)
        store.needed = self._open_in_guest
        self.posix_acls = False
        self.writeback = False

    def set_negotiated(self, *, posix_acls: bool, writeback: bool) -> None:
        """Record what INIT negotiated."""
        self.posix_acls = posix_acls
        self.writeback = writeback

    def record_changes(self, changes: StateChanges) -> None:
        """Have ``changes`` get what changes from now on."""
        self.inodes.changes = self.open_files.changes = self.locks.changes = changes

    def reset(self) -> None:
        """Forget all inodes but the root, close all files, release all locks."""
        self.ended += 1
        self.locks.clear()
        self.open_files.clear()
        self.inodes.clear()

    def close(self) -> None:
        """Release everything, the root too; the share cannot be used any more."""
        self.locks.clear()
        self.open_files.clear()
        self.inodes.close()

    def later(
        self, call: Callable[..., T], complete: Callable[[T], Any], *fds: int
    ) -> OperationDeferred:
        """Return what an operation raises for a remote file system: see ``deferred``.

        If the session has ended before ``complete``, nobody waits for the result.
        """
        ended = self.ended

        def completed(result: T) -> Any:
            if ended != self.ended:
                raise failure(errno.ESTALE)
            return complete(result)

        return deferred(call, completed, *fds)

    def when_answering(self, call: Callable[[], T], fd: int) -> OperationDeferred:
        """Return what an operation raises that is to run in the loop once a server answers.

        ``fd``: a file that the server has.
        """
        return self.later(_ask_server, lambda _: call(), fd)

    def make_remote(
        self, directory: Inode, call: Callable[[int], T], complete: Callable[[T], R]
    ) -> R:
        """Make a file in a remote directory: return ``complete(call(fd))``.

        This is deferred to a thread, unless threads have no umask of their own.
        """
        if self.own_umask():
            raise self.later(call, complete, directory.fd)
        return complete(call(directory.fd))

    def waiting_where_remote(self, inode: Inode, call: Callable[[int], T]) -> T:
        """Return the result of ``call`` with an inode's descriptor.

        Where the file system is remote this is deferred to a thread.
        """
        if inode.host_inode.remote:
            raise self.later(call, _same, inode.fd)
        return call(inode.fd)

    def is_stale_without_name(self, inode: Inode) -> bool:
        """Return whether the inode is of no use if it has no name: see ``existing``."""
        return inode.named and not self.open_files.any_of(inode.nodeid)

    def existing(self, nodeid: int) -> Inode:
        """Return the inode, open; ESTALE if it is unlinked and the guest does not have it open.

        Upon ESTALE Linux looks the name up again, which may have another inode by now. Otherwise
        the guest would use the unlinked inode for as long as it caches the name.
        """
        inode = self.inodes.get(nodeid)
        if self.is_stale_without_name(inode):
            check_name_left(inode.fd)
        return inode

    def close_remote(self, fd: int) -> None:
        """Close a file, which may wait for the server that has it."""
        self.run_aside(partial(os.close, fd))

    def _open_in_guest(self, host_inode: HostInode) -> bool:
        nodeid = self.inodes.nodeid(host_inode)
        return nodeid is not None and self.open_files.any_of(nodeid)

    def missing(self, *directories: Inode) -> OSError:
        """Return the error for a missing name: ESTALE if one of the directories is unlinked."""
        return failure(errno.ESTALE if any(map(self.removed, directories)) else errno.ENOENT)

    def missing_in(self, *directories: tuple[int, bool]) -> OSError:
        """Return the same, in any thread, for descriptors and whether they had a name once."""
        removed = any(named and not os.fstat(fd).st_nlink for fd, named in directories)
        return failure(errno.ESTALE if removed else errno.ENOENT)

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


class FoundName(NamedTuple):
    """What a thread has found by a name: an O_PATH descriptor, and what a server knows of it.

    ``remote``: whether it is on a remote file system; None if that was known before.
    """

    owned: Owned
    status: os.stat_result
    remote: bool | None = None


def find(directory: int, name: bytes, known_mount: int) -> FoundName | None:
    """Look up a name, in any thread; return None if there is no such name.

    ``known_mount``: the id of a mount of which the store knows whether it is remote.
    """
    fd = open_path(directory, name)
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise as_systems_limit(failure(-fd))
    return examine(Owned(fd), known_mount)


def examine(owned: Owned, known_mount: int) -> FoundName:
    """Return what a server knows of an O_PATH descriptor, in any thread."""
    status = os.fstat(owned.fd)
    remote = None if mount_id(owned.fd) == known_mount else is_remote(owned.fd)
    return FoundName(owned, status, remote)


def _ask_server(fd: int) -> None:
    """Ask for attributes of a file and its file system, in any thread; return with the answers."""
    with contextlib.suppress(OSError):
        os.fstat(fd)
        os.fstatvfs(fd)


def check_name_left(fd: int) -> None:
    """Raise ESTALE if an inode has no name, in any thread."""
    if not os.fstat(fd).st_nlink:
        raise failure(errno.ESTALE)


def no_result(_: object) -> None:
    """Complete an operation that has no result."""


def _run(call: Callable[[], None]) -> None:
    call()


def _same(result: T) -> T:
    return result


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
    if inode.host_inode.mount_id != parent.host_inode.mount_id:
        return True
    return not inode.host_inode.remote and status.st_dev != os.fstat(parent.fd).st_dev
