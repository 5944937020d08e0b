# SPDX-License-Identifier: Apache-2.0
"""One side of a migration in this process: a session, and what saves and loads its state."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.migration.migrated_session import MigratedSession
from farwatchd.migration.options import MigrationMode, MigrationOptions, OnMigrationError
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire.migrated_state import decode_migration, encode_migration
from tests.support.fuse_client import Client
from tests.support.passthrough_share import open_descriptors


class MigrationSide:
    """A session, and what migrates it."""

    def __init__(
        self, share: Path, mode: MigrationMode, options: ShareOptions | None = None
    ) -> None:
        """``options``: by default extended attributes are on."""
        self.loop = Loop()
        self.store = InodeStore(InodeFileHandles.PREFER, 4)
        self.fs = PassthroughFs(share, options or ShareOptions(xattr=True), self.store)
        locks = BlockingLocks(self.loop.call_later)
        pool = ThreadPool()
        served = SessionOptions(posix_lock=True, flock=True)
        self.session = Session(self.fs, None, served, locks, pool)
        device = Device(self.loop, self.session, DeviceConfig("share"))
        migration = MigrationOptions(mode, OnMigrationError.GUEST_ERROR)
        self.migrated = MigratedSession(
            migration, self.fs, self.store, self.session, pool, locks, None, device, lambda: None
        )

    def records(self) -> list[Any]:
        """Save the session; return the records of its state."""
        saved = decode_migration(self.migrated.save())
        return [record for transaction in saved for record in transaction.records]

    def load(self, records: list[Any]) -> Client:
        """Load a state of these records; return a client of its session. ``StateError``."""
        self.migrated.load(encode_migration(records))
        return Client(self.session)

    def idle_descriptors(self) -> int:
        """End the session, and return how many descriptors are left."""
        self.session.reset()
        # What was used since the last time stays open until the next one.
        self.store.close_idle()
        self.store.close_idle()
        gc.collect()
        return open_descriptors()

    def close(self) -> None:
        self.session.reset()
        self.fs.close()
        self.loop.close()
