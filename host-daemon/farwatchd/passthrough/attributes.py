# SPDX-License-Identifier: Apache-2.0
"""Attributes of inodes and of the file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from farwatchd.fuse.filesystem import Changes, RemoteTask, Statx, Task, WatchTarget
from farwatchd.linux.libc import NO_ID, failure
from farwatchd.linux.syscalls import (
    UTIME_NOW,
    UTIME_OMIT,
    ExtendedStat,
    Time,
    signed,
    statx,
    syncfs,
    utimens,
)
from farwatchd.passthrough.inode_table import GENERATION
from farwatchd.passthrough.share import Operations, check_name_left
from farwatchd.passthrough.tasks import on_files

_REPLACEABLE = (stat.S_IFREG, stat.S_IFLNK)
#: chown(2): leave this id unchanged.
_KEEP = -1


class AttributeOperations(Operations):
    """Operations on attributes."""

    def watch_target(self, nodeid: int, *, answering: bool = False) -> WatchTarget:
        """Return what the watch table needs of an inode; ENOENT for an unknown nodeid.

        ``answering``: on a remote file system this is deferred until the server answers. What the
        host needs of it to add a watch, it asks in the loop.
        """
        try:
            inode = self._inodes.get(nodeid)
        except OSError as error:
            raise failure(errno.ENOENT) if error.errno == errno.ESTALE else error from None
        if answering and inode.host_inode.remote:
            raise self._share.when_answering(lambda: self.watch_target(nodeid), inode.fd)
        return WatchTarget(GENERATION, inode.fd, inode.is_dir)

    def getattr(self, nodeid: int, fh: int | None) -> os.stat_result:
        """Return the attributes of an inode, by ``fh`` if the guest has it open."""
        try:
            if fh is None:
                inode = self._inodes.get(nodeid).host_inode
                fd, remote = inode.fd, inode.remote
            else:
                file = self._open_files.get(nodeid, fh)
                fd, remote = file.fd, file.remote
            if remote:
                raise self._share.later(os.fstat, self._share.status_for_guest, fd)
            status = os.fstat(fd)
            if not status.st_nlink and fh is None:
                self._refuse_replaced(nodeid)
            return self._share.status_for_guest(status)
        except OSError as error:
            deleted = self._inodes.deleted_directory(nodeid)
            if error.errno != errno.ESTALE or deleted is None:
                raise
        return self._share.status_for_guest(deleted)

    def _refuse_replaced(self, nodeid: int) -> None:
        """Raise ESTALE for an unlinked file or link that the guest does not have open.

        Upon ESTALE Linux looks the name up again, which may have another inode by now. A directory
        stays: a process of the guest may work in it.
        """
        inode = self._inodes.get(nodeid)
        if inode.kind in _REPLACEABLE and self._share.is_stale_without_name(inode):
            raise failure(errno.ESTALE)

    def statx(self, nodeid: int, fh: int | None) -> Statx:
        """Return the attributes of an inode, its birth time among them."""
        if fh is None:
            inode = self._inodes.get(nodeid)
            fd, remote = inode.fd, inode.remote
        else:
            file = self._open_files.get(nodeid, fh)
            fd, remote = file.fd, file.remote
        if remote:
            raise self._share.later(
                lambda own_fd: (statx(own_fd), os.fstat(own_fd)),
                lambda found: self._statx(found[0], self._share.status_for_guest(found[1])),
                fd,
            )
        return self._statx(statx(fd), self.getattr(nodeid, fh))

    def _statx(self, more: ExtendedStat, status: os.stat_result) -> Statx:
        return Statx(status, more.btime_ns, more.attributes, more.attributes_mask)

    def setattr(self, nodeid: int, changes: Changes) -> os.stat_result:
        """Make all ``changes`` or stop at the first that fails.

        A symbolic link is not followed.
        """
        self._share.refuse_if_readonly()
        inode = self._inodes.get(nodeid)
        only_times = (changes.mode, changes.uid, changes.gid, changes.size) == (None,) * 4
        # With a write-back cache the guest sends times after it has removed the file.
        unnamed_is_stale = not only_times and self._share.is_stale_without_name(inode)
        if unnamed_is_stale and not inode.remote:
            check_name_left(inode.fd)
        owner = self._new_owner(changes)
        if changes.size is not None and changes.fh is None:
            if not stat.S_ISREG(inode.kind):
                raise failure(errno.EISDIR if inode.is_dir else errno.EINVAL)
            fh_fd = None
        else:
            fh_fd = None if changes.size is None else self._open_files.fd(nodeid, changes.fh or 0)
            if not inode.remote:
                self._change(inode.fd, fh_fd, changes, owner)
                return self._share.status_for_guest(os.fstat(inode.fd))

        # truncate(2) waits for the holder of a lease; probing for one would be an event.
        def change(own_fd: int, own_fh_fd: int | None = None) -> os.stat_result:
            if inode.remote and unnamed_is_stale:
                check_name_left(own_fd)
            self._change(own_fd, own_fh_fd, changes, owner)
            return os.fstat(own_fd)

        fds = (inode.fd,) if fh_fd is None else (inode.fd, fh_fd)
        raise self._share.later(change, self._share.status_for_guest, *fds)

    def _change(self, fd: int, fh_fd: int | None, changes: Changes, owner: tuple[int, int]) -> None:
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

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symbolic link; EINVAL for another file type."""
        inode = self._inodes.get(nodeid)
        if not stat.S_ISLNK(inode.kind):
            raise failure(errno.EINVAL)
        return self._share.waiting_where_remote(inode, _readlink)

    def statfs(self, nodeid: int) -> os.statvfs_result:
        """Return the statvfs(3) data of the file system that the inode is on."""
        return self._share.waiting_where_remote(self._inodes.get(nodeid), os.fstatvfs)

    def syncfs(self, nodeid: int) -> Task:
        """Return a task that writes the file system that the directory is on to its disk."""
        inode = self._inodes.get(nodeid)
        mount = inode.host_inode.mount
        if mount is not None and mount.is_own and mount.fd >= 0:
            # Opening the directory would be an event on the host.
            return on_files(_sync, mount.fd)
        task = on_files(self._reopen_and_sync, inode.fd)
        return RemoteTask(task) if inode.remote else task

    def _reopen_and_sync(self, path_fd: int) -> int:
        """Open a directory and write its file system to its disk, in any thread."""
        fd = self._proc.reopen(path_fd, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _sync(fd)
        finally:
            os.close(fd)

    def _new_owner(self, changes: Changes) -> tuple[int, int]:
        """Return the host's uid and gid for a new owner; EPERM where a rule forbids one."""
        uid, gid = _id(changes.uid), _id(changes.gid)
        if self._options.id_translation is None:
            return uid, gid
        users, groups = self._options.id_translation.users, self._options.id_translation.groups
        return users.to_host(uid) if uid != _KEEP else uid, groups.to_host(
            gid
        ) if gid != _KEEP else gid


def _readlink(fd: int) -> bytes:
    target = os.readlink(b"", dir_fd=fd)
    check_name_left(fd)
    return target


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
