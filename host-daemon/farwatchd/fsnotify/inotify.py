# SPDX-License-Identifier: Apache-2.0
"""The inotify back end: works without privileges, does not know who caused an event (mode remote)."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable

from farwatchd.fsnotify.backend import DIRENT, HostEvent
from farwatchd.fsnotify.inotify_sys import In, Inotify, RawEvent
from farwatchd.fsnotify.renames import RenameJoiner
from farwatchd.fsnotify.tree import Node, WatchTree
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

_CHUNK = 65536
_MAX_CHUNKS = 16

_BITS = {
    Event.ACCESS: In.ACCESS,
    Event.MODIFY: In.MODIFY,
    Event.ATTRIB: In.ATTRIB,
    Event.CLOSE_WRITE: In.CLOSE_WRITE,
    Event.CLOSE_NOWRITE: In.CLOSE_NOWRITE,
    Event.OPEN: In.OPEN,
    Event.MOVED_FROM: In.MOVED_FROM,
    Event.MOVED_TO: In.MOVED_TO,
    Event.CREATE: In.CREATE,
    Event.DELETE: In.DELETE,
    Event.DELETE_SELF: In.DELETE_SELF,
    Event.MOVE_SELF: In.MOVE_SELF,
}
_SELF = int(Event.DELETE_SELF | Event.MOVE_SELF)
_DIRENT = int(DIRENT)
_ON_CHILD = int(Event.ON_CHILD)
_ATTRIB, _MOVE_SELF, _ISDIR = int(In.ATTRIB), int(In.MOVE_SELF), int(In.ISDIR)
_ENDINGS = int(In.DELETE_SELF | In.IGNORED | In.UNMOUNT)
_DELETE, _MOVED_TO = int(In.DELETE), int(In.MOVED_TO)


def proc_path(fd: int) -> str:
    """A path that leads to the object of a descriptor, whatever it is, a symlink included."""
    return f"/proc/self/fd/{fd}"


def _wire_masks() -> dict[int, Event]:
    """The protocol's bits for each mask that inotify reports, without ON_CHILD."""
    masks = {}
    for event, bit in _BITS.items():
        masks[int(bit)] = event
        masks[int(bit | In.ISDIR)] = event | Event.ISDIR
    return masks


class InotifyBackend:
    """Watches through one inotify instance. See ``Backend``; ``root_fd`` is the share's root directory.

    ``path_of`` gives a path to a descriptor's object, ``clock`` is the monotonic time in seconds.
    """

    name = "inotify"
    merged = False
    supported = Event(sum(_BITS)) | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path_of = path_of
        self._clock = clock
        self._inotify = Inotify()
        self._tree = WatchTree(root_fd, path_of, self)
        self._by_wd: dict[int, Node] = {}
        self._joiner = RenameJoiner()
        self._wire = _wire_masks()

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
        node = self._tree.get(key)
        if node is None:
            raise OSError(errno.ENOENT, "the watch has ended")
        self._tree.change(node, int(mask), public=True)

    def unwatch(self, key: int) -> None:
        """End a watch."""
        node = self._tree.get(key)
        if node is not None:
            self._tree.release(node)

    def reset(self) -> None:
        """End all watches."""
        self._tree.clear()
        self._joiner.clear()

    def close(self) -> None:
        """End all watches and close the instance."""
        self.reset()
        self._inotify.close()

    def delay(self) -> float | None:
        """Seconds until a held half of a rename is given up."""
        deadline = self._joiner.deadline
        return None if deadline is None else max(0.0, deadline - self._clock())

    def read(self) -> list[HostEvent]:
        """Return what happened, in order."""
        now = self._clock()
        raw_events = self._gather()
        last = {raw.wd: index for index, raw in enumerate(raw_events)}
        last_move = {raw.wd: index for index, raw in enumerate(raw_events) if raw.mask & _MOVE_SELF}
        dying: list[Node] = []
        for index, raw in enumerate(raw_events):
            node = self._by_wd.get(raw.wd)
            if node is not None:
                for child in self._removed_children(node, raw):
                    # One that is still to move is removed later, under a name that it does not have yet.
                    if last_move.get(child.place, -1) > index:
                        continue
                    if raw.mask & _DELETE:
                        self._die(child, now)
                    else:
                        child.dying = True
                        dying += [child] if last.get(child.place, -1) < index else []
                self._take(node, raw, now)
                # A link count of zero is only seen late: it is told behind all that was read of the object.
                if node.dying and last[raw.wd] == index:
                    dying.append(node)
            elif raw.mask & In.Q_OVERFLOW:
                self._joiner.feed(HostEvent(0, Event.OVERFLOW), 0, now)
            # A rename over an object tells of the object that was renamed before the other is let go.
            if dying and not (index + 1 < len(raw_events) and raw_events[index + 1].mask & _MOVE_SELF):
                for node in dying:
                    self._die(node, now)
                dying.clear()
        return self._joiner.take(now)

    def place(self, node: Node) -> None:
        """Put the host watch of a node (called by the tree)."""
        mask = In(0)
        if node.public:
            mask |= In.ATTRIB | In.DELETE_SELF
            for event, bit in _BITS.items():
                if node.wanted & event:
                    mask |= bit
            if node.wanted & Event.RENAME:
                mask |= In.MOVED_FROM | In.MOVED_TO
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
            if not chunk or not self._inotify.pending() or not self._shows_removal(chunk):
                break
            chunk = self._inotify.read(_CHUNK)
            events = events + chunk
        return events

    def _shows_removal(self, chunk: list[RawEvent]) -> bool:
        for raw in chunk:
            node = self._by_wd.get(raw.wd)
            if node is not None and (self._shows_own_removal(node, raw) or self._removed_children(node, raw)):
                return True
        return False

    def _shows_own_removal(self, node: Node, raw: RawEvent) -> bool:
        """Whether an ATTRIB tells of the last unlink. A directory's removal is told by its parent, if that is known."""
        return bool(raw.mask & _ATTRIB and not raw.name and node.parent is None and node.gone())

    def _removed_children(self, node: Node, raw: RawEvent) -> list[Node]:
        """The watched directories that an rmdir, or a rename over them, has removed."""
        if not raw.mask & _ISDIR or not raw.mask & (_DELETE | _MOVED_TO) or not node.children:
            return []
        return self._tree.removed_children(node, raw.name)

    def _take(self, node: Node, raw: RawEvent, now: float) -> None:
        mask = raw.mask
        if mask & _ENDINGS:
            self._end(node, mask, now)
            return
        if node.public:
            self._report(node, raw, now)
            if self._shows_own_removal(node, raw):
                node.dying = True
        if mask & _MOVE_SELF:
            for left in self._tree.moved(node):
                _log.info("a watched directory has left the share; its events end")
                self._joiner.feed(HostEvent(left.key, Event(0), ended=True), 0, now)

    def _report(self, node: Node, raw: RawEvent, now: float) -> None:
        wire = self._wire.get(raw.mask)
        if wire is None:
            return
        bits = int(wire)
        wanted = node.wanted
        if not bits & wanted & ~_ISDIR:
            moved = bits & int(Event.MOVED_FROM | Event.MOVED_TO)
            if not (moved and wanted & Event.RENAME):
                return
        if raw.name and not bits & _DIRENT:
            if not wanted & _ON_CHILD:
                return
            wire |= Event.ON_CHILD
        elif bits & _SELF and node.is_dir:
            wire |= Event.ISDIR
        self._joiner.feed(HostEvent(node.key, wire, raw.name), raw.cookie, now)

    def _die(self, node: Node, now: float) -> None:
        """Tell that no name leads to the object any more, and end its watch."""
        if self._tree.get(node.key) is node:
            isdir = Event.ISDIR if node.is_dir else Event(0)
            self._joiner.feed(HostEvent(node.key, Event.DELETE_SELF | isdir, ended=True), 0, now)
        self._tree.drop(node)

    def _end(self, node: Node, mask: int, now: float) -> None:
        if mask & In.DELETE_SELF:
            self._die(node, now)
            return
        # IGNORED or UNMOUNT, not of our doing: the file system is gone from the host. The guest raises its own UNMOUNT.
        _log.warning("the host has ended a watch (its file system was unmounted)")
        if node.public:
            self._joiner.feed(HostEvent(node.key, Event(0), ended=True), 0, now)
        self._tree.drop(node)
