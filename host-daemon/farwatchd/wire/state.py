# SPDX-License-Identifier: Apache-2.0
"""The state of a session outside its process, as records (docs/state.md).

Descriptors are not part of it: a record has the index of one in the list that is passed beside the
state. ``state_codec`` encodes it; this module is loaded early, and imports nothing of the daemon.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

#: Changes with each change of a record: another version is refused, never guessed.
VERSION = 4
#: The index of no descriptor, and the number of nothing.
NONE = (1 << 64) - 1


class StateError(Exception):
    """The state cannot be used. The text is one line that says why."""


class ServerState(NamedTuple):
    """The listening sockets, the front-end that waits, and the lock of the state directory."""

    listener: int
    handover: int
    metrics: int
    waiting: int
    lock: int


class ConnectionState(NamedTuple):
    """The connected front-end, with what it has negotiated, and its log of dirty pages.

    ``log``: NONE without one.
    """

    socket: int
    features: int
    protocol_features: int
    log: int
    log_offset: int
    log_size: int
    log_event: int


class RegionState(NamedTuple):
    """A memory region, as the front-end has described it."""

    fd: int
    offset: int
    guest_addr: int
    length: int
    user_addr: int


class VringState(NamedTuple):
    """A ring. ``next_used``: NONE if no chain is in flight; ``log_address`` if none was given."""

    queue: int
    size: int
    has_address: int
    descriptors: int
    available: int
    used: int
    log_address: int
    base: int
    next_used: int
    enabled: int
    broken: int
    has_run: int
    kick: int
    call: int
    err: int
    running: int


class PendingReplyState(NamedTuple):
    """A chain in flight. ``reply``: what is to be sent; empty if the request is handled again."""

    queue: int
    head: int
    reply: bytes


class SessionState(NamedTuple):
    """What INIT negotiated; ``flags`` is NONE before INIT."""

    flags: int
    minor: int
    dropped_records: int


class InterruptState(NamedTuple):
    """An INTERRUPT request whose request has not arrived yet."""

    unique: int


class EventRecordState(NamedTuple):
    """An event record in the queue, as it is sent."""

    record: bytes


class MountState(NamedTuple):
    """A mount of the share, with the descriptor by which its inodes are opened."""

    ident: int
    fd: int
    refused: int
    remote: int


class HostInodeState(NamedTuple):
    """A host inode, found by its file handle in ``key``, or by its descriptor.

    Without both it is stale.
    """

    key: bytes
    dev: int
    ino: int
    mount: int
    by_handle: int
    fd: int
    status: bytes


class InodeState(NamedTuple):
    """An inode that the guest knows. ``host_inode``: index of the host inode's record."""

    nodeid: int
    host_inode: int
    kind: int
    lookups: int
    named: int


class OpenFileState(NamedTuple):
    """An open file or directory."""

    fh: int
    nodeid: int
    fd: int
    flags: int
    append_only: int
    remote: int


class FlockState(NamedTuple):
    """The flock(2) lock of an open file: ``kind`` is F_RDLCK, F_WRLCK or F_UNLCK."""

    fh: int
    kind: int


class LockOwnerState(NamedTuple):
    """A lock owner. ``borrowed``: the open file whose description it uses; else ``fd`` is its."""

    nodeid: int
    owner: int
    borrowed: int
    fd: int


class LockHandleState(NamedTuple):
    """An open file through which an owner has taken a lock."""

    nodeid: int
    owner: int
    fh: int


class LockState(NamedTuple):
    """A lock of an owner."""

    nodeid: int
    owner: int
    kind: int
    start: int
    end: int
    pid: int


class GuestWatchState(NamedTuple):
    """A watch of the guest, served by a host watch."""

    nodeid: int
    generation: int
    watch_id: int
    mask: int


class BackendState(NamedTuple):
    """The watch back end. ``others_only``: it leaves out the daemon's own events."""

    name: bytes
    others_only: int
    returned: int


class GroupState(NamedTuple):
    """A notification group, with the events that are unread."""

    fd: int


class NodeState(NamedTuple):
    """A host watch. ``parent``: the watch id of the directory above it, NONE without one."""

    watch_id: int
    host_inode: int
    identity: bytes
    is_dir: int
    wanted: int
    explicit: int
    outside: int
    pending_removal: int
    removed_by_own: int
    mark_id: int
    mark_identity: bytes
    mark_mask: int
    parent: int
    has_name: int
    name: bytes
    suspect: int
    group: int


class FileSystemGroupState(NamedTuple):
    """The group that has the marks of a file system."""

    fsid: bytes
    group: int


class RefusedState(NamedTuple):
    """A device that the watch back end cannot watch: logged once."""

    device: bytes


class LostNameState(NamedTuple):
    """A name that an inode has lost. ``present``: another inode has it, with this identity."""

    mark_id: int
    name: bytes
    present: int
    identity: bytes


class NumbersState(NamedTuple):
    """The next numbers."""

    nodeid: int
    fh: int
    watch_id: int


@dataclass
class State:
    """All of a session, as records; see the records for what refers to what."""

    server: list[ServerState] = field(default_factory=list)
    connection: list[ConnectionState] = field(default_factory=list)
    regions: list[RegionState] = field(default_factory=list)
    vrings: list[VringState] = field(default_factory=list)
    pending: list[PendingReplyState] = field(default_factory=list)
    session: list[SessionState] = field(default_factory=list)
    interrupts: list[InterruptState] = field(default_factory=list)
    events: list[EventRecordState] = field(default_factory=list)
    mounts: list[MountState] = field(default_factory=list)
    host_inodes: list[HostInodeState] = field(default_factory=list)
    inodes: list[InodeState] = field(default_factory=list)
    open_files: list[OpenFileState] = field(default_factory=list)
    flocks: list[FlockState] = field(default_factory=list)
    lock_owners: list[LockOwnerState] = field(default_factory=list)
    lock_handles: list[LockHandleState] = field(default_factory=list)
    locks: list[LockState] = field(default_factory=list)
    watches: list[GuestWatchState] = field(default_factory=list)
    backend: list[BackendState] = field(default_factory=list)
    groups: list[GroupState] = field(default_factory=list)
    nodes: list[NodeState] = field(default_factory=list)
    file_system_groups: list[FileSystemGroupState] = field(default_factory=list)
    refused: list[RefusedState] = field(default_factory=list)
    lost_names: list[LostNameState] = field(default_factory=list)
    numbers: list[NumbersState] = field(default_factory=list)


class Descriptors:
    """The descriptors that are passed beside a state: collected by the one side.

    They stay their owners'.
    """

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, fd: int | None) -> int:
        """Return the index of a descriptor; NONE for none."""
        if fd is None or fd < 0:
            return NONE
        self.fds.append(fd)
        return len(self.fds) - 1


class ReceivedDescriptors:
    """The descriptors that came beside a state. Owns those that were not taken."""

    def __init__(self, fds: list[int]) -> None:
        self._fds: list[int | None] = list(fds)

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        for fd in self._fds:
            if fd is not None:
                os.close(fd)
        self._fds.clear()

    def take(self, index: int) -> int:
        """Return a descriptor, which the caller owns; ``StateError`` if there is none."""
        fd = self.take_any(index)
        if fd is None:
            raise StateError("a descriptor is missing")
        return fd

    def take_any(self, index: int) -> int | None:
        """Return a descriptor as ``take`` does, or None if ``index`` is NONE."""
        if index == NONE:
            return None
        fd = self._fds[index] if index < len(self._fds) else None
        if fd is None:
            raise StateError("it refers to a descriptor that did not come with it")
        self._fds[index] = None
        return fd
