# SPDX-License-Identifier: Apache-2.0
"""Looks up, makes, removes and renames directory entries.

A symbolic link is never followed on the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from farwatchd.fuse.filesystem import Entry, OperationDeferred, Requester
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import renameat2
from farwatchd.passthrough.inode_table import Inode, RemoteMountError
from farwatchd.passthrough.share import (
    FoundName,
    Operations,
    check_name_left,
    examine,
    find,
    no_result,
    remove_if_same,
)

#: The id of no mount.
NO_MOUNT = -1


def _unlink(name: bytes, directory: int) -> None:
    os.unlink(name, dir_fd=directory)


def _rmdir(name: bytes, directory: int) -> None:
    os.rmdir(name, dir_fd=directory)


def _rename(name: bytes, newname: bytes, flags: int, source: int, target: int) -> None:
    renameat2(source, name, target, newname, flags)


class NamespaceOperations(Operations):
    """Operations on directory entries."""

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """Look up a name and count one lookup; return None if there is no such name."""
        directory = self._inodes.get(parent)
        if directory.host_inode.remote:
            mount = directory.host_inode.mount_id
            raise self._share.later(
                lambda fd: find(fd, name, mount),
                lambda found: None if found is None else self._found(found, parent),
                directory.fd,
            )
        try:
            found = self._inodes.lookup(directory, name)
        except RemoteMountError as error:
            owned = error.owned
            raise self._share.later(
                lambda: examine(owned, NO_MOUNT), lambda found: self._found(found, parent)
            ) from None
        return None if found is None else self._share.entry(found, directory)

    def symlink(self, requester: Requester, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link."""

        def make(directory: int) -> None:
            with self._credentials.of(requester, 0):
                os.symlink(target, name, dir_fd=directory)

        return self._make(requester, parent, name, make, os.unlink)

    def mknod(
        self, requester: Requester, parent: int, name: bytes, mode: int, rdev: int, umask: int
    ) -> Entry:
        """Make a file, FIFO, socket or device; ``rdev`` is as in stat(2)."""

        def make(directory: int) -> None:
            with self._credentials.of(requester, umask):
                os.mknod(name, mode, rdev, dir_fd=directory)

        return self._make(requester, parent, name, make, os.unlink)

    def mkdir(self, requester: Requester, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """Make a directory."""

        def make(directory: int) -> None:
            with self._credentials.of(requester, umask):
                os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)

        return self._make(requester, parent, name, make, os.rmdir)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of what is not a directory."""
        self._change(partial(_unlink, name), parent)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._change(partial(_rmdir, name), parent)

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Rename; ``flags`` are RENAME_* of renameat2(2)."""
        self._share.refuse_if_readonly()
        source, target = self._inodes.get(parent), self._inodes.get(newparent)
        if source.host_inode.remote or target.host_inode.remote:
            raise self._change_later(partial(_rename, name, newname, flags), source, target)
        try:
            renameat2(source.fd, name, target.fd, newname, flags)
        except FileNotFoundError:
            raise self._share.missing(source, target) from None

    def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """Give an inode one more name; a file made by ``tmpfile`` gets its first one."""
        self._share.refuse_if_readonly()
        inode, directory = self._inodes.get(nodeid), self._inodes.get(newparent)
        unnamed_is_stale = self._share.is_stale_without_name(inode)
        named = directory.named

        def link(source: int, target: int) -> os.stat_result:
            if unnamed_is_stale:
                check_name_left(source)
            try:
                os.link(self._proc.path(source), newname, dst_dir_fd=target, follow_symlinks=True)
            except FileNotFoundError:
                raise self._share.missing_in((target, named)) from None
            return os.fstat(source)

        # Not by the new name: another process may have replaced it, and looking it up may fail.
        if inode.remote or directory.remote:
            raise self._share.later(
                link,
                lambda status: self._share.entry(
                    (self._inodes.count_linked(nodeid, status), status)
                ),
                inode.fd,
                directory.fd,
            )
        status = link(inode.fd, directory.fd)
        return self._share.entry((self._inodes.count_linked(nodeid, status), status))

    def _found(self, found: FoundName, parent: int) -> Entry:
        """Count one lookup of what a thread has found in a directory."""
        result = self._inodes.adopt_found(found.owned.take(), found.status, found.remote)
        return self._share.entry(result, self._inodes.get(parent))

    def _change(self, call: Callable[[int], None], parent: int) -> None:
        """Change names in a directory: ``call`` gets its descriptor."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        if directory.host_inode.remote:
            raise self._change_later(call, directory)
        try:
            call(directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None

    def _change_later(self, call: Callable[..., None], *inodes: Inode) -> OperationDeferred:
        """Return what has a thread change names in directories."""
        named = [inode.named for inode in inodes]

        def change(*fds: int) -> None:
            try:
                call(*fds)
            except FileNotFoundError:
                raise self._share.missing_in(*zip(fds, named, strict=True)) from None

        return self._share.later(change, no_result, *[inode.fd for inode in inodes])

    def _make(
        self,
        requester: Requester,
        parent: int,
        name: bytes,
        make: Callable[[int], None],
        undo: Callable[..., None],
    ) -> Entry:
        """Make a name, look it up, and set its security xattrs; on an error ``undo`` removes it."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        if directory.remote:
            mount, named = directory.host_inode.mount_id, directory.named
            return self._share.make_remote(
                directory,
                lambda fd: self._make_remote(requester, fd, named, name, mount, make, undo),
                lambda found: self._found(found, parent),
            )
        try:
            make(directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        return self._made(requester, parent, name, undo)

    def _make_remote(
        self,
        requester: Requester,
        directory: int,
        named: bool,
        name: bytes,
        mount: int,
        make: Callable[[int], None],
        undo: Callable[..., None],
    ) -> FoundName:
        """Do the same in any thread, but for the lookup's count."""
        try:
            make(directory)
        except FileNotFoundError:
            raise self._share.missing_in((directory, named)) from None
        found = None
        try:
            found = find(directory, name, mount)
            if found is None:
                raise failure(errno.ENOENT)
            self._share.set_security_xattrs(requester, found.owned.fd)
        except BaseException:
            if found is None:
                undo(name, dir_fd=directory)
            else:
                remove_if_same(undo, directory, name, found.status)
            raise
        return found

    def _there(self, parent: int, name: bytes) -> Entry:
        """Look up a name that was just made; ENOENT if another process has removed it."""
        entry = self.lookup(parent, name)
        if entry is None:
            raise failure(errno.ENOENT)
        return entry

    def _made(
        self, requester: Requester, parent: int, name: bytes, undo: Callable[..., None]
    ) -> Entry:
        """Look up a name that was just made, and set its security xattrs.

        On an error ``undo`` removes it.
        """
        entry = None
        try:
            entry = self._there(parent, name)
            if requester.security_xattrs:
                self._share.set_security_xattrs(requester, self._inodes.get(entry.nodeid).fd)
        except BaseException:
            directory = self._inodes.get(parent).fd
            if entry is None:
                # There was no descriptor left, with which to see what it is.
                undo(name, dir_fd=directory)
            else:
                remove_if_same(undo, directory, name, entry.stat)
                self._inodes.forget(entry.nodeid, 1)
            raise
        return entry
