# SPDX-License-Identifier: Apache-2.0
"""Makes the session of a migrated state: finds the guest's inodes, opens its files."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence

from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.store import GONE, HostInode, InodeStore
from farwatchd.linux.file_handles import handle_of, is_complete
from farwatchd.migration.path_search import find_paths
from farwatchd.migration.source import mount_identity
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.places import PlaceIdentity, Places
from farwatchd.state_dir.recovery import Restored
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtqueue import VirtqueueError
from farwatchd.wire.journal import HandleInodeState, MountPlaceState, PathInodeState
from farwatchd.wire.state import PendingReplyState

_log = logging.getLogger(__name__)


class MigratedTables(Restored):
    """The tables of the share, as they were at the source.

    The state may come from anyone. An inode by handle must be in the share, as each file of its
    file system has a handle.
    """

    def __init__(
        self, contents: Contents, fs: PassthroughFs, store: InodeStore, places: Places
    ) -> None:
        super().__init__(contents, fs, store, places)
        self._identities = contents.mount_identities
        #: Nodeids that the guest has open.
        self._open_nodeids = {each.nodeid for each in contents.files.values()}
        #: Inodes by handle that may be in the share.
        self._unsure: dict[int, tuple[HandleInodeState, HostInode, PlaceIdentity]] = {}

    @property
    def losses(self) -> str:
        """What is lost, as text for the user; empty for nothing."""
        counts = (
            (self.lost_inodes, "inodes are not found"),
            (self.lost_files, "open files cannot be opened"),
            (self.lost_locks, "locks are not free"),
        )
        return ", ".join(f"{count} {what}" for count, what in counts if count)

    def _find(self, record: HandleInodeState | PathInodeState) -> None:
        if (
            isinstance(record, PathInodeState)
            and not record.path
            and not record.ino
            and record.nodeid != ROOT
        ):
            # The source could not open it either.
            self._add(record, self._store.stale())
            return
        if isinstance(record, HandleInodeState) and record.nodeid != ROOT:
            found = self._by_handle(record) if is_complete(handle_of(record.key)) else None
            if found is None:
                self._lose(record)
            else:
                self._add_if_shared(record, found)
            return
        super()._find(record)

    def _add_if_shared(self, record: HandleInodeState, found: HostInode) -> None:
        """Add an inode, whose reference is taken, if it is in the share and of its kind."""
        try:
            fd = self._store.open(found)
            status = os.fstat(fd)
        except OSError as error:
            if error.errno not in GONE:
                raise
            # It was deleted. The guest forgets it, unless it has it open.
            self._add_stale(record, found)
            return
        if stat.S_IFMT(status.st_mode) != record.kind:
            self._lose(record, found)
        elif self._store.is_below_mount(found):
            self._add(record, found)
        elif status.st_nlink:
            self._unsure[record.nodeid] = record, found, self._places.identity(fd)
        elif record.nodeid in self._open_nodeids:
            self._lose(record, found)
        else:
            self._add_stale(record, found)

    def _find_rest(self) -> None:
        """Add the inodes to which a path leads that the kernel knows, or that is found."""
        unknown: dict[int, PlaceIdentity] = {}
        for nodeid, (record, found, identity) in self._unsure.items():
            path = self._known_path(found)
            if path is not None and self._places.leads_to(path, identity):
                self._add(record, found)
            else:
                unknown[nodeid] = identity
        if not unknown:
            return
        paths = find_paths(self._places, self._share.inodes.get(ROOT).fd, unknown)
        for nodeid in unknown:
            record, found, _ = self._unsure[nodeid]
            if nodeid in paths:
                self._add(record, found)
            else:
                self._lose(record, found)

    def _known_path(self, found: HostInode) -> bytes | None:
        """Return the path that the kernel knows; it may be that of another inode."""
        try:
            return self._places.path(self._store.open(found))
        except OSError as error:
            if error.errno not in GONE:
                raise
            return None

    def _lose(self, record: HandleInodeState, found: HostInode | None = None) -> None:
        self.lost_inodes += 1
        self._add_stale(record, found)

    def _add_stale(self, record: HandleInodeState, found: HostInode | None) -> None:
        if found is not None:
            self._store.put(found)
        self._add(record, self._store.stale())

    def _is_mount(self, record: MountPlaceState, fd: int) -> bool:
        expected = self._identities.get(record.ident)
        return expected is not None and expected == mount_identity(self._places, record.ident, fd)

    def _is_same(
        self, record: PathInodeState, found: PlaceIdentity, status: os.stat_result
    ) -> bool:
        if stat.S_IFMT(status.st_mode) != record.kind:
            return False
        if record.handle:
            return found.handle == record.handle
        # Without both the path alone decides.
        return not record.birth or (found.ino, found.birth) == (record.ino, record.birth)


class Arrived:
    """A session that has come, before its rings run here: ``FormerSession``."""

    def __init__(self, pending: list[PendingReplyState], fail: Callable[[str], None]) -> None:
        self._pending = pending
        self._fail = fail

    def resume(self, vrings: Sequence[Vring]) -> list[PendingReplyState] | None:
        """Have the rings go on; see ``FormerSession``."""
        rings = {each.index: each.ring for each in vrings if each.ring is not None}
        if not {each.queue for each in self._pending} <= rings.keys():
            return None
        try:
            for queue, ring in rings.items():
                ring.go_on_after(sum(each.queue == queue for each in self._pending))
        except VirtqueueError as error:
            self._fail(str(error))
            return []
        for vring in vrings:
            # Of what the source has completed last the driver may not know.
            vring.interrupt()
        return self._pending

    def left(self) -> bool:
        """Return that the session ends with its front-end; see ``FormerSession``."""
        return False
