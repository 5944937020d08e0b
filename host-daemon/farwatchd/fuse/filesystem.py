# SPDX-License-Identifier: Apache-2.0
"""The interface of the file system for the FUSE session, without wire formats.

What is made for every request is a named tuple: that takes half the time of a frozen dataclass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

#: The root's nodeid (``FUSE_ROOT_ID``).
ROOT = 1

#: The part of an operation that may block. The session calls it once, in any thread, while other
#: operations are performed; it returns the result of the operation and may raise ``OSError``. The
#: operation has raised the errors that it can find without blocking.
Task = Callable[[], int]
#: The part of a read or a write that may block; as ``Task``, but for its argument. That is memory
#: to read into, or the data to write, as large as the operation's. It is not the guest's memory,
#: which the guest may lose before the task has ended.
DataTask = Callable[[Sequence[memoryview]], int]


class RemoteTask:
    """A ``Task`` or ``DataTask`` that waits for a file server, and so may not end."""

    def __init__(self, call: Callable[..., int]) -> None:
        """``call`` is the task itself."""
        self.call = call

    def __call__(self, *data: Sequence[memoryview]) -> int:
        """Perform the task."""
        return self.call(*data)


class OperationDeferred(Exception):  # noqa: N818 - not an error
    """Raised by an operation that has to wait: for the holder of a lease, or a file server.

    ``task`` raises nothing, and is otherwise as ``Task`` describes it. ``complete`` is called once,
    in the thread of the session, with the result of ``task``; it returns the result of the
    operation, or raises ``OSError``, or ``OperationDeferred`` if the operation has to wait again.
    """

    def __init__(self, task: Callable[[], Any], complete: Callable[[Any], Any]) -> None:
        """Take the task, and what completes the operation."""
        super().__init__("the operation has to wait")
        self.task = task
        self.complete = complete

    def wait(self) -> Any:
        """Perform the operation in this thread, however long it waits; return its result."""
        deferred = self
        while True:
            try:
                return deferred.complete(deferred.task())
            except OperationDeferred as following:
                deferred = following

    def followed_by(self, then: Callable[[], Any]) -> OperationDeferred:
        """Return the same for an operation that goes on with ``then``, and has its result."""

        def complete(result: Any) -> Any:
            try:
                self.complete(result)
            except OperationDeferred as again:
                raise again.followed_by(then) from None
            return then()

        return OperationDeferred(self.task, complete)


class Requester(NamedTuple):
    """The uid, gid and pid for which the guest sends a request, in the guest's ids.

    ``group``: a supplementary group to create with (FUSE_CREATE_SUPP_GROUP), or -1.
    ``security_xattrs``: names and values that a new inode must have (FUSE_SECURITY_CTX).
    """

    uid: int
    gid: int
    pid: int
    group: int = -1
    security_xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Entry(NamedTuple):
    """The inode of a name. Each ``Entry`` that is returned adds 1 to its lookup count.

    ``stat``: its attributes. ``submount``: it is a mount point (FUSE_ATTR_SUBMOUNT).
    """

    nodeid: int
    generation: int
    stat: os.stat_result
    submount: bool = False


class OpenResult(NamedTuple):
    """An open file or directory: ``flags`` are FOPEN_*."""

    fh: int
    flags: int


@dataclass(frozen=True, slots=True)
class Changes:
    """SETATTR: None is unchanged. Times are nanoseconds since the epoch, or ``NOW``."""

    NOW = 1 << 100

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    fh: int | None = None
    kill_suidgid: bool = False


class Lock(NamedTuple):
    """A lock of the bytes from ``start`` to ``end``, both included.

    ``kind`` is F_RDLCK, F_WRLCK or F_UNLCK.
    """

    kind: int
    start: int
    end: int
    pid: int


class DirEntry(NamedTuple):
    """One directory entry.

    ``offset`` is where reading goes on after it (d_off), ``kind`` is DT_*.
    """

    name: bytes
    ino: int
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Statx:
    """The attributes of stat(2), and those that statx(2) adds.

    ``btime_ns``: the birth time in nanoseconds since the epoch, None if it is unknown.
    ``file_attributes`` and their mask: STATX_ATTR_*.
    """

    stat: os.stat_result
    btime_ns: int | None
    file_attributes: int
    file_attributes_mask: int


@dataclass(frozen=True, slots=True)
class WatchTarget:
    """An inode that is to be watched. ``fd`` is O_PATH and borrowed until the next operation."""

    generation: int
    fd: int
    is_dir: bool


class FileSystem(Protocol):
    """The operations, named as in ``linux/fuse.h``.

    Every method may raise ``OSError``; its ``errno`` is what the guest gets. An unknown nodeid is
    ESTALE, and so is an inode that the host has removed; an unknown ``fh``, or one of another
    inode, is EBADF; a change of a read-only share is EROFS; ENFILE means that the daemon has no
    descriptor or inode left. The docstrings name further errors where the errno is chosen here and
    not by the host's kernel.

    A name is ``bytes`` that the session has checked: not empty, no '/', no NUL, not '.' or '..'.
    Offsets and sizes are in bytes, 0 to 2^64 - 1 as the guest sent them; the host's kernel refuses
    invalid ones. All methods are called in the thread of the event loop, and none may block: an
    operation that may have to wait returns a ``Task``, or raises ``OperationDeferred``.
    """

    @property
    def timeout(self) -> float:
        """The entry timeout and attr timeout in seconds, which never change."""
        ...

    def set_negotiated(self, *, posix_acls: bool, writeback: bool) -> None:
        """Record what INIT negotiated: FUSE_POSIX_ACL, FUSE_WRITEBACK_CACHE.

        Without ``posix_acls`` the xattrs that hold ACLs are hidden. With ``writeback`` the guest
        caches writes: it also reads a file that it opened to write, and finds the end of a file
        itself when it appends.
        """
        ...

    def reset(self) -> None:
        """End the session: forget all inodes but the root, close all files, release all locks."""
        ...

    # Namespace operations

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """Look up a name in the directory ``parent``; return None if there is no such name.

        A symbolic link is not followed. Most names that are looked up do not exist, and None is
        cheaper than ``FileNotFoundError``.
        """
        ...

    def forget(self, nodeid: int, nlookup: int) -> bool:
        """Reduce the lookup count of an inode by ``nlookup``; return whether it is 0 now.

        At 0 the guest does not know the inode any more: its nodeid is never used again, and its
        locks are released. Never raises; the root and unknown nodeids are ignored.
        """
        ...

    def symlink(self, requester: Requester, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link to ``target``, which may be any bytes but NUL."""
        ...

    def mknod(
        self, requester: Requester, parent: int, name: bytes, mode: int, rdev: int, umask: int
    ) -> Entry:
        """Make a regular file, FIFO, socket or device.

        ``mode``: type and permissions, of which ``umask`` takes some unless the directory has a
        default ACL. ``rdev``: the device number as in stat(2), for a device only.
        """
        ...

    def mkdir(self, requester: Requester, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """Make a directory; ``mode`` and ``umask`` as in ``mknod``."""
        ...

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of what is not a directory (EISDIR)."""
        ...

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory (ENOTEMPTY, ENOTDIR)."""
        ...

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Rename; ``flags`` are RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT or 0."""
        ...

    def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """Give an inode one more name; a file of ``tmpfile`` gets its first one."""
        ...

    # Attributes

    def getattr(self, nodeid: int, fh: int | None) -> os.stat_result:
        """Return the attributes of an inode, through ``fh`` if the guest has it open."""
        ...

    def statx(self, nodeid: int, fh: int | None) -> Statx:
        """Return the attributes, the birth time among them; arguments as in ``getattr``."""
        ...

    def setattr(self, nodeid: int, changes: Changes) -> os.stat_result:
        """Make all ``changes``, or stop at the first that fails; return the new attributes.

        The attributes of a symbolic link are changed, not those of its target. EPERM: the guest
        may own nothing by the new ids. ``OperationDeferred``: a size is to be set, but not through
        an open file.
        """
        ...

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symbolic link; EINVAL for another file type."""
        ...

    def statfs(self, nodeid: int) -> os.statvfs_result:
        """Return sizes and limits of the file system that the inode is on."""
        ...

    def watch_target(self, nodeid: int, *, answering: bool = False) -> WatchTarget:
        """Return what the watch table needs of an inode; ENOENT for an unknown nodeid.

        ``answering``: it is to be watched, so wait until its file system's server answers.
        """
        ...

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set an extended attribute (setxattr(2)).

        ``flags``: XATTR_CREATE (EEXIST), XATTR_REPLACE (ENODATA) or 0. ``kill_sgid``: also clear
        S_ISGID (FUSE_SETXATTR_ACL_KILL_SGID). ENOSYS: the share has no extended attributes;
        EOPNOTSUPP: none with this name.
        """
        ...

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """Return the value of an extended attribute.

        ENODATA: it is not set. Other errors as of ``setxattr``.
        """
        ...

    def listxattr(self, nodeid: int) -> Iterable[bytes]:
        """Return the names of all extended attributes that the guest may see.

        ENOSYS as of ``setxattr``.
        """
        ...

    def removexattr(self, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute.

        ENODATA: it is not set. Other errors as of ``setxattr``.
        """
        ...

    # Open files

    def open(self, nodeid: int, flags: int, kill_suidgid: bool) -> OpenResult:
        """Open a regular file; the file system owns the descriptor until ``release``.

        ``flags``: of open(2); O_CREAT and O_EXCL mean nothing here. ``kill_suidgid``: if O_TRUNC
        changes the file, clear its set-id bits (FUSE_OPEN_KILL_SUIDGID). EISDIR, ELOOP, ENXIO: not
        a regular file. ``OperationDeferred``: a host process has a lease on the file.
        """
        ...

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
        """Make a regular file and open it, or open the one that is there.

        ``flags`` as in ``open``; with O_EXCL a file that is there is EEXIST. ``mode`` and
        ``umask`` as in ``mknod``. ``OperationDeferred`` as in ``open``.
        """
        ...

    def tmpfile(
        self, requester: Requester, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[Entry, OpenResult]:
        """Make and open a file without a name on the file system of ``parent`` (O_TMPFILE).

        ``flags`` as in ``open``; with O_EXCL ``link`` cannot give it a name.
        """
        ...

    def read(
        self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview], size: int
    ) -> int | DataTask:
        """Fill ``views``, which are ``size`` bytes of guest memory; return how many were read.

        Fewer than ``size`` only at the end of the file. The caller owns ``views``: a returned
        ``DataTask`` does not use them.
        """
        ...

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        views: Sequence[memoryview],
        kill_suidgid: bool,
        cached: bool,
    ) -> int | DataTask:
        """Write ``views`` of guest memory; return how many bytes were written.

        A file that was opened with O_APPEND is written at its end. ``cached``: pages of the
        guest's cache, which go to ``offset`` whatever the flags of ``fh`` are, since the guest
        takes any handle of the file (FUSE_WRITE_CACHE). ``kill_suidgid``: clear the set-id bits.
        ``views`` as in ``read``.
        """
        ...

    def flush(self, nodeid: int, fh: int) -> None:
        """Report what close(2) would: a process of the guest closes one of its descriptors."""
        ...

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file, and release the locks that were taken through it."""
        ...

    def fsync(self, nodeid: int, fh: int, datasync: bool) -> Task:
        """Write a file's data and metadata to its disk.

        ``datasync``: without the metadata that reading the data does not need.
        """
        ...

    def fallocate(
        self, nodeid: int, fh: int, mode: int, offset: int, length: int, kill_suidgid: bool
    ) -> Task:
        """Allocate, punch, zero, collapse or insert a range; ``mode`` is FALLOC_FL_*."""
        ...

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """Return where data or a hole begins (SEEK_DATA, SEEK_HOLE) or the file ends.

        ENXIO: ``offset`` is beyond the end.
        """
        ...

    def copy_file_range(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        kill_suidgid: bool,
    ) -> Task:
        """Copy between two open files; return how many bytes were copied, which may be fewer.

        EBADF: the target was opened with O_APPEND.
        """
        ...

    def syncfs(self, nodeid: int) -> Task:
        """Write the file system that the directory is on to its disk."""
        ...

    # Open directories

    def opendir(self, nodeid: int, flags: int) -> OpenResult:
        """Open a directory; the file system owns the descriptor until ``releasedir``."""
        ...

    def readdir(self, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        """Return the entries from ``offset`` on, '.' and '..' included.

        ``offset``: 0, or that of the last entry that was taken. The session takes as many as fit
        the reply buffer. Errors of the first batch are raised here; later ones end the iteration
        and are raised by the next call.
        """
        ...

    def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a directory."""
        ...

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> Task:
        """Write a directory to its disk; ``datasync`` as in ``fsync``."""
        ...

    # Locks, which never wait: ``BlockingIOError`` where another owner has a conflicting lock

    def getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """Return a lock that conflicts with ``lock`` of ``owner``, or None.

        Its pid is 0 if a process of the host has the lock.
        """
        ...

    def setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        """Take or release a POSIX lock for ``owner``; ENOLCK where there are too many."""
        ...

    def flock(self, nodeid: int, fh: int, kind: int) -> None:
        """Take or release the lock of an open file; ``kind`` as in ``Lock``.

        It is a lock of flock(2).
        """
        ...

    def unlock_owner(self, nodeid: int, owner: int) -> None:
        """Release all POSIX locks of ``owner`` on an inode, as close(2) of any descriptor does."""
        ...
