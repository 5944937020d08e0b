# SPDX-License-Identifier: Apache-2.0
"""Which POSIX locks the guest's lock owners hold, and the open file description that each has for
it."""

from __future__ import annotations

import errno
import fcntl
import os

from farwatchd.fuse.filesystem import Lock
from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.linux.libc import failure

#: Locks of all owners together; more are ENOLCK.
MAX_LOCKS = 65536


class _Owner:
    """The locks of one owner on one inode: they do not overlap, and are in order."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.handles: set[int] = set()
        self.locks: list[Lock] = []

    def put(self, lock: Lock) -> None:
        """Take or give back, as fcntl(2) does: parts of former locks remain where they are not
        covered."""
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
    """The table. It owns the descriptors in it."""

    def __init__(self, budget: DescriptorBudget) -> None:
        """``budget`` counts the descriptors in the table, too."""
        self._budget = budget
        self._inodes: dict[int, dict[int, _Owner]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fd(self, nodeid: int, owner: int) -> int | None:
        """The descriptor that holds an owner's locks on an inode, if it has any."""
        found = self._inodes.get(nodeid, {}).get(owner)
        return None if found is None else found.fd

    def check_descriptors(self) -> None:
        """Raise ENFILE if there is no room for the descriptor of one more owner."""
        self._budget.check(1)

    def open(self, nodeid: int, owner: int, fd: int) -> None:
        """Take over the descriptor for the locks of an owner that has none."""
        self._budget.used += 1
        self._inodes.setdefault(nodeid, {})[owner] = _Owner(fd)

    def check_room(self, lock: Lock) -> None:
        """ENOLCK when taking or giving back ``lock`` might make too many; it may split one into
        three."""
        if self._count + 2 > MAX_LOCKS and lock.kind != fcntl.F_UNLCK:
            raise failure(errno.ENOLCK)

    def put(self, nodeid: int, owner: int, lock: Lock, fh: int) -> None:
        """Note what the kernel has granted, and through which of the guest's open files it was
        asked for."""
        found = self._inodes[nodeid][owner]
        found.handles.add(fh)
        self._count -= len(found.locks)
        found.put(lock)
        self._count += len(found.locks)
        self.close_if_unused(nodeid, owner)

    def conflict(self, nodeid: int, owner: int, lock: Lock) -> Lock | None:
        """A lock of another owner that keeps ``owner`` from having ``lock``."""
        for other, found in self._inodes.get(nodeid, {}).items():
            if other == owner:
                continue
            for held in found.locks:
                overlaps = held.start <= lock.end and lock.start <= held.end
                if overlaps and fcntl.F_WRLCK in (held.kind, lock.kind):
                    return held
        return None

    def close_if_unused(self, nodeid: int, owner: int) -> None:
        """Let go of an owner that holds nothing."""
        if not self._inodes[nodeid][owner].locks:
            self.close(nodeid, owner)

    def close(self, nodeid: int, owner: int) -> None:
        """Give back all of an owner's locks on an inode, if it has any."""
        owners = self._inodes.get(nodeid)
        found = None if owners is None else owners.pop(owner, None)
        if owners is None or found is None:
            return
        if not owners:
            del self._inodes[nodeid]
        self._count -= len(found.locks)
        self._budget.used -= 1
        os.close(found.fd)

    def release(self, nodeid: int, fh: int) -> None:
        """Give back the locks of those who took them through an open file that is closed now."""
        for owner, found in list(self._inodes.get(nodeid, {}).items()):
            if fh in found.handles:
                self.close(nodeid, owner)

    def drop(self, nodeid: int) -> None:
        """Give back all locks on an inode: the guest has forgotten it."""
        for owner in list(self._inodes.get(nodeid, ())):
            self.close(nodeid, owner)

    def clear(self) -> None:
        """Give back all."""
        for nodeid in list(self._inodes):
            self.drop(nodeid)
