# SPDX-License-Identifier: Apache-2.0
"""Opens, creates and closes files.

Only regular files are ever opened: the guest handles other file types itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

from farwatchd.fuse.filesystem import (
    Entry,
    OpenResult,
    OperationDeferred,
    Requester,
    Task,
)
from farwatchd.linux.libc import failure
from farwatchd.passthrough.cache_flags import FILE_FLAGS
from farwatchd.passthrough.inode_table import Inode
from farwatchd.passthrough.procfd import open_at, own_limit_as_systems
from farwatchd.passthrough.share import Operations, ShareState, remove_if_same
from farwatchd.passthrough.tasks import descriptor, on_files, on_files_or_errno

#: The open(2) flags that concern the host's file; the guest's kernel implements all others.
_PASSED = (
    os.O_ACCMODE
    | os.O_APPEND
    | os.O_TRUNC
    | os.O_NONBLOCK
    | os.O_SYNC
    | os.O_DSYNC
    | os.O_DIRECT
    | os.O_LARGEFILE
    | os.O_NOATIME
)


class OpenOperations(Operations):
    """Operations that open and close files."""

    def __init__(self, share: ShareState) -> None:
        super().__init__(share)
        self._file_flags = FILE_FLAGS[share.options.cache]

    def open(self, nodeid: int, flags: int, kill_suidgid: bool) -> OpenResult:
        """Open a regular file; ``kill_suidgid``: if it is truncated, clear its set-id bits."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._share.refuse_if_readonly()
        inode = self._share.existing(nodeid)
        if not stat.S_ISREG(inode.kind):
            raise _cannot_open(inode)
        self._open_files.check_room()
        flags = self._flags(flags)
        try:
            fd = self._reopen(inode.fd, flags | os.O_NONBLOCK, kill_suidgid)
        except BlockingIOError:
            if flags & os.O_NONBLOCK:
                raise
        else:
            return self._opened(inode, fd, flags)
        # The kernel has asked the holder of a lease to release it, which may take long.
        raise OperationDeferred(
            on_files_or_errno(lambda own_fd: self._reopen(own_fd, flags, kill_suidgid), inode.fd),
            lambda fd: self._opened_later(nodeid, descriptor(fd), flags),
        )

    def _opened_later(self, nodeid: int, fd: int, flags: int) -> OpenResult:
        """Add a descriptor that a task has opened, unless the guest has forgotten the inode."""
        try:
            return self._opened(self._inodes.get(nodeid), fd, flags)
        except BaseException:
            os.close(fd)
            raise

    def _reopen(self, fd: int, flags: int, kill_suidgid: bool) -> int:
        """Open a file again, in any thread."""
        if kill_suidgid:
            with self._changing(fd, kill_suidgid):
                return self._reopen(fd, flags, False)
        try:
            return self._proc.reopen(fd, flags & ~os.O_APPEND)
        except PermissionError as error:
            # An append-only file (chattr +a) is opened to append or not at all.
            if not flags & os.O_APPEND or error.errno != errno.EPERM:
                raise
            return self._proc.reopen(fd, flags)

    def create(
        self,
        requester: Requester,
        parent: int,
        name: bytes,
        mode: int,
        flags: int,
        umask: int,
        kill_suidgid: bool,
    ) -> tuple[Entry, OpenResult]:
        """Make and open a file, or open an existing one.

        EEXIST: the file exists and ``flags`` have O_EXCL.
        """
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        # The inode may need a descriptor, too.
        self._open_files.check_room(1)
        own = self._flags(flags)
        exclusive = own & ~os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with self._credentials.of(requester, umask):
                fd = open_at(name, exclusive, stat.S_IMODE(mode), dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
        else:
            try:
                return self._created(requester, fd, own)
            except BaseException:
                remove_if_same(os.unlink, self._inodes.get(parent).fd, name, os.fstat(fd))
                os.close(fd)
                raise
        found = self._inodes.lookup(directory, name)
        if found is None:
            raise failure(errno.ENOENT)
        entry = self._share.entry(found)
        try:
            return entry, self.open(entry.nodeid, flags, kill_suidgid)
        except OperationDeferred as deferred:
            complete = deferred.complete
            raise OperationDeferred(
                deferred.task, lambda fd: (entry, self._or_forget(entry, lambda: complete(fd)))
            ) from None
        except BaseException:
            self._inodes.forget(entry.nodeid, 1)
            raise

    def _or_forget(self, entry: Entry, call: Callable[[], OpenResult]) -> OpenResult:
        """Call ``call``; if it fails, the guest gets no entry, so subtract its lookup."""
        try:
            return call()
        except BaseException:
            self._inodes.forget(entry.nodeid, 1)
            raise

    def tmpfile(
        self, requester: Requester, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[Entry, OpenResult]:
        """Make and open a file without a name.

        ``link`` may give it one unless ``flags`` have O_EXCL.
        """
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        self._open_files.check_room(1)
        own = self._flags(flags)
        nameless = own & ~os.O_APPEND | os.O_TMPFILE | flags & os.O_EXCL
        try:
            with self._credentials.of(requester, umask):
                fd = open_at(b".", nameless, stat.S_IMODE(mode), dir_fd=directory.fd)
        except OSError:
            # ext4 says EPERM of a directory that was removed, others ENOENT.
            if self._share.removed(directory):
                raise failure(errno.ESTALE) from None
            raise
        try:
            return self._created(requester, fd, own)
        except BaseException:
            os.close(fd)
            raise

    def flush(self, nodeid: int, fh: int) -> Task | None:
        """Report what close(2) would, for a guest process that closes one of its descriptors.

        By a task where a server is waited for.
        """
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            return on_files(_close_duplicate, file.fd)
        _close_duplicate(file.fd)
        return None

    def _flags(self, flags: int) -> int:
        flags &= _PASSED
        if not self._options.allow_direct_io:
            flags &= ~os.O_DIRECT
        if not self._options.preserve_noatime:
            flags &= ~os.O_NOATIME
        if self._share.writeback:
            if flags & os.O_ACCMODE == os.O_WRONLY:
                flags = flags & ~os.O_ACCMODE | os.O_RDWR
            flags &= ~os.O_APPEND
        return flags

    def _created(self, requester: Requester, fd: int, flags: int) -> tuple[Entry, OpenResult]:
        """Take ownership of the descriptor of a new file, unless this fails."""
        # By the descriptor and not by name, which may mean something else already.
        self._share.set_security_xattrs(requester, fd)
        found = self._inodes.adopt(self._proc.reopen(fd, os.O_PATH))
        return self._share.entry(found), self._opened(found[0], fd, flags)

    def _opened(self, inode: Inode, fd: int, flags: int) -> OpenResult:
        append_only = bool(flags & os.O_APPEND and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        remote = self._share.remote_mounts.has(inode.host_inode.mount_id, fd)
        fh = self._open_files.add(inode.nodeid, fd, flags, append_only, remote)
        return OpenResult(fh, self._file_flags)


def _close_duplicate(fd: int) -> int:
    """Close a duplicate of ``fd``, so that the file system sees a process that closes the file."""
    with own_limit_as_systems():
        os.close(os.dup(fd))
    return 0


def _cannot_open(inode: Inode) -> OSError:
    if inode.is_dir:
        return failure(errno.EISDIR)
    return failure(errno.ELOOP if stat.S_ISLNK(inode.kind) else errno.ENXIO)
