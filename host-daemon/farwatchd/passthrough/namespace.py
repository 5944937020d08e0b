# SPDX-License-Identifier: Apache-2.0
"""Looks up, makes, removes and renames directory entries.

A symbolic link is never followed on the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from farwatchd.fuse.filesystem import Entry, Requester
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import renameat2
from farwatchd.passthrough.share import Operations, remove_if_same


class NamespaceOperations(Operations):
    """Operations on directory entries."""

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """Look up a name and count one lookup; return None if there is no such name."""
        directory = self._inodes.get(parent)
        found = self._inodes.lookup(directory, name)
        return None if found is None else self._share.entry(found, directory)

    def symlink(self, requester: Requester, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        try:
            with self._credentials.of(requester, 0):
                os.symlink(target, name, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        return self._made(requester, parent, name, os.unlink)

    def mknod(
        self, requester: Requester, parent: int, name: bytes, mode: int, rdev: int, umask: int
    ) -> Entry:
        """Make a file, FIFO, socket or device; ``rdev`` is as in stat(2)."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        try:
            with self._credentials.of(requester, umask):
                os.mknod(name, mode, rdev, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        return self._made(requester, parent, name, os.unlink)

    def mkdir(self, requester: Requester, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """Make a directory."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        try:
            with self._credentials.of(requester, umask):
                os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        return self._made(requester, parent, name, os.rmdir)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of what is not a directory."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        try:
            os.unlink(name, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._share.refuse_if_readonly()
        directory = self._inodes.get(parent)
        try:
            os.rmdir(name, dir_fd=directory.fd)
        except FileNotFoundError:
            raise self._share.missing(directory) from None

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Rename; ``flags`` are RENAME_* of renameat2(2)."""
        self._share.refuse_if_readonly()
        source, target = self._inodes.get(parent), self._inodes.get(newparent)
        try:
            renameat2(source.fd, name, target.fd, newname, flags)
        except FileNotFoundError:
            raise self._share.missing(source, target) from None

    def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """Give an inode one more name; a file made by ``tmpfile`` gets its first one."""
        self._share.refuse_if_readonly()
        inode = self._share.existing(nodeid)
        directory = self._inodes.get(newparent)
        source = self._proc.path(inode.fd)
        try:
            os.link(source, newname, dst_dir_fd=directory.fd, follow_symlinks=True)
        except FileNotFoundError:
            raise self._share.missing(directory) from None
        # Not by the new name: another process may have replaced it, and looking it up may fail.
        return self._share.entry((inode, self._inodes.count_again(inode)))

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
