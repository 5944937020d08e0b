# SPDX-License-Identifier: Apache-2.0
"""Gathers the state of the daemon's parts for another process, and restores it there."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.handover.channel import HandoverError
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.state import (
    Descriptors,
    NumbersState,
    ReceivedDescriptors,
    ServerState,
    State,
    StateError,
)

#: Seconds that tasks of threads may take before a session is handed over. The guest goes on
#: meanwhile, but for what waits.
_SETTLE_LIMIT = 2.0


@dataclass(frozen=True)
class Parts:
    """The parts of a daemon that have state of a session."""

    store: InodeStore
    fs: PassthroughFs
    pool: ThreadPool
    session: Session
    queue: EventQueue | None
    watches: WatchTable | None
    device: Device
    server: Server
    #: The descriptor with the lock of the state directory.
    lock: int | None = None

    def settle(self) -> None:
        """Complete what cannot be handed over; ``HandoverError`` if that takes too long."""
        if not self.pool.settle(_SETTLE_LIMIT):
            raise HandoverError(
                "requests of the guest wait for a disk or a network; try again when the host has"
                " finished them"
            )

    def pause(self) -> None:
        """Stop serving, and take note of all events that the daemon itself has caused."""
        self.server.pause()
        if self.watches is not None:
            self.watches.settle()

    def resume(self) -> None:
        """Serve, after ``pause`` or ``restore_state``."""
        self.server.resume()
        if self.watches is not None:
            self.watches.resume()

    def export_state(self, handover: int, metrics: int | None) -> tuple[State, list[int]]:
        """Return the state of the paused parts, and the descriptors beside it.

        ``handover`` and ``metrics`` are listening sockets. All descriptors stay their owners'.
        ``StateError``: the state cannot be handed over.
        """
        state, fds = State(), Descriptors()
        listener, waiting = self.server.export_state(state, fds)
        state.server.append(
            ServerState(listener, fds.add(handover), fds.add(metrics), waiting, fds.add(self.lock))
        )
        state.pending += self.device.export_state()
        self.session.export_state(state, 0 if self.queue is None else self.queue.dropped)
        host_inodes = self.store.export_state(state, fds)
        self.fs.export_state(state, fds, host_inodes)
        next_watch_id = 1
        if self.watches is not None:
            next_watch_id = self.watches.export_state(state, fds, host_inodes)
        share = self.fs.share
        state.numbers.append(
            NumbersState(share.inodes.next_nodeid, share.open_files.next_fh, next_watch_id)
        )
        return state, fds.fds

    def restore_state(self, state: State, fds: ReceivedDescriptors) -> None:
        """Become the parts of a state, paused; ``StateError``.

        Nothing changes that the guest or the host could notice.
        """
        try:
            host_inodes = self.store.restore_state(state, fds)
            self.fs.restore_state(state, fds, host_inodes)
            if self.watches is not None:
                self.watches.restore_state(state, host_inodes)
            self.session.restore_state(state)
            self.device.restore_state(state.pending)
            self.server.restore_state(state, fds)
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise StateError(f"it contradicts itself ({error})") from error
