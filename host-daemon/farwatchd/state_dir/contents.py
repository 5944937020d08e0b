# SPDX-License-Identifier: Apache-2.0
"""What a journal has: the state that its transactions lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from farwatchd.wire.journal import (
    HandleInodeState,
    LookupsState,
    MountIdentityState,
    MountPlaceState,
    OptionsState,
    PathInodeState,
    ReleasedState,
    RenamedState,
    Transaction,
    UnlockedState,
)
from farwatchd.wire.state import (
    FlockState,
    InterruptState,
    LockHandleState,
    LockState,
    NumbersState,
    OpenFileState,
    PendingReplyState,
    SessionState,
    StateError,
)

#: The largest nodeid or fh: no daemon comes to it.
_MAX_NUMBER = 1 << 62


class OwnerLocks:
    """The locks of one owner on one inode, and the open files through which it took any."""

    def __init__(self) -> None:
        self.locks: list[LockState] = []
        self.handles: list[int] = []


class _Place:
    """A name in a directory, by which an inode was found; the root has neither."""

    __slots__ = ("children", "name", "parent")

    def __init__(self, parent: _Place | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[bytes, _Place] = {}

    def path(self) -> bytes:
        """Return the path from the root."""
        names: list[bytes] = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return b"/".join(reversed(names))

    def child(self, name: bytes) -> _Place:
        """Return what has a name in this directory."""
        found = self.children.get(name)
        if found is None:
            found = self.children[name] = _Place(self, name)
        return found

    def move(self, directory: _Place, name: bytes) -> None:
        """Move it. What was there before stays there, as if it had another link of that name."""
        self.parent = directory
        self.name = name
        directory.children[name] = self


class Contents:
    """The state, by the numbers of the guest."""

    def __init__(self) -> None:
        self.options = b""
        self.session: SessionState | None = None
        self.mounts: dict[int, MountPlaceState] = {}
        self.mount_identities: dict[int, MountIdentityState] = {}
        self.inodes: dict[int, HandleInodeState | PathInodeState] = {}
        self.files: dict[int, OpenFileState] = {}
        self.flocks: dict[int, int] = {}
        self.owners: dict[tuple[int, int], OwnerLocks] = {}
        self.interrupts: list[InterruptState] = []
        self.pending: list[PendingReplyState] = []
        self.next_nodeid = 1
        self.next_fh = 1
        self._root = _Place(None, b"")
        #: Where inodes and mounts are, by their numbers, if they have a path.
        self._inode_places: dict[int, _Place] = {}
        self._mount_places: dict[int, _Place] = {}

    def apply(self, transactions: Iterable[Transaction]) -> None:
        """Apply transactions in their order; ``StateError``: they contradict each other."""
        for transaction in transactions:
            for record in transaction.records:
                _APPLY[type(record)](self, record)
        if max(self.next_nodeid, self.next_fh) > _MAX_NUMBER:
            # The numbers after these would not fit a reply.
            raise StateError("its numbers are impossible")
        for nodeid, place in self._inode_places.items():
            inode = self.inodes[nodeid]
            assert isinstance(inode, PathInodeState)
            self.inodes[nodeid] = inode._replace(path=place.path())
        for ident, place in self._mount_places.items():
            self.mounts[ident] = self.mounts[ident]._replace(path=place.path())

    def _set_options(self, record: OptionsState) -> None:
        self.options = record.text

    def _set_session(self, record: SessionState) -> None:
        self.session = record

    def _set_numbers(self, record: NumbersState) -> None:
        self.next_nodeid = max(self.next_nodeid, record.nodeid)
        self.next_fh = max(self.next_fh, record.fh)

    def _set_mount(self, record: MountPlaceState) -> None:
        self.mounts[record.ident] = record
        self._mount_places[record.ident] = self._place(record.path)

    def _set_mount_identity(self, record: MountIdentityState) -> None:
        self.mount_identities[record.ident] = record

    def _set_inode(self, record: HandleInodeState | PathInodeState) -> None:
        self.inodes[record.nodeid] = record
        self.next_nodeid = max(self.next_nodeid, record.nodeid + 1)
        self._inode_places.pop(record.nodeid, None)
        if isinstance(record, PathInodeState) and record.path:
            self._inode_places[record.nodeid] = self._place(record.path)

    def _count_lookups(self, record: LookupsState) -> None:
        if not record.lookups:
            self.inodes.pop(record.nodeid, None)
            self._inode_places.pop(record.nodeid, None)
            return
        inode = self.inodes.get(record.nodeid)
        if inode is None:
            raise StateError("its journal counts lookups of an unknown inode")
        self.inodes[record.nodeid] = inode._replace(lookups=record.lookups, named=record.named)

    def _open(self, record: OpenFileState) -> None:
        self.files[record.fh] = record
        self.next_fh = max(self.next_fh, record.fh + 1)

    def _release(self, record: ReleasedState) -> None:
        self.files.pop(record.fh, None)
        self.flocks.pop(record.fh, None)

    def _flock(self, record: FlockState) -> None:
        self.flocks[record.fh] = record.kind

    def _interrupt(self, record: InterruptState) -> None:
        self.interrupts.append(record)

    def _defer(self, record: PendingReplyState) -> None:
        self.pending.append(record)

    def _unlock(self, record: UnlockedState) -> None:
        self.owners.pop((record.nodeid, record.owner), None)

    def _lock(self, record: LockState) -> None:
        self._owner(record).locks.append(record)

    def _lock_handle(self, record: LockHandleState) -> None:
        self._owner(record).handles.append(record.fh)

    def _owner(self, record: LockState | LockHandleState) -> OwnerLocks:
        return self.owners.setdefault((record.nodeid, record.owner), OwnerLocks())

    def _rename(self, record: RenamedState) -> None:
        old, new = record.path, record.new_path
        if not old or not new or _is_within(old, new) or _is_within(new, old):
            # It failed: what a server has to do is recorded before.
            return
        place, other = self._known(old), self._known(new)
        (directory, name), (new_directory, new_name) = self._entry(old), self._entry(new)
        if place is not None:
            del directory.children[name]
            place.move(new_directory, new_name)
        if record.exchanged and other is not None:
            if place is None:
                del new_directory.children[new_name]
            other.move(directory, name)

    def _place(self, path: bytes) -> _Place:
        place = self._root
        for name in filter(None, path.split(b"/")):
            place = place.child(name)
        return place

    def _entry(self, path: bytes) -> tuple[_Place, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self._place(directory), name

    def _known(self, path: bytes) -> _Place | None:
        place: _Place | None = self._root
        for name in path.split(b"/"):
            if place is None:
                return None
            place = place.children.get(name)
        return place


def renamed(path: bytes, rename: RenamedState) -> bytes:
    """Return the path of what was at ``path`` before a rename."""
    if _is_within(path, rename.path):
        return rename.new_path + path[len(rename.path) :]
    if rename.exchanged and _is_within(path, rename.new_path):
        return rename.path + path[len(rename.new_path) :]
    return path


def _is_within(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


_APPLY: dict[type, Callable[[Contents, Any], None]] = {
    OptionsState: Contents._set_options,
    SessionState: Contents._set_session,
    NumbersState: Contents._set_numbers,
    MountPlaceState: Contents._set_mount,
    HandleInodeState: Contents._set_inode,
    PathInodeState: Contents._set_inode,
    LookupsState: Contents._count_lookups,
    OpenFileState: Contents._open,
    ReleasedState: Contents._release,
    FlockState: Contents._flock,
    UnlockedState: Contents._unlock,
    LockState: Contents._lock,
    LockHandleState: Contents._lock_handle,
    RenamedState: Contents._rename,
    MountIdentityState: Contents._set_mount_identity,
    InterruptState: Contents._interrupt,
    PendingReplyState: Contents._defer,
}
