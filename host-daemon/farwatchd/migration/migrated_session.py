# SPDX-License-Identifier: Apache-2.0
"""The session as a transfer of its state sees it: ``MigratedState``."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.filesystem import ROOT
from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.inode_store.store import InodeStore
from farwatchd.migration.destination import Arrived, MigratedTables
from farwatchd.migration.options import MigrationOptions, OnMigrationError
from farwatchd.migration.source import Collector
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.host_locks import HostLocks
from farwatchd.state_dir.places import Places
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.device import Device
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import WATCHES_LOST
from farwatchd.wire.migrated_state import MAX_SIZE, decode_migration, encode_migration
from farwatchd.wire.state import NONE, PendingReplyState, State, StateError

_log = logging.getLogger(__name__)

#: Seconds that tasks of threads may take before the state is made. The guest is stopped.
_SETTLE_LIMIT = 2.0
#: Seconds that locks may be another daemon's, which a migration that failed has given them to.
_LOCKS_LIMIT = 2.0


class MigratedSession:
    """Saves and loads the session of the parts that it is made of."""

    def __init__(
        self,
        options: MigrationOptions,
        fs: PassthroughFs,
        store: InodeStore,
        session: Session,
        pool: ThreadPool,
        locks: BlockingLocks,
        queue: EventQueue | None,
        device: Device,
        on_load: Callable[[], None],
    ) -> None:
        """``on_load`` is called when a session has come."""
        self._options = options
        self._fs = fs
        self._store = store
        self._session = session
        self._pool = pool
        self._locks = locks
        self._queue = queue
        self._device = device
        self._on_load = on_load
        self._departed: Departed | None = None
        self._places = Places(lambda: fs.share.inodes.get(ROOT).fd, fs.share.proc)

    @property
    def max_size(self) -> int:
        """The largest state that is taken, in bytes."""
        return MAX_SIZE

    def save(self) -> bytes:
        """Return the state of the stopped session; see ``MigratedState``.

        Locks on the host are released, for the destination. If the rings start again, the session
        goes on here with its locks.
        """
        began = time.monotonic()
        if not self._pool.settle(_SETTLE_LIMIT):
            raise StateError(
                "requests of the guest wait for a disk or a network; try again when the host has"
                " finished them"
            )
        if self._device.former is not None:
            if self._device.former is not self._departed:
                raise StateError("the guest has not run here yet")
            # It was saved before, and has not run since.
            self._departed.take_locks()
        share = self._fs.share
        try:
            negotiated = State()
            self._session.export_state(negotiated, 0)
            records: list[Any] = [each for each in negotiated.session if each.flags != NONE]
            records += negotiated.interrupts
            records += self._device.export_state()
            records += Collector(share, self._places, self._options).records()
            data = encode_migration(records)
        except OSError as error:
            raise StateError(f"the state cannot be made: {error.strerror}") from error
        self._departed = Departed(self._fs, self._locks)
        self._device.expect_former(self._departed)
        _log.info(
            "the guest's state was saved: %d inodes, %d open files, %d bytes in %.1f ms",
            len(share.inodes),
            len(share.open_files),
            len(data),
            (time.monotonic() - began) * 1000,
        )
        return data

    def load(self, data: bytes) -> None:
        """Become the session of a state; see ``MigratedState``."""
        began = time.monotonic()
        transactions = decode_migration(data)
        self._end()
        try:
            contents = Contents()
            contents.apply(transactions)
            tables = MigratedTables(contents, self._fs, self._store, self._places)
            tables.restore()
            losses = tables.losses
            if losses and self._options.migration_on_error is OnMigrationError.ABORT:
                raise StateError(f"{losses} (--migration-on-error=guest-error goes on without)")
            if contents.session is not None:
                self._session.restore_state(
                    State(session=[contents.session], interrupts=contents.interrupts)
                )
        except (OSError, ValueError, OverflowError, KeyError, struct.error) as error:
            self._end()
            raise StateError(f"it contradicts itself ({error})") from error
        except StateError:
            self._end()
            raise
        if losses:
            _log.warning("the guest gets errors: %s", losses)
        if self._queue is not None and self._session.has_events:
            self._queue.push(WATCHES_LOST)
            self._queue.announce()
        self._device.expect_former(Arrived(contents.pending, self._fail))
        self._on_load()
        _log.info(
            "the guest's state was loaded: %d inodes, %d open files, %d requests in"
            " flight, in %.1f ms",
            len(self._fs.share.inodes),
            len(self._fs.share.open_files),
            len(contents.pending),
            (time.monotonic() - began) * 1000,
        )

    def _end(self) -> None:
        """End the session that is here, with its requests."""
        self._device.reset()

    def _fail(self, problem: str) -> None:
        _log.error("the session cannot go on: %s; the guest has to mount the share again", problem)
        self._end()


class Departed:
    """A session that was saved, and may go on here if the migration fails: ``FormerSession``."""

    def __init__(self, fs: PassthroughFs, blocking: BlockingLocks) -> None:
        self._fs = fs
        self._blocking = blocking
        blocking.suspended = True
        self._owners, self._files = HostLocks(fs).release_all()

    def resume(self, _vrings: Sequence[Vring]) -> list[PendingReplyState]:
        """Go on here; see ``FormerSession``."""
        self.take_locks()
        _log.info("the guest goes on where its state was saved")
        return []

    def take_locks(self) -> None:
        """Take the locks again."""
        self._blocking.suspended = False
        host = HostLocks(self._fs)
        deadline = time.monotonic() + _LOCKS_LIMIT
        for held in self._owners:
            host.posix(held, deadline)
        for fh, kind in self._files.items():
            host.flock(fh, kind, deadline)
        if host.lost:
            _log.warning(
                "%d lock owners have lost their locks to others, and the files with them", host.lost
            )

    def left(self) -> bool:
        """Return that the session ends with its front-end; see ``FormerSession``."""
        self._blocking.suspended = False
        return False
