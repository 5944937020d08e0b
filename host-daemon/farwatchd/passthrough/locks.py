# SPDX-License-Identifier: Apache-2.0
"""Locks on the host for the guest's lock owners.

A POSIX lock belongs to a process there, and all of the guest's are one process here. So each owner
has an open file description of its own for each inode, with open-file-description locks (fcntl(2)):
they conflict with POSIX locks and with one another in the same way. flock(2) belongs to the guest's
open file, which is an open file here.

A process gives its locks back with every close(2), which is told by FLUSH. Locks of the guest's
open file descriptions have these as owners and end with RELEASE, of which nothing else is told.

What owners hold is kept as well: the kernel does not say which of them has a lock. Opening to write
and closing are events on the host, as they would be if the file were opened there to lock it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from farwatchd.fuse.filesystem import Lock
from farwatchd.linux.libc import OFFSET_MAX, failure
from farwatchd.passthrough.share import Operations

#: struct flock: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")
_FLOCK_OPERATIONS = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}


class LockOperations(Operations):
    """Operations on locks. None of them waits: ``BlockingIOError`` when somebody else has what is
    asked for."""

    def getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """A lock that keeps ``owner`` from having ``lock``, or None; its pid is 0 if a process of
        the host has it."""
        handle = self._handles.fd(nodeid, fh)
        found = self._locks.conflict(nodeid, owner, lock)
        if found is not None:
            return found
        held = self._locks.fd(nodeid, owner)
        reply = fcntl.fcntl(handle if held is None else held, fcntl.F_OFD_GETLK, _packed(lock))
        kind, _whence, start, length, _pid = _FLOCK.unpack(reply)
        if kind == fcntl.F_UNLCK:
            return None
        return Lock(kind, start, start + length - 1 if length else OFFSET_MAX, 0)

    def setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        """Take or give back a POSIX lock. ENOLCK when there are too many of them."""
        self._handles.fd(nodeid, fh)
        fd = self._locks.fd(nodeid, owner)
        if lock.kind == fcntl.F_UNLCK and fd is None:
            return
        if fd is None:
            self._locks.check_descriptors()
            fd = self._open_to_lock(nodeid)
            self._locks.open(nodeid, owner, fd)
        try:
            self._locks.check_room(lock)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _packed(lock))
        except OSError as error:
            self._locks.close_if_unused(nodeid, owner)
            if error.errno == errno.EACCES:
                raise failure(errno.EAGAIN) from error
            raise
        self._locks.put(nodeid, owner, lock, fh)

    def flock(self, nodeid: int, fh: int, kind: int) -> None:
        """flock(2) on an open file."""
        fcntl.flock(self._handles.fd(nodeid, fh), _FLOCK_OPERATIONS[kind] | fcntl.LOCK_NB)

    def unlock_owner(self, nodeid: int, owner: int) -> None:
        """Give back all POSIX locks that ``owner`` has on an inode, as close(2) of any descriptor
        of it does."""
        self._locks.close(nodeid, owner)

    def _open_to_lock(self, nodeid: int) -> int:
        inode = self._inodes.get(nodeid)
        if not stat.S_ISREG(inode.kind):
            raise failure(errno.EBADF)
        try:
            return self._proc.reopen(inode.fd, os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.ETXTBSY, errno.EPERM):
                raise
        return self._proc.reopen(inode.fd, os.O_RDONLY)


def _packed(lock: Lock) -> bytes:
    length = 0 if lock.end == OFFSET_MAX else lock.end - lock.start + 1
    return _FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0)
