# SPDX-License-Identifier: Apache-2.0
"""The inotify back end: works without privileges, does not know who caused an event (mode
remote)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from farwatchd.inode_store.store import ObjectTable
from farwatchd.linux.inotify import In, Inotify, RawEvent
from farwatchd.watch.backend_base import Watcher, proc_path
from farwatchd.watch.event_stream import KERNEL_BITS, kernel_mask
from farwatchd.watch.nodes import Node
from farwatchd.wire.fsnotify import Event

_CHUNK = 65536
_MAX_CHUNKS = 16
_OWN_END = int(In.ATTRIB | In.DELETE_SELF)
_CHILDRENS_END = int(In.DELETE | In.MOVED_TO)
_DIRECTORY = int(In.MOVE_SELF | In.ONLYDIR)


class InotifyBackend(Watcher):
    """Watches through one inotify instance. See ``Backend``, and ``Watcher`` for the parameters."""

    name = "inotify"
    others_only = False
    supported = Event(sum(KERNEL_BITS)) & ~Event.OPEN_EXEC | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        objects: ObjectTable | None = None,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inotify = Inotify()
        super().__init__(self._inotify, root_fd, objects, path_of, clock)

    def tell_own(self, tell: bool) -> None:
        """See ``Backend``: inotify tells everything."""

    def place(self, node: Node) -> None:
        """Put the host watch of a node (called by the tree)."""
        mask = 0
        if node.public:
            mask |= _OWN_END | kernel_mask(node.wanted)
        if node.is_dir:
            mask |= _DIRECTORY
        if node.children:
            mask |= _CHILDRENS_END
        wd = self._inotify.add(self._tree.path(node), mask)
        if wd != node.place:
            self._by_place.pop(node.place, None)
            self._by_place[wd] = node
            node.place = wd

    def remove(self, node: Node) -> None:
        """Take the host watch of a node away (called by the tree)."""
        if self._by_place.pop(node.place, None) is None:
            return
        try:
            self._inotify.remove(node.place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def remove_all(self, nodes: list[Node]) -> None:
        """Take all host watches away (called by the tree)."""
        for node in nodes:
            self.remove(node)

    def _gather(self) -> list[RawEvent]:
        """Read a chunk of the stream; more when it may end between an object's removal and earlier
        events of it."""
        chunk = self._inotify.read(_CHUNK)
        events = chunk
        for _ in range(_MAX_CHUNKS - 1):
            if not chunk or not self._inotify.pending() or not self._stream.shows_removal(chunk):
                break
            chunk = self._inotify.read(_CHUNK)
            events = events + chunk
        return events
