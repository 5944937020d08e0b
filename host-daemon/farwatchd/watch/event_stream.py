# SPDX-License-Identifier: Apache-2.0
"""Turns the kernel's stream of watch events into what the guest is told: filters, joins renames,
finds ended watches.

Common to all back ends. A back end hands over batches of raw events, in inotify's bits, and keeps
``by_place`` up to date, which leads from a raw event's watch to its node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from farwatchd.linux.inotify import In, RawEvent
from farwatchd.watch.backend import DIRENT, HostEvent
from farwatchd.watch.nodes import Node
from farwatchd.watch.rename_joiner import RenameJoiner
from farwatchd.watch.watch_tree import WatchTree
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

#: The protocol's event bits and the kernel's.
KERNEL_BITS = {
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
    Event.OPEN_EXEC: In.OPEN_EXEC,
}
# Plain numbers: these are looked at for each event and each mask.
_BITS = tuple((int(event), int(bit)) for event, bit in KERNEL_BITS.items())
_SELF = int(Event.DELETE_SELF | Event.MOVE_SELF)
_DIRENT = int(DIRENT)
_ON_CHILD = int(Event.ON_CHILD)
_RENAME = int(Event.RENAME)
_MOVED = int(Event.MOVED_FROM | Event.MOVED_TO)
_ATTRIB, _MOVE_SELF, _ISDIR = int(In.ATTRIB), int(In.MOVE_SELF), int(In.ISDIR)
_DELETE, _MOVED_TO = int(In.DELETE), int(In.MOVED_TO)
_OVERFLOW, _DELETE_SELF = int(In.Q_OVERFLOW), int(In.DELETE_SELF)
_BOTH_HALVES = int(In.MOVED_FROM | In.MOVED_TO)
_HOST_ENDED = int(In.IGNORED | In.UNMOUNT)


def kernel_mask(wanted: int) -> int:
    """The kernel's bits for a wanted mask; who wants a half of a rename gets both, to know both
    names."""
    mask = 0
    for event, bit in _BITS:
        if wanted & event:
            mask |= bit
    if wanted & (_RENAME | _MOVED):
        mask |= _BOTH_HALVES
    return mask


class EventStream:
    """Interprets raw events of the nodes of ``tree``, in order; ``clock`` is the monotonic time in
    seconds."""

    def __init__(
        self, tree: WatchTree, by_place: dict[int, Node], clock: Callable[[], float]
    ) -> None:
        self._tree = tree
        self._by_place = by_place
        self._clock = clock
        self._joiner = RenameJoiner()
        self._wire = {}
        for event, bit in KERNEL_BITS.items():
            self._wire[int(bit)] = event
            self._wire[int(bit | In.ISDIR)] = event | Event.ISDIR

    def delay(self) -> float | None:
        """Seconds until a held half of a rename is given up; None when nothing is held."""
        deadline = self._joiner.deadline
        return None if deadline is None else max(0.0, deadline - self._clock())

    def clear(self) -> None:
        """Forget what is held back."""
        self._joiner.clear()

    def shows_removal(self, batch: list[RawEvent]) -> bool:
        """Whether the batch tells of a removal, so that earlier events of the object may still be
        unread."""
        for raw in batch:
            node = self._by_place.get(raw.wd)
            if node is not None and (
                self._shows_own_removal(node, raw) or self._removed_children(node, raw)
            ):
                return True
        return False

    def interpret(self, batch: list[RawEvent]) -> list[HostEvent]:
        """Take the next raw events; return what is to be told now.

        An object's link count is only seen when its events are read, which is late: DELETE_SELF is
        put where the kernel would have raised it had nobody held the object. That is behind all
        other events read of a file, and right before the DELETE of a directory.
        """
        now = self._clock()
        last = {raw.wd: index for index, raw in enumerate(batch)}
        last_move = {raw.wd: index for index, raw in enumerate(batch) if raw.mask & _MOVE_SELF}
        dying: list[Node] = []
        for index, raw in enumerate(batch):
            node = self._by_place.get(raw.wd)
            if node is not None:
                for child in self._removed_children(node, raw):
                    # One that is still to move is removed later, under a name that it does not have
                    # yet.
                    if last_move.get(child.place, -1) > index:
                        continue
                    child.dying, child.silent = True, raw.silent
                    if raw.mask & _DELETE:
                        self._die(child, now)
                    elif last.get(child.place, -1) <= index:
                        dying.append(child)
                self._take(node, raw, now)
                if node.dying and last[raw.wd] == index:
                    dying.append(node)
            elif raw.mask & _OVERFLOW:
                self._joiner.feed(HostEvent(0, Event.OVERFLOW), 0, now)
            # A rename over an object tells of the object that was renamed before the other is let
            # go.
            if dying and not (index + 1 < len(batch) and batch[index + 1].mask & _MOVE_SELF):
                for node in dying:
                    self._die(node, now)
                dying.clear()
        return self._joiner.take(now)

    def _removed_children(self, node: Node, raw: RawEvent) -> list[Node]:
        """The watched directories that an rmdir, or a rename over them, has removed."""
        if not raw.mask & _ISDIR or not raw.mask & (_DELETE | _MOVED_TO) or not node.children:
            return []
        return self._tree.removed_children(node, raw.name)

    def _take(self, node: Node, raw: RawEvent, now: float) -> None:
        mask = raw.mask
        if mask & _DELETE_SELF:
            if not node.dying:
                node.dying, node.silent = True, raw.silent
            return
        if mask & _HOST_ENDED:
            if not node.dying:
                # Not of our doing: the file system is gone from the host. The guest raises UNMOUNT
                # itself.
                _log.warning("the host has ended a watch (its file system was unmounted)")
                node.dying = node.silent = True
            return
        if node.public:
            if not raw.silent:
                self._report(node, raw, now)
            if self._shows_own_removal(node, raw):
                # Whoever did the last of these changes removed it.
                node.dying, node.silent = True, raw.silent
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
        # The half of a rename that nobody wants says where the other half, which somebody may want,
        # is from.
        if not bits & wanted & ~_ISDIR and not bits & _MOVED:
            return
        if raw.name and not bits & _DIRENT:
            if not wanted & _ON_CHILD:
                return
            wire |= Event.ON_CHILD
        elif bits & _SELF and node.is_dir:
            wire |= Event.ISDIR
        self._joiner.feed(HostEvent(node.key, wire, raw.name), raw.cookie, now)

    def _die(self, node: Node, now: float) -> None:
        """End the watch of an object; say that no name leads to it any more, unless the guest
        knows."""
        if self._tree.get(node.key) is node:
            isdir = Event.ISDIR if node.is_dir else Event(0)
            mask = Event(0) if node.silent else Event.DELETE_SELF | isdir
            self._joiner.feed(HostEvent(node.key, mask, ended=True), 0, now)
        self._tree.drop(node)

    def _shows_own_removal(self, node: Node, raw: RawEvent) -> bool:
        """Whether an ATTRIB tells of the last unlink. A directory's removal is told by its parent,
        if that is known."""
        return bool(
            raw.mask & _ATTRIB and not raw.name and node.parent is None and self._tree.gone(node)
        )
