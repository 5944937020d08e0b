# SPDX-License-Identifier: Apache-2.0
"""Makes the session of a migrated state: finds the guest's inodes, opens its files."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence

from farwatchd.fuse.filesystem import ROOT
from farwatchd.inode_store.store import InodeStore
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
    """The tables of the share, as they were at the source."""

    def __init__(
        self, contents: Contents, fs: PassthroughFs, store: InodeStore, places: Places
    ) -> None:
        super().__init__(contents, fs, store, places)
        self._identities = contents.mount_identities

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
        super()._find(record)

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
