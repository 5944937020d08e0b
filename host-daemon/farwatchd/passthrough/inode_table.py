# SPDX-License-Identifier: Apache-2.0
"""The inodes that the guest knows: nodeid, host inode, lookup count.

A nodeid is used once in the life of the table, so every inode has generation 0.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.inode_store.store import (
    ExportedInodes,
    HostInode,
    InodeStore,
    Place,
    deleted_directory,
    mount_id_of,
)
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import open_path
from farwatchd.passthrough.changes import StateChanges
from farwatchd.passthrough.options import DEFAULT_MAX_INODES
from farwatchd.passthrough.procfd import as_systems_limit
from farwatchd.passthrough.tasks import Owned
from farwatchd.wire.state import InodeState, State, StateError

GENERATION = 0
#: File types, each as the one number that all inodes of the type have.
_KINDS = {
    kind: kind
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
}


@dataclass(slots=True)
class Inode:
    """One inode.

    ``kind`` is its file type (``S_IFMT`` bits of the mode), which never changes. ``named``: it had
    a name at some lookup; such an inode is unlinked when it has none.
    """

    nodeid: int
    host_inode: HostInode
    kind: int
    lookups: int
    named: bool

    @property
    def fd(self) -> int:
        """Return an O_PATH descriptor.

        It is valid from ``InodeTable.get`` or ``lookup`` to the end of the operation.
        """
        return self.host_inode.fd

    @property
    def is_dir(self) -> bool:
        """Return whether the inode is a directory."""
        return stat.S_ISDIR(self.kind)

    @property
    def remote(self) -> bool:
        """Return whether its file system is that of a server, which may not answer."""
        return self.host_inode.remote


class RemoteMountError(Exception):
    """A name is a mount point whose file system may not answer.

    ``owned`` is its O_PATH descriptor.
    """

    def __init__(self, fd: int) -> None:
        super().__init__("the file system may not answer")
        self.owned = Owned(fd)


class InodeTable:
    """The table, for at most ``most`` inodes; ``store`` has their host inodes.

    ``root_fd`` is the share's root; the table takes ownership.
    """

    def __init__(self, root_fd: int, store: InodeStore, most: int = DEFAULT_MAX_INODES) -> None:
        self._store = store
        self._touch = store.touch
        self._most = most
        self._next = ROOT
        self._by_nodeid: dict[int, Inode] = {}
        self._by_host_inode: dict[HostInode, Inode] = {}
        #: Whether the last inode that was looked up was open already. Such an inode is found by its
        #: handle in two system calls; another one takes three, and trying so makes it four. Guests
        #: look up many new names in a row, or many known ones.
        self._expects_open = False
        #: Gets what changes, unless it is None.
        self.changes: StateChanges | None = None
        self._root = self.adopt(root_fd)[0]

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """Return the inode, open.

        ESTALE: the nodeid is unknown, or the guest has forgotten it, or the host has deleted the
        inode.
        """
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise failure(errno.ESTALE)
        host_inode = inode.host_inode
        if host_inode.fd >= 0:
            if host_inode.by_handle:
                self._touch(host_inode)
            return inode
        try:
            self._store.open(host_inode)
        except OSError as error:
            raise as_systems_limit(error) from None
        return inode

    def known(self, nodeid: int) -> Inode | None:
        """Return the inode, which may not be open; None if the guest does not know it."""
        return self._by_nodeid.get(nodeid)

    def all(self) -> Iterable[Inode]:
        """Return the inodes in the table; none of them may be added or forgotten meanwhile."""
        return self._by_nodeid.values()

    def mount_descriptor(self, mount: int) -> int | None:
        """Return the descriptor by which inodes of a mount are opened; None if there is none."""
        return self._store.mount_descriptor(mount)

    def nodeid(self, host_inode: HostInode) -> int | None:
        """Return the guest's number of an object; None if the guest does not know it."""
        inode = self._by_host_inode.get(host_inode)
        return None if inode is None else inode.nodeid

    def deleted_directory(self, nodeid: int) -> os.stat_result | None:
        """Return the last known attributes of a directory that cannot be opened any more.

        None: the nodeid is unknown or no directory, or the attributes are unknown.
        """
        inode = self._by_nodeid.get(nodeid)
        return None if inode is None else deleted_directory(inode.host_inode)

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result] | None:
        """Look up one name and count it; return None if there is no such name.

        ``RemoteMountError``: it is a mount point whose file system may not answer. ``parent`` is on
        no remote file system.
        """
        if self._expects_open:
            found = self._store.entry(parent.host_inode.fd, name)
            if found == errno.ENOENT:
                return None
            if (
                isinstance(found, HostInode)
                and not found.remote
                and (inode := self._by_host_inode.get(found))
            ):
                return inode, self.count_again(inode)
            self._expects_open = False
        fd = open_path(parent.host_inode.fd, name)
        if fd < 0:
            if fd == -errno.ENOENT:
                return None
            if -fd not in OUT_OF_DESCRIPTORS:
                raise failure(-fd)
            fd = self._open_again(parent, name)
        try:
            place = self._store.place(fd)
        except BaseException:
            os.close(fd)
            raise
        mount = mount_id_of(place)
        if (
            mount != parent.host_inode.mount_id
            and self._store.remote_mounts.known(mount) is not False
        ):
            raise RemoteMountError(fd)
        return self.adopt(fd, place=place)

    def adopt(
        self, fd: int, status: os.stat_result | None = None, place: Place | None = None
    ) -> tuple[Inode, os.stat_result]:
        """Count one lookup of the inode of an O_PATH descriptor, whose ownership is taken.

        ``status``, ``place``: its own, if they are known.
        """
        if status is None:
            try:
                status = os.fstat(fd)
            except BaseException:
                os.close(fd)
                raise
        try:
            host_inode = self._store.adopt(fd, status, place)
        except OSError as error:
            raise as_systems_limit(error) from None
        self._expects_open = host_inode.by_handle and host_inode.fd != fd
        inode = self._by_host_inode.get(host_inode)
        if inode is None:
            if len(self._by_nodeid) >= self._most:
                self._store.put(host_inode)
                raise failure(errno.ENFILE)
            kind = stat.S_IFMT(status.st_mode)
            kind = _KINDS.get(kind, kind)
            inode = Inode(self._next, host_inode, kind, 1, status.st_nlink > 0)
            self._next += 1
            self._by_nodeid[inode.nodeid] = self._by_host_inode[host_inode] = inode
            if self.changes is not None:
                self.changes.new.add(inode.nodeid)
        else:
            self._store.put(host_inode)
            self._count(inode, status)
        return inode, status

    def adopt_found(
        self, fd: int, status: os.stat_result, remote: bool | None
    ) -> tuple[Inode, os.stat_result]:
        """Count one lookup of what a thread has found.

        ``remote``: as of ``RemoteMounts.learn``, None if that is known.
        """
        try:
            place = self._store.place(fd)
        except BaseException:
            os.close(fd)
            raise
        if remote is not None:
            self._store.remote_mounts.learn(mount_id_of(place), remote)
        return self.adopt(fd, status, place)

    def count_again(self, inode: Inode) -> os.stat_result:
        """Count one more lookup of an open inode; return its attributes."""
        status = os.fstat(inode.fd)
        self._count(inode, status)
        return status

    def count_linked(self, nodeid: int, status: os.stat_result) -> Inode:
        """Count one more lookup of an inode that got a name; return it.

        ``status``: its attributes. ESTALE: the guest has forgotten it.
        """
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise failure(errno.ESTALE)
        self._count(inode, status)
        return inode

    def forget(self, nodeid: int, count: int) -> bool:
        """Subtract ``count`` lookups; return whether the lookup count is 0 now.

        The root stays, and unknown nodeids are ignored.
        """
        inode = self._by_nodeid.get(nodeid)
        if inode is None or inode is self._root:
            return False
        inode.lookups -= count
        if self.changes is not None:
            self.changes.inodes.add(nodeid)
        if inode.lookups > 0:
            return False
        self._drop(inode)
        return True

    def clear(self) -> None:
        """Forget all inodes but the root."""
        for inode in list(self._by_nodeid.values()):
            if inode is not self._root:
                self._drop(inode)

    def close(self) -> None:
        """Forget all inodes, the root too."""
        self.clear()
        self._drop(self._root)

    def export_state(self, state: State, host_inodes: ExportedInodes) -> None:
        """Add all inodes to a state."""
        state.inodes += [
            InodeState(
                inode.nodeid,
                host_inodes.index(inode.host_inode),
                inode.kind,
                inode.lookups,
                inode.named,
            )
            for inode in self._by_nodeid.values()
        ]

    def recover(
        self,
        nodeid: int,
        found: HostInode,
        kind: int,
        lookups: int,
        named: bool,
    ) -> None:
        """Add an inode that a former process of the daemon had; own its reference from now on.

        An inode that the guest knows by another number becomes stale.
        """
        if nodeid == ROOT:
            self._root.lookups = lookups
            self._store.put(found)
            return
        if found in self._by_host_inode:
            self._store.put(found)
            found = self._store.stale()
        inode = Inode(nodeid, found, _KINDS.get(kind, kind), lookups, named)
        self._by_nodeid[nodeid] = self._by_host_inode[found] = inode
        self._next = max(self._next, nodeid + 1)

    def skip_numbers(self, next_nodeid: int) -> None:
        """Give no number below ``next_nodeid``."""
        self._next = max(self._next, next_nodeid)

    def restore_state(
        self, records: list[InodeState], host_inodes: list[HostInode], next_nodeid: int
    ) -> None:
        """Add the inodes of a state, whose root must be this root; ``StateError``."""
        for record in records:
            if record.host_inode >= len(host_inodes):
                raise StateError("an inode has no host inode")
            host_inode = host_inodes[record.host_inode]
            if record.nodeid == ROOT:
                if host_inode is not self._root.host_inode:
                    raise StateError("it is of another shared directory")
                self._root.lookups = record.lookups
                continue
            if record.nodeid in self._by_nodeid or host_inode in self._by_host_inode:
                raise StateError("an inode is there twice")
            if not ROOT < record.nodeid < next_nodeid:
                raise StateError("an inode has a number that was not given yet")
            kind = _KINDS.get(record.kind, record.kind)
            inode = Inode(record.nodeid, host_inode, kind, record.lookups, bool(record.named))
            host_inode.references += 1
            self._by_nodeid[inode.nodeid] = self._by_host_inode[host_inode] = inode
        self._next = next_nodeid

    def tables(self) -> dict[str, object]:
        """Return what the native part looks inodes up in: it changes what is in there."""
        return {
            "inodes": self._by_nodeid,
            "by_host_inode": self._by_host_inode,
            **self._store.tables(),
        }

    @property
    def next_nodeid(self) -> int:
        """The number of the next inode."""
        return self._next

    def _count(self, inode: Inode, status: os.stat_result) -> None:
        inode.lookups += 1
        inode.named = inode.named or status.st_nlink > 0
        if self.changes is not None:
            self.changes.inodes.add(inode.nodeid)

    def _open_again(self, parent: Inode, name: bytes) -> int:
        """Open a name when there was no descriptor left: the store closes one first."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return self._store.with_room(lambda: os.open(name, flags, dir_fd=parent.fd))
        except OSError as error:
            raise as_systems_limit(error) from None

    def _drop(self, inode: Inode) -> None:
        del self._by_nodeid[inode.nodeid]
        del self._by_host_inode[inode.host_inode]
        self._store.put(inode.host_inode)
