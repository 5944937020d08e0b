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
from typing import NamedTuple

from farwatchd.fuse.filesystem import (
    Entry,
    OpenResult,
    OperationDeferred,
    Requester,
)
from farwatchd.linux.libc import failure
from farwatchd.passthrough.cache_flags import FILE_FLAGS
from farwatchd.passthrough.inode_table import Inode, RemoteMountError
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.procfd import as_systems_limit, open_at
from farwatchd.passthrough.share import (
    FoundName,
    Operations,
    ShareState,
    check_name_left,
    examine,
    find,
    no_result,
    remove_if_same,
)
from farwatchd.passthrough.tasks import Owned

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


class _Created(NamedTuple):
    """A file that a thread has made and opened."""

    owned: Owned
    found: FoundName


class OpenOperations(Operations):
    """Operations that open and close files."""

    def __init__(self, share: ShareState) -> None:
        super().__init__(share)
        self._file_flags = FILE_FLAGS[share.options.cache]
        self._passed = passed_flags(share.options)

    def open(self, nodeid: int, flags: int, kill_suidgid: bool) -> OpenResult:
        """Open a regular file; ``kill_suidgid``: if it is truncated, clear its set-id bits."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._share.refuse_if_readonly()
        inode = self._inodes.get(nodeid)
        remote = inode.host_inode.remote
        unnamed_is_stale = self._share.is_stale_without_name(inode)
        if unnamed_is_stale and not remote:
            check_name_left(inode.fd)
        if not stat.S_ISREG(inode.kind):
            raise _cannot_open(inode)
        self._open_files.check_room()
        flags = self._flags(flags)
        if remote:
            raise self._share.later(
                lambda own_fd: self._reopen_remote(own_fd, flags, kill_suidgid, unnamed_is_stale),
                lambda owned: self._opened(self._inodes.get(nodeid), owned.take(), flags),
                inode.fd,
            )
        try:
            fd = self._reopen(inode.fd, flags | os.O_NONBLOCK, kill_suidgid)
        except BlockingIOError:
            if flags & os.O_NONBLOCK:
                raise
        else:
            return self._opened(inode, fd, flags)
        # The kernel has asked the holder of a lease to release it, which may take long.
        raise self._share.later(
            lambda own_fd: Owned(self._reopen(own_fd, flags, kill_suidgid)),
            lambda owned: self._opened(self._inodes.get(nodeid), owned.take(), flags),
            inode.fd,
        )

    def _reopen_remote(
        self, fd: int, flags: int, kill_suidgid: bool, unnamed_is_stale: bool
    ) -> Owned:
        """Open a file of a remote file system again, in any thread."""
        if unnamed_is_stale:
            check_name_left(fd)
        return Owned(self._reopen(fd, flags, kill_suidgid), self._share.close_remote)

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
        if directory.remote:
            mount, named = directory.host_inode.mount_id, directory.named

            def create(fd: int) -> _Created | FoundName:
                made = self._create_remote(
                    requester, fd, named, name, mode, exclusive, umask, mount
                )
                if made is not None:
                    return made
                found = None if flags & os.O_EXCL else find(fd, name, mount)
                if found is None:
                    raise failure(errno.EEXIST if flags & os.O_EXCL else errno.ENOENT)
                return found

            return self._share.make_remote(
                directory,
                create,
                lambda result: self._complete_create(result, flags, own, kill_suidgid),
            )
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
        try:
            found = self._inodes.lookup(directory, name)
        except RemoteMountError:
            # A file is mounted there, and the guest, which did not know it, looks it up again.
            raise failure(errno.ESTALE) from None
        if found is None:
            raise failure(errno.ENOENT)
        return self._open_entry(self._share.entry(found), flags, kill_suidgid)

    def _open_entry(self, entry: Entry, flags: int, kill_suidgid: bool) -> tuple[Entry, OpenResult]:
        """Open what was looked up; if that fails, the guest gets no entry: subtract its lookup."""
        return entry, self._or_forget(entry, lambda: self.open(entry.nodeid, flags, kill_suidgid))

    def _or_forget(self, entry: Entry, call: Callable[[], OpenResult]) -> OpenResult:
        """Call ``call``, which may be deferred; if it fails, subtract a lookup."""
        try:
            return call()
        except OperationDeferred as deferred:
            complete = deferred.complete
            raise OperationDeferred(
                deferred.task,
                lambda result: (entry, self._or_forget(entry, lambda: complete(result))),
            ) from None
        except BaseException:
            self._inodes.forget(entry.nodeid, 1)
            raise

    def _create_remote(
        self,
        requester: Requester,
        directory: int,
        named: bool,
        name: bytes,
        mode: int,
        flags: int,
        umask: int,
        mount: int,
    ) -> _Created | None:
        """Make and open a file, in any thread; return None if the name exists."""
        try:
            with self._credentials.of(requester, umask):
                fd = open_at(name, flags, stat.S_IMODE(mode), dir_fd=directory)
        except FileNotFoundError:
            raise self._share.missing_in((directory, named)) from None
        except FileExistsError:
            return None
        owned = Owned(fd, self._share.close_remote)
        try:
            return self._examine_created(requester, owned, mount)
        except BaseException:
            remove_if_same(os.unlink, directory, name, os.fstat(fd))
            raise

    def _examine_created(self, requester: Requester, owned: Owned, mount: int) -> _Created:
        """Set the security xattrs of a new file, and open it with O_PATH, in any thread."""
        self._share.set_security_xattrs(requester, owned.fd)
        return _Created(owned, examine(Owned(self._proc.reopen(owned.fd, os.O_PATH)), mount))

    def _complete_create(
        self, result: _Created | FoundName, flags: int, own_flags: int, kill_suidgid: bool
    ) -> tuple[Entry, OpenResult]:
        """Count a lookup of what a thread has made or found; open it unless that was done."""
        found = result.found if isinstance(result, _Created) else result
        entry = self._share.entry(
            self._inodes.adopt_found(found.owned.take(), found.status, found.remote)
        )
        if not isinstance(result, _Created):
            return self._open_entry(entry, flags, kill_suidgid)
        inode = self._inodes.get(entry.nodeid)
        return entry, self._or_forget(
            entry, lambda: self._opened(inode, result.owned.take(), own_flags)
        )

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
        if directory.remote:
            mount = directory.host_inode.mount_id

            def create_unnamed(directory_fd: int) -> _Created:
                with self._credentials.of(requester, umask):
                    fd = open_at(b".", nameless, stat.S_IMODE(mode), dir_fd=directory_fd)
                return self._examine_created(requester, Owned(fd, self._share.close_remote), mount)

            return self._share.make_remote(
                directory,
                create_unnamed,
                lambda result: self._complete_create(result, flags, own, False),
            )
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

    def flush(self, nodeid: int, fh: int) -> None:
        """Report what close(2) would, for a guest process that closes one of its descriptors."""
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.later(_close_duplicate, no_result, file.fd)
        _close_duplicate(file.fd)

    def _flags(self, flags: int) -> int:
        flags &= self._passed
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
        fh = self._open_files.add(inode.nodeid, fd, flags, append_only, inode.host_inode.remote)
        return OpenResult(fh, self._file_flags)


def passed_flags(options: ShareOptions) -> int:
    """Return the open(2) flags of the guest that reach the host."""
    flags = _PASSED
    if not options.allow_direct_io:
        flags &= ~os.O_DIRECT
    if not options.preserve_noatime:
        flags &= ~os.O_NOATIME
    return flags


def _close_duplicate(fd: int) -> None:
    """Close a duplicate of ``fd``, so that the file system sees a process that closes the file."""
    try:
        os.close(os.dup(fd))
    except OSError as error:
        raise as_systems_limit(error) from None


def _cannot_open(inode: Inode) -> OSError:
    if inode.is_dir:
        return failure(errno.EISDIR)
    return failure(errno.ELOOP if stat.S_ISLNK(inode.kind) else errno.ENXIO)
