# SPDX-License-Identifier: Apache-2.0
"""The POSIX locks of the guest's lock owners, and an open file description for each owner."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable

from farwatchd.fuse.filesystem import Lock
from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.linux.libc import OFFSET_MAX, failure
from farwatchd.passthrough.changes import StateChanges
from farwatchd.passthrough.open_file_table import OpenFileTable
from farwatchd.wire.state import (
    NONE,
    Descriptors,
    LockHandleState,
    LockOwnerState,
    LockState,
    ReceivedDescriptors,
    State,
    StateError,
)

#: struct flock: l_type, l_whence, l_start, l_len, l_pid.
FLOCK = struct.Struct("@hhqqi4x")
_UNLOCK_ALL = Lock(fcntl.F_UNLCK, 0, OFFSET_MAX, 0)

#: Locks of all owners together; more are ENOLCK.
MAX_LOCKS = 65536


class _Owner:
    """The locks of one owner on one inode: they do not overlap, and are in order.

    ``fd`` is of the open file description that has them on the host. It is ``borrowed`` from this
    open file of the guest, or the owner's own (None). ``remote``: of a remote file system.
    """

    def __init__(self, fd: int, borrowed: int | None, remote: bool) -> None:
        self.fd = fd
        self.borrowed = borrowed
        self.remote = remote
        self.handles: set[int] = set()
        self.locks: list[Lock] = []

    def put(self, lock: Lock) -> None:
        """Take or release a lock as fcntl(2) does.

        Parts of former locks stay where ``lock`` does not cover them.
        """
        rest: list[Lock] = []
        start, end = lock.start, lock.end
        for held in self.locks:
            if held.end < lock.start or held.start > lock.end:
                touches = held.end + 1 == lock.start or held.start == lock.end + 1
                if not (touches and held.kind == lock.kind):
                    rest.append(held)
                    continue
            if held.kind == lock.kind:
                start, end = min(start, held.start), max(end, held.end)
                continue
            if held.start < lock.start:
                rest.append(held._replace(end=lock.start - 1))
            if held.end > lock.end:
                rest.append(held._replace(start=lock.end + 1))
        if lock.kind != fcntl.F_UNLCK:
            rest.append(Lock(lock.kind, start, end, lock.pid))
        self.locks = sorted(rest, key=lambda held: held.start)


class LockTable:
    """The locks of all owners on all inodes. Owns the owners' descriptors."""

    def __init__(
        self, budget: DescriptorBudget, close_remote: Callable[[int], None] = os.close
    ) -> None:
        """``budget`` counts the owners' descriptors, too.

        ``close_remote`` closes those of remote files; it does not wait for a server.
        """
        self._budget = budget
        self._close_remote = close_remote
        self._inodes: dict[int, dict[int, _Owner]] = {}
        self._count = 0
        #: Gets what changes, unless it is None.
        self.changes: StateChanges | None = None

    def __len__(self) -> int:
        return self._count

    def fd(self, nodeid: int, owner: int) -> int | None:
        """Return the descriptor for an owner's locks on an inode, None if it has none."""
        found = self._inodes.get(nodeid, {}).get(owner)
        return None if found is None else found.fd

    def remote_fd(self, nodeid: int, owner: int) -> int | None:
        """Return the same if it is of a remote file system, else None."""
        found = self._inodes.get(nodeid, {}).get(owner)
        return found.fd if found is not None and found.remote else None

    def may_borrow(self, nodeid: int, fh: int) -> bool:
        """Return whether no owner's locks are on the open file description of ``fh``.

        All locks on one description are one owner's.
        """
        return all(found.borrowed != fh for found in self._inodes.get(nodeid, {}).values())

    def check_descriptors(self) -> None:
        """Raise ENFILE if there is no descriptor left for one more owner."""
        self._budget.check(1)

    def open(
        self,
        nodeid: int,
        owner: int,
        fd: int,
        borrowed: int | None = None,
        *,
        remote: bool = False,
    ) -> None:
        """Put an owner's locks on the open file description of ``fd`` from now on.

        Takes ownership of ``fd``, unless it is ``borrowed`` from an open file. ``remote``: it is of
        a remote file system. Locks that the owner
        has are moved. Another process can get one of them in between, which the owner then loses.
        """
        if borrowed is None:
            self._budget.used += 1
        former = self._inodes.get(nodeid, {}).get(owner)
        found = _Owner(fd, borrowed, remote)
        if former is not None:
            self.close(nodeid, owner)
            found.handles = former.handles
            found.locks = [lock for lock in former.locks if _lock(fd, lock)]
            self._count += len(found.locks)
        if borrowed is not None:
            # Also if no lock is taken through it: its descriptor is of no use once it is closed.
            found.handles.add(borrowed)
        self._inodes.setdefault(nodeid, {})[owner] = found

    def check_room(self, lock: Lock) -> None:
        """Raise ENOLCK if taking ``lock`` might make too many; it may split one into three."""
        if self._count + 2 > MAX_LOCKS and lock.kind != fcntl.F_UNLCK:
            raise failure(errno.ENOLCK)

    def put(self, nodeid: int, owner: int, lock: Lock, fh: int) -> None:
        """Record a lock or unlock that the kernel has performed, for the open file ``fh``."""
        found = self._inodes[nodeid][owner]
        found.handles.add(fh)
        self._count -= len(found.locks)
        found.put(lock)
        self._count += len(found.locks)
        self._changed(nodeid, owner)
        self.close_if_unused(nodeid, owner)

    def conflict(self, nodeid: int, owner: int, lock: Lock) -> Lock | None:
        """Return a lock of another owner that conflicts with ``lock``; None if there is none."""
        for other, found in self._inodes.get(nodeid, {}).items():
            if other == owner:
                continue
            for held in found.locks:
                overlaps = held.start <= lock.end and lock.start <= held.end
                if overlaps and fcntl.F_WRLCK in (held.kind, lock.kind):
                    return held
        return None

    def close_if_unused(self, nodeid: int, owner: int) -> None:
        """Close the descriptor of an owner without locks."""
        if not self._inodes[nodeid][owner].locks:
            self.close(nodeid, owner)

    def close(self, nodeid: int, owner: int, closing: int | None = None) -> None:
        """Release all of an owner's locks on an inode, if it has any.

        ``closing``: the open file that is closed next. Locks on its description go with it, which
        on a remote file system does not keep the loop waiting.
        """
        owners = self._inodes.get(nodeid)
        found = None if owners is None else owners.pop(owner, None)
        if owners is None or found is None:
            return
        self._changed(nodeid, owner)
        if not owners:
            del self._inodes[nodeid]
        self._count -= len(found.locks)
        if found.borrowed is None:
            self._budget.used -= 1
            (self._close_remote if found.remote else os.close)(found.fd)
        elif found.locks and not (found.remote and found.borrowed == closing):
            fcntl.fcntl(found.fd, fcntl.F_OFD_SETLK, packed(_UNLOCK_ALL))

    def release(self, nodeid: int, fh: int) -> None:
        """Release the locks of each owner that has taken one through the open file ``fh``."""
        owners = self._inodes.get(nodeid)
        if owners is None:
            return
        for owner, found in list(owners.items()):
            if fh in found.handles:
                self.close(nodeid, owner, closing=fh)

    def drop(self, nodeid: int) -> None:
        """Release all locks on an inode that the guest has forgotten."""
        for owner in list(self._inodes.get(nodeid, ())):
            self.close(nodeid, owner)

    def add_handles(self, nodeid: int, owner: int, handles: Iterable[int]) -> None:
        """Record that an owner has taken locks through these open files, too."""
        self._inodes[nodeid][owner].handles.update(handles)

    def of_owner(self, nodeid: int, owner: int) -> tuple[list[Lock], set[int]]:
        """Return an owner's locks on an inode, and the open files through which it took any."""
        found = self._inodes.get(nodeid, {}).get(owner)
        return ([], set()) if found is None else (found.locks, found.handles)

    def owners(self) -> list[tuple[int, int]]:
        """Return the nodeid and the owner of all locks, each pair once."""
        return [(nodeid, owner) for nodeid, owners in self._inodes.items() for owner in owners]

    def _changed(self, nodeid: int, owner: int) -> None:
        if self.changes is not None:
            self.changes.owners.add((nodeid, owner))

    def export_state(self, state: State, fds: Descriptors) -> None:
        """Add all owners and locks to a state. The locks stay with their descriptions."""
        for nodeid, owners in self._inodes.items():
            for owner, found in owners.items():
                borrowed = NONE if found.borrowed is None else found.borrowed
                fd = fds.add(found.fd) if found.borrowed is None else NONE
                state.lock_owners.append(LockOwnerState(nodeid, owner, borrowed, fd))
                state.lock_handles += [LockHandleState(nodeid, owner, fh) for fh in found.handles]
                state.locks += [LockState(nodeid, owner, *lock) for lock in found.locks]

    def restore_state(self, state: State, fds: ReceivedDescriptors, files: OpenFileTable) -> None:
        """Add the owners and locks of a state; ``files`` are restored. ``StateError``."""
        on_remote = {record.nodeid for record in state.open_files if record.remote}
        for record in state.lock_owners:
            remote = record.nodeid in on_remote
            borrowed = None if record.borrowed == NONE else record.borrowed
            if self.fd(record.nodeid, record.owner) is not None:
                raise StateError("a lock owner is there twice")
            if borrowed is None:
                self.open(record.nodeid, record.owner, fds.take(record.fd), remote=remote)
            else:
                fd = files.fd(record.nodeid, borrowed)
                self.open(record.nodeid, record.owner, fd, borrowed, remote=remote)
        try:
            for handle in state.lock_handles:
                self._inodes[handle.nodeid][handle.owner].handles.add(handle.fh)
            for lock in state.locks:
                held = Lock(lock.kind, lock.start, lock.end, lock.pid)
                self._inodes[lock.nodeid][lock.owner].locks.append(held)
                self._count += 1
        except KeyError:
            raise StateError("a lock has no owner") from None

    def clear(self) -> None:
        """Release all locks. All files are closed next."""
        for nodeid, owners in list(self._inodes.items()):
            for owner, found in list(owners.items()):
                self.close(nodeid, owner, closing=found.borrowed)


def packed(lock: Lock) -> bytes:
    """Return ``struct flock`` of a lock."""
    length = 0 if lock.end == OFFSET_MAX else lock.end - lock.start + 1
    return FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0)


def _lock(fd: int, lock: Lock) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, packed(lock))
    except OSError:
        return False
    return True
