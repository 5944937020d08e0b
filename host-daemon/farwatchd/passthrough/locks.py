# SPDX-License-Identifier: Apache-2.0
"""Locks on the host for the guest's lock owners.

A POSIX lock belongs to a process of the host, and all processes of the guest are one process there.
So each owner has an open file description for itself on each inode, with open-file-description
locks (fcntl(2)): they conflict with POSIX locks and with one another in the same way. A flock(2)
lock belongs to the guest's open file, which is an open file here.

The description is that of the open file through which the owner locks first. So a lock raises no
event, breaks no lease and needs no right to write. An owner gets a description of its own if
another owner's locks are on that one, or if that one cannot have a lock to write; opening it is an
event on the host.

A process releases its POSIX locks on a file with every close(2) of it: the guest sends FLUSH. An
open file description of the guest that is a lock owner sends nothing but RELEASE at its end.

The table records the locks of each owner as well, because the kernel does not say which owner has a
lock.
"""

from __future__ import annotations

import errno
import fcntl
import os

from farwatchd.fuse.filesystem import Lock
from farwatchd.linux.libc import OFFSET_MAX, failure
from farwatchd.passthrough.lock_table import FLOCK, packed
from farwatchd.passthrough.open_file_table import OpenFile
from farwatchd.passthrough.share import Operations

_FLOCK_OPERATIONS = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}


class LockOperations(Operations):
    """Operations on locks. None waits: ``BlockingIOError`` when another owner has the lock.

    On a remote file system each is deferred until the server answers. Then it is performed in the
    loop, and so in order.
    """

    def getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """Return a lock that conflicts with ``lock`` of ``owner``, or None.

        Its pid is 0 if a process of the host has it.
        """
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.when_answering(lambda: self._getlk(nodeid, fh, owner, lock), file.fd)
        return self._getlk(nodeid, fh, owner, lock)

    def _getlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        handle = self._open_files.fd(nodeid, fh)
        found = self._locks.conflict(nodeid, owner, lock)
        if found is not None:
            return found
        own_fd = self._locks.fd(nodeid, owner)
        reply = fcntl.fcntl(handle if own_fd is None else own_fd, fcntl.F_OFD_GETLK, packed(lock))
        kind, _whence, start, length, _pid = FLOCK.unpack(reply)
        if kind == fcntl.F_UNLCK:
            return None
        return Lock(kind, start, start + length - 1 if length else OFFSET_MAX, 0)

    def setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        """Take or release a POSIX lock. ENOLCK when there are too many of them."""
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.when_answering(lambda: self._setlk(nodeid, fh, owner, lock), file.fd)
        self._setlk(nodeid, fh, owner, lock)

    def _setlk(self, nodeid: int, fh: int, owner: int, lock: Lock) -> None:
        file = self._open_files.get(nodeid, fh)
        fd = self._locks.fd(nodeid, owner)
        if lock.kind == fcntl.F_UNLCK and fd is None:
            return
        if fd is None or not _can_lock(fcntl.fcntl(fd, fcntl.F_GETFL), lock.kind):
            fd = self._description(nodeid, owner, fh, file, lock.kind)
        try:
            self._locks.check_room(lock)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, packed(lock))
        except OSError as error:
            self._locks.close_if_unused(nodeid, owner)
            if error.errno == errno.EACCES:
                raise failure(errno.EAGAIN) from error
            raise
        self._locks.put(nodeid, owner, lock, fh)

    def flock(self, nodeid: int, fh: int, kind: int) -> None:
        """Take or release the lock of an open file (flock in section 2 of the manual)."""
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.when_answering(lambda: self._flock(nodeid, fh, kind), file.fd)
        self._flock(nodeid, fh, kind)

    def _flock(self, nodeid: int, fh: int, kind: int) -> None:
        fcntl.flock(self._open_files.fd(nodeid, fh), _FLOCK_OPERATIONS[kind] | fcntl.LOCK_NB)
        self._open_files.record_flock(fh, kind)

    def unlock_owner(self, nodeid: int, owner: int) -> None:
        """Release all POSIX locks of ``owner`` on an inode, as close(2) of any descriptor does."""
        fd = self._locks.remote_fd(nodeid, owner)
        if fd is not None:
            raise self._share.when_answering(lambda: self._locks.close(nodeid, owner), fd)
        self._locks.close(nodeid, owner)

    def _description(self, nodeid: int, owner: int, fh: int, file: OpenFile, kind: int) -> int:
        """Choose the open file description for an owner's locks; return its descriptor.

        It is that of the open file, unless it has another owner's locks or cannot have locks of
        this kind.
        """
        if file.flags & os.O_DIRECTORY:
            raise failure(errno.EBADF)
        if self._locks.may_borrow(nodeid, fh) and _can_lock(file.flags, kind):
            self._locks.open(nodeid, owner, file.fd, fh, remote=file.remote)
            return file.fd
        self._locks.check_descriptors()
        to_write = not self._options.readonly and (
            kind == fcntl.F_WRLCK or file.flags & os.O_ACCMODE != os.O_RDONLY
        )
        fd = self._open_to_lock(nodeid, to_write)
        self._locks.open(nodeid, owner, fd, remote=file.remote)
        return fd

    def _open_to_lock(self, nodeid: int, to_write: bool) -> int:
        """Open a file again, ``to_write`` if that is permitted.

        Where the guest only reads the file, a process of the host may have a lease that opening it
        to write breaks. EAGAIN: the kernel has asked that process to release the lease.
        """
        inode = self._inodes.get(nodeid)
        if to_write:
            try:
                return self._proc.reopen(inode.fd, os.O_RDWR | os.O_NONBLOCK)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EROFS, errno.ETXTBSY, errno.EPERM):
                    raise
        return self._proc.reopen(inode.fd, os.O_RDONLY | os.O_NONBLOCK)


def _can_lock(flags: int, kind: int) -> bool:
    """Return whether a file opened with these flags can have such a lock (fcntl(2), EBADF)."""
    access = flags & os.O_ACCMODE
    return (
        kind == fcntl.F_UNLCK
        or access == os.O_RDWR
        or access == (os.O_WRONLY if kind == fcntl.F_WRLCK else os.O_RDONLY)
    )
