# SPDX-License-Identifier: Apache-2.0
"""Where inodes are: their paths from the share's root, and what identifies them there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from farwatchd.linux.file_handles import HandleReader, handle_of
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import statx
from farwatchd.passthrough.procfd import ProcFd

#: What the kernel adds to the path of a name that was removed.
DELETED = b" (deleted)"
_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class PlaceIdentity(NamedTuple):
    """What no other inode has: device, inode number, and handle or time of birth."""

    device: int
    ino: int
    birth: int
    handle: bytes


class Places:
    """Finds the paths of inodes, and inodes by their paths."""

    def __init__(self, root: Callable[[], int], proc: ProcFd) -> None:
        """``root`` returns a descriptor of the share's root, which stays its owner's."""
        self._root_fd = root
        self._proc = proc
        self._reader = HandleReader()
        self._root = proc.target(root())

    def path(self, fd: int) -> bytes | None:
        """Return the path of an inode from the share's root, None if it has none there."""
        path = self._proc.target(fd)
        if path.endswith(DELETED) and not os.fstat(fd).st_nlink:
            return None
        if path == self._root:
            return b""
        root = self._root.rstrip(b"/") + b"/"
        return path[len(root) :] if path.startswith(root) else None

    def identity(self, fd: int) -> PlaceIdentity:
        """Return what identifies an inode, also where it cannot be opened by its handle."""
        status = os.fstat(fd)
        try:
            handle = handle_of(self._reader.read(fd))
        except OSError:
            handle = b""
        return PlaceIdentity(status.st_dev, status.st_ino, statx(fd).btime_ns or 0, handle)

    def identity_at(self, directory: int, name: bytes) -> bytes:
        """Return what identifies a directory entry, as bytes; empty if there is none."""
        key = self._reader.read_entry(directory, name)
        if isinstance(key, bytes):
            return handle_of(key)
        if key == errno.ENOENT:
            return b""
        try:
            fd = os.open(name, _OPEN, dir_fd=directory)
        except OSError:
            return b""
        try:
            device, ino, birth, _ = self.identity(fd)
            return b"%d %d %d" % (device, ino, birth)
        finally:
            os.close(fd)

    def leads_to(self, path: bytes, identity: PlaceIdentity) -> bool:
        """Return whether a path from the share's root leads to an inode."""
        try:
            fd = self.open(path)
        except OSError:
            return False
        try:
            return self.identity(fd) == identity
        finally:
            os.close(fd)

    def open(self, path: bytes) -> int:
        """Open a path from the share's root with O_PATH, following no link; the caller owns it."""
        fd = os.dup(self._root_fd())
        for name in filter(None, path.split(b"/")):
            if name == b"..":
                os.close(fd)
                raise failure(errno.EINVAL)
            try:
                below = os.open(name, _OPEN, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd
