# SPDX-License-Identifier: Apache-2.0
"""The interface of a watch back end: it watches inodes of the host and returns their events."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from farwatchd.inode_store.store import ExportedInodes, HostInode
from farwatchd.watch.event_trace import EventTrace
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import Descriptors, State

#: Events of a directory entry. They belong to the directory, and carry the entry's name.
DIRENT = Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO

#: A name in a directory: the directory's mark id, and the name.
Entry = tuple[int, bytes]


class HostEvent(NamedTuple):
    """One event of a watch, in the protocol's bits: ``mask`` has those of ``Event``.

    OVERFLOW belongs to no watch, and its ``watch_id`` is 0.

    ``name`` is the directory entry of an entry event or of an ON_CHILD event. ``new_watch_id`` and
    ``new_name`` belong to RENAME: the watch of the directory into which the entry was moved, and
    its name there. ``unpaired`` marks a MOVED_FROM or MOVED_TO whose other side is not watched.
    WATCH_ENDED is no event: the watch reports nothing from now on. If the inode has left the share
    the watch stays; should the inode return, the watch reports again after an OVERFLOW.
    ``unlinked``: an ON_CHILD event of an open file that had lost ``name`` before.
    ``ended`` means that the back end has removed the watch after this event. The mask is
    DELETE_SELF then; 0 if this process unlinked the inode; or WATCH_ENDED for another reason.
    ``lost_by_host``: an OVERFLOW because the host's queue was full.
    """

    watch_id: int
    mask: int
    name: bytes = b""
    unpaired: bool = False
    unlinked: bool = False
    new_watch_id: int = 0
    new_name: bytes = b""
    ended: bool = False
    lost_by_host: bool = True


class WatchBackend(Protocol):
    """Watches inodes of the host, for one thread. No method blocks."""

    @property
    def name(self) -> str:
        """The name in log lines and in ``--fsnotify-backend``."""

    @property
    def supported(self) -> Event:
        """The event bits that can be watched, ON_CHILD and RENAME included.

        ISDIR and OVERFLOW are reported unasked and are not part of it.
        """

    @property
    def others_only(self) -> bool:
        """Whether events that this process causes can be left out, as mode ``others`` needs.

        A back end that can does so until ``report_own(True)``.
        """

    def report_own(self, report: bool) -> None:
        """Choose whether events that this process causes are reported.

        ``False`` needs ``others_only``.
        """

    def trace_to(self, trace: EventTrace) -> None:
        """Log each event of the host from now on, and why one is left out."""

    def path_of(self, watch_id: int) -> str:
        """Return where the inode of a watch is, for the log."""

    @property
    def count(self) -> int:
        """The number of host watches in use, explicit and implicit ones."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``read`` has events. The back end owns it."""

    def watch(self, fd: int, mask: Event, is_dir: bool) -> int:
        """Watch the inode behind ``fd`` and return the id of the watch, which is never 0.

        ``fd`` may be O_PATH and stays the caller's. The watch is live on return. An inode that is
        watched already keeps its id, and ``mask`` is added to its mask.

        Raises ``OSError`` with the errno for the guest: ENOSPC no host watch left, ENOENT the inode
        is unlinked, EACCES it is outside of the share, EOPNOTSUPP its file system cannot be
        watched by this back end. EMFILE and ENFILE mean that no descriptor is left.
        """

    def modify(self, watch_id: int, mask: Event) -> None:
        """Replace the mask of a watch; on an error the mask is unchanged.

        Raises ``OSError`` as ``watch`` does, ENOENT when the watch has ended, and EACCES while the
        inode is outside of the share.
        """

    def unwatch(self, watch_id: int) -> None:
        """End a watch. Its unread events are dropped. An unknown id is no error."""

    def reset(self) -> None:
        """End all watches and drop all unread events."""

    def read(self) -> list[HostEvent]:
        """Return the next events in order, a bounded number of them.

        An empty list may mean that ``delay`` must pass first. While events are unread, the
        descriptor of ``fileno`` stays readable.
        """

    def delay(self) -> float | None:
        """Return the seconds after which ``read`` must be called although nothing is readable.

        None: that is not necessary.
        """

    def unread(self) -> bool:
        """Return whether the host has events that were not read."""

    def settle(self) -> list[HostEvent]:
        """Return what waits for later events, as if none came. To be called after ``read``."""

    def export_state(self, state: State, fds: Descriptors, host_inodes: ExportedInodes) -> int:
        """Add the watches to a state, with the groups; return the next watch id.

        Events were settled.
        """

    def restore_state(self, state: State, host_inodes: list[HostInode]) -> None:
        """Add the watches of a state, whose groups this back end has; ``StateError``.

        ``host_inodes`` are those of the state.
        """

    def close(self) -> None:
        """End all watches and close all descriptors. A second call does nothing."""
