# SPDX-License-Identifier: Apache-2.0
"""The base of both back ends: a tree of watched objects, fed by the events of one group."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable

from farwatchd.inode_store.store import ObjectTable
from farwatchd.linux.group import Group
from farwatchd.linux.inotify import RawEvent
from farwatchd.watch.backend import HostEvent
from farwatchd.watch.event_stream import EventStream
from farwatchd.watch.nodes import Node
from farwatchd.watch.watch_tree import WatchTree
from farwatchd.wire.fsnotify import Event


def proc_path(fd: int) -> str:
    """A path that leads to the object of a descriptor, whatever it is, a symlink included."""
    return f"/proc/self/fd/{fd}"


class Watcher(abc.ABC):
    """Implements ``Backend`` but for its facts. ``root_fd`` is the share's root directory, which
    stays the caller's.

    ``objects`` are the table that watched objects are held in, ``path_of`` gives a path to a
    descriptor's object, ``clock`` is the monotonic time in seconds.
    """

    def __init__(
        self,
        group: Group,
        root_fd: int,
        objects: ObjectTable | None = None,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._objects = objects if objects is not None else ObjectTable()
        self._path_of = path_of
        self._by_place: dict[int, Node] = {}
        self._tree = WatchTree(root_fd, self._objects, path_of, self)
        self._stream = EventStream(self._tree, self._by_place, clock)

    @property
    def count(self) -> int:
        """Host watches in use, the private ones included."""
        return len(self._tree)

    def fileno(self) -> int:
        """The group's descriptor."""
        return self._group.fileno()

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
        """End all watches and close the group."""
        self._tree.close()
        self._stream.clear()
        self._group.close()

    def delay(self) -> float | None:
        """Seconds until a held half of a rename is given up."""
        return self._stream.delay()

    def read(self) -> list[HostEvent]:
        """Return what happened, in order."""
        return self._stream.interpret(self._gather())

    @abc.abstractmethod
    def _gather(self) -> list[RawEvent]:
        """Read a part of the stream."""

    @abc.abstractmethod
    def place(self, node: Node) -> None:
        """See ``Placer``."""

    @abc.abstractmethod
    def remove(self, node: Node) -> None:
        """See ``Placer``."""

    @abc.abstractmethod
    def remove_all(self, nodes: list[Node]) -> None:
        """See ``Placer``."""
