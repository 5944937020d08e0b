# SPDX-License-Identifier: Apache-2.0
"""Attributes of inodes and of the file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from farwatchd.fuse.filesystem import Changes, OperationDeferred, Statx, Task, WatchTarget
from farwatchd.linux.libc import NO_ID, failure
from farwatchd.linux.syscalls import UTIME_NOW, UTIME_OMIT, Time, signed, statx, syncfs, utimens
from farwatchd.passthrough.inode_table import GENERATION
from farwatchd.passthrough.share import Operations
from farwatchd.passthrough.tasks import descriptor, on_files, on_files_or_errno

#: chown(2): leave this id unchanged.
_KEEP = -1


class AttributeOperations(Operations):
    """Operations on attributes."""

    def watch_target(self, nodeid: int) -> WatchTarget:
        """Return what the watch table needs of an inode; ENOENT for an unknown nodeid."""
        try:
            inode = self._inodes.get(nodeid)
        except OSError as error:
            raise failure(errno.ENOENT) if error.errno == errno.ESTALE else error from None
        return WatchTarget(GENERATION, inode.fd, inode.is_dir)

    def getattr(self, nodeid: int, fh: int | None) -> os.stat_result:
        """Return the attributes of an inode, by ``fh`` if the guest has it open."""
        try:
            fd = (
                self._inodes.get(nodeid).host_inode.fd
                if fh is None
                else self._open_files.fd(nodeid, fh)
            )
            return self._share.status_for_guest(os.fstat(fd))
        except OSError as error:
            deleted = self._inodes.deleted_directory(nodeid)
            if error.errno != errno.ESTALE or deleted is None:
                raise
        return self._share.status_for_guest(deleted)

    def statx(self, nodeid: int, fh: int | None) -> Statx:
        """Return the attributes of an inode, its birth time among them."""
        fd = self._fd(nodeid, fh)
        more = statx(fd)
        return Statx(self.getattr(nodeid, fh), more.btime_ns, more.attributes, more.attributes_mask)

    def setattr(self, nodeid: int, changes: Changes) -> os.stat_result:
        """Make all ``changes`` or stop at the first that fails.

        A symbolic link is not followed.
        """
        self._share.refuse_if_readonly()
        if (changes.mode, changes.uid, changes.gid, changes.size) == (None,) * 4:
            # With a write-back cache the guest sends times after it has removed the file.
            inode = self._inodes.get(nodeid)
        else:
            inode = self._share.existing(nodeid)
        owner = self._new_owner(changes)
        if changes.size is not None and changes.fh is None:
            if not stat.S_ISREG(inode.kind):
                raise failure(errno.EISDIR if inode.is_dir else errno.EINVAL)
            # truncate(2) waits for the holder of a lease; probing for one would be an event.
            raise OperationDeferred(
                on_files_or_errno(
                    lambda own_fd: self._change(own_fd, None, changes, owner), inode.fd
                ),
                lambda result: self._after(descriptor(result), nodeid),
            )
        fh_fd = None if changes.size is None else self._open_files.fd(nodeid, changes.fh or 0)
        self._change(inode.fd, fh_fd, changes, owner)
        return self._share.status_for_guest(os.fstat(inode.fd))

    def _change(self, fd: int, fh_fd: int | None, changes: Changes, owner: tuple[int, int]) -> int:
        """Make all changes, in any thread.

        ``fd``: O_PATH. ``fh_fd``: the open file to truncate by; without it, by ``fd``.
        """
        path = self._proc.path(fd)
        if changes.mode is not None:
            Path(path).chmod(stat.S_IMODE(changes.mode))
        if owner != (_KEEP, _KEEP):
            os.chown(path, *owner)
        if changes.size is not None:
            with self._changing(fd, changes.kill_suidgid):
                os.truncate(path if fh_fd is None else fh_fd, signed(changes.size))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            utimens(path, _time(changes.atime_ns), _time(changes.mtime_ns))
        return 0

    def _after(self, _done: int, nodeid: int) -> os.stat_result:
        return self._share.status_for_guest(os.fstat(self._inodes.get(nodeid).fd))

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symbolic link; EINVAL for another file type."""
        inode = self._inodes.get(nodeid)
        if not stat.S_ISLNK(inode.kind):
            raise failure(errno.EINVAL)
        return os.readlink(b"", dir_fd=inode.fd)

    def statfs(self, nodeid: int) -> os.statvfs_result:
        """Return the statvfs(3) data of the file system that the inode is on."""
        return os.fstatvfs(self._inodes.get(nodeid).fd)

    def syncfs(self, nodeid: int) -> Task:
        """Return a task that writes the file system that the directory is on to its disk."""
        inode = self._inodes.get(nodeid)
        mount = inode.host_inode.mount
        if mount is not None and mount.fd >= 0:
            # Opening the directory would be an event on the host.
            return on_files(_sync, mount.fd)
        fd = self._proc.reopen(inode.fd, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return on_files(_sync, fd)
        finally:
            os.close(fd)

    def _fd(self, nodeid: int, fh: int | None) -> int:
        return self._inodes.get(nodeid).fd if fh is None else self._open_files.fd(nodeid, fh)

    def _new_owner(self, changes: Changes) -> tuple[int, int]:
        """Return the host's uid and gid for a new owner; EPERM where a rule forbids one."""
        uid, gid = _id(changes.uid), _id(changes.gid)
        if self._options.id_translation is None:
            return uid, gid
        users, groups = self._options.id_translation.users, self._options.id_translation.groups
        return users.to_host(uid) if uid != _KEEP else uid, groups.to_host(
            gid
        ) if gid != _KEEP else gid


def _sync(fd: int) -> int:
    syncfs(fd)
    return 0


def _id(number: int | None) -> int:
    if number == NO_ID:
        raise failure(errno.EINVAL)
    return _KEEP if number is None else number


def _time(nanoseconds: int | None) -> Time:
    if nanoseconds is None:
        return Time(0, UTIME_OMIT)
    if nanoseconds == Changes.NOW:
        return Time(0, UTIME_NOW)
    return Time.of(nanoseconds)
