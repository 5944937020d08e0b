# SPDX-License-Identifier: Apache-2.0
"""The inotify watch back end: needs no privilege, does not know who caused an event."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable

from farwatchd.inode_store.store import InodeStore
from farwatchd.linux.inotify import Inotify, InotifyBit, InotifyEvent
from farwatchd.watch.backend_base import TreeBackend, proc_path
from farwatchd.watch.event_stream import KERNEL_BITS, MarkEvent, kernel_mask
from farwatchd.watch.rename_joiner import RenameJoiner
from farwatchd.watch.watch_tree import Node
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import NodeState

_CHUNK = 65536
_MAX_CHUNKS = 16
_DELETE_SELF = int(InotifyBit.DELETE_SELF)
_OWN_REMOVAL = int(InotifyBit.ATTRIB | InotifyBit.DELETE_SELF)
_CHILD_REMOVAL = int(InotifyBit.DELETE | InotifyBit.MOVED_TO)
_DIRECTORY = int(InotifyBit.MOVE_SELF | InotifyBit.ONLYDIR)


class InotifyBackend(TreeBackend):
    """Watches through one inotify instance. See ``WatchBackend`` and ``TreeBackend``.

    ``clock`` returns the monotonic time in seconds.
    """

    name = "inotify"
    others_only = False
    supported = Event(sum(KERNEL_BITS)) & ~Event.OPEN_EXEC | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        inodes: InodeStore | None = None,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
        instance: Inotify | None = None,
    ) -> None:
        """Make an instance, or take ownership of one whose watches will be restored."""
        self._inotify = Inotify() if instance is None else instance
        self._clock = clock
        self._joiner = RenameJoiner()
        super().__init__(self._inotify, root_fd, inodes, path_of)

    def report_own(self, report: bool) -> None:
        """Do nothing: inotify reports the events of all processes."""

    def delay(self) -> float | None:
        """Return the seconds until a queued MOVED_FROM stays unpaired; see ``TreeBackend``."""
        deadline = self._joiner.deadline
        if deadline is None:
            return super().delay()
        return max(0.0, deadline - self._clock())

    def reset(self) -> None:
        """End all watches and drop all queued events."""
        super().reset()
        self._joiner.clear()

    def put_mark(self, node: Node) -> None:
        """Add or update the host watch of a node; see ``HostMarks``."""
        mask = 0
        if node.outside:
            mask |= _DELETE_SELF
        elif node.explicit:
            mask |= _OWN_REMOVAL | kernel_mask(node.wanted)
        if node.is_dir:
            mask |= _DIRECTORY
        if node.children:
            mask |= _CHILD_REMOVAL
        wd = self._inotify.add(self._tree.path(node), mask)
        if wd != node.mark_id:
            self._by_mark.pop(node.mark_id, None)
            self._by_mark[wd] = node
            node.mark_id = wd

    def remove_mark(self, node: Node) -> None:
        """Remove the host watch of a node; see ``HostMarks``."""
        if self._by_mark.pop(node.mark_id, None) is None:
            return
        try:
            self._inotify.remove(node.mark_id)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def remove_all_marks(self, nodes: list[Node]) -> None:
        """Remove the host watches of all nodes; see ``HostMarks``."""
        for node in nodes:
            self.remove_mark(node)

    def _restore_mark(self, node: Node, record: NodeState) -> None:
        """Do nothing: the number says all."""

    def _flush(self) -> list[MarkEvent]:
        """Return the events that wait for the other half of a rename."""
        return self._joiner.take(math.inf)

    def _gather(self) -> list[MarkEvent]:
        """Read a chunk of events, and more when earlier events of a removed inode may be unread."""
        now = self._clock()
        for _ in range(_MAX_CHUNKS):
            chunk = self._inotify.read(_CHUNK)
            events = [_mark_event(raw) for raw in chunk]
            for raw, event in zip(chunk, events, strict=True):
                self._joiner.feed(event, raw.cookie, now)
            if not chunk or not self._inotify.pending() or not self._stream.shows_removal(events):
                break
        return self._joiner.take(now)


def _mark_event(raw: InotifyEvent) -> MarkEvent:
    return MarkEvent(raw.wd, raw.mask, raw.name)
