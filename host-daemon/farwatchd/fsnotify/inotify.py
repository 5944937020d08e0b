# SPDX-License-Identifier: Apache-2.0
"""The inotify back end: works without privileges, does not know who caused an event (mode remote)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from farwatchd.fsnotify.backend import HostEvent
from farwatchd.fsnotify.inotify_sys import In, Inotify, RawEvent
from farwatchd.fsnotify.stream import KERNEL_BITS, EventStream, kernel_mask
from farwatchd.fsnotify.tree import Node, WatchTree
from farwatchd.wire.fsnotify import Event

_CHUNK = 65536
_MAX_CHUNKS = 16


def proc_path(fd: int) -> str:
    """A path that leads to the object of a descriptor, whatever it is, a symlink included."""
    return f"/proc/self/fd/{fd}"


class InotifyBackend:
    """Watches through one inotify instance. See ``Backend``; ``root_fd`` is the share's root directory.

    ``path_of`` gives a path to a descriptor's object, ``clock`` is the monotonic time in seconds.
    """

    name = "inotify"
    merged = False
    supported = Event(sum(KERNEL_BITS)) & ~Event.OPEN_EXEC | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path_of = path_of
        self._inotify = Inotify()
        self._tree = WatchTree(root_fd, path_of, self)
        self._by_wd: dict[int, Node] = {}
        self._stream = EventStream(self._tree, self._by_wd, clock)

    def tell_own(self, tell: bool) -> None:
        """See ``Backend``: inotify tells everything."""

    @property
    def count(self) -> int:
        """Host watches in use, the private ones included."""
        return len(self._tree)

    def fileno(self) -> int:
        """The inotify descriptor."""
        return self._inotify.fileno()

    def watch(self, fd: int, mask: Event, is_dir: bool) -> int:
        """Watch the object behind ``fd``; see ``Backend``."""
        return self._tree.add(fd, is_dir, int(mask)).key

    def modify(self, key: int, mask: Event) -> None:
        """Replace the mask of a watch; see ``Backend``."""
        self._tree.modify(key, int(mask))

    def unwatch(self, key: int) -> None:
        """End a watch."""
        self._tree.release(key)

    def reset(self) -> None:
        """End all watches."""
        self._tree.clear()
        self._stream.clear()

    def close(self) -> None:
        """End all watches and close the instance."""
        self.reset()
        self._inotify.close()

    def delay(self) -> float | None:
        """Seconds until a held half of a rename is given up."""
        return self._stream.delay()

    def read(self) -> list[HostEvent]:
        """Return what happened, in order."""
        return self._stream.interpret(self._gather())

    def place(self, node: Node) -> None:
        """Put the host watch of a node (called by the tree)."""
        mask = In(0)
        if node.public:
            mask |= In.ATTRIB | In.DELETE_SELF | kernel_mask(node.wanted)
        if node.is_dir:
            mask |= In.MOVE_SELF | In.ONLYDIR
        if node.children:
            mask |= In.DELETE | In.MOVED_TO
        wd = self._inotify.add(self._path_of(node.fd), int(mask))
        if wd != node.place:
            self._by_wd.pop(node.place, None)
            self._by_wd[wd] = node
            node.place = wd

    def remove(self, node: Node) -> None:
        """Take the host watch of a node away (called by the tree)."""
        if self._by_wd.pop(node.place, None) is None:
            return
        try:
            self._inotify.remove(node.place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def _gather(self) -> list[RawEvent]:
        """Read a chunk of the stream; more when it may end between an object's removal and earlier events of it."""
        chunk = self._inotify.read(_CHUNK)
        events = chunk
        for _ in range(_MAX_CHUNKS - 1):
            if not chunk or not self._inotify.pending() or not self._stream.shows_removal(chunk):
                break
            chunk = self._inotify.read(_CHUNK)
            events = events + chunk
        return events
