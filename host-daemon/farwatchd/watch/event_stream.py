# SPDX-License-Identifier: Apache-2.0
"""Turns events of host marks into events of watches: filters them and detects the end of watches.

Common to both watch back ends. A back end passes batches of events, in inotify's bits, and keeps
the map from mark ids to nodes up to date.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from farwatchd.linux.inotify import InotifyBit
from farwatchd.watch.event_trace import EventTrace, printable
from farwatchd.watch.lost_names import LostNames
from farwatchd.watch.watch_backend import DIRENT, HostEvent
from farwatchd.watch.watch_tree import Node, WatchTree
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import LostNameState

_log = logging.getLogger(__name__)

#: The protocol's event bits and the kernel's.
KERNEL_BITS = {
    Event.ACCESS: InotifyBit.ACCESS,
    Event.MODIFY: InotifyBit.MODIFY,
    Event.ATTRIB: InotifyBit.ATTRIB,
    Event.CLOSE_WRITE: InotifyBit.CLOSE_WRITE,
    Event.CLOSE_NOWRITE: InotifyBit.CLOSE_NOWRITE,
    Event.OPEN: InotifyBit.OPEN,
    Event.MOVED_FROM: InotifyBit.MOVED_FROM,
    Event.MOVED_TO: InotifyBit.MOVED_TO,
    Event.CREATE: InotifyBit.CREATE,
    Event.DELETE: InotifyBit.DELETE,
    Event.DELETE_SELF: InotifyBit.DELETE_SELF,
    Event.MOVE_SELF: InotifyBit.MOVE_SELF,
    Event.OPEN_EXEC: InotifyBit.OPEN_EXEC,
}
# Plain ints: they are tested for each event and each mask.
_BITS = tuple((int(event), int(bit)) for event, bit in KERNEL_BITS.items())
_SELF = int(Event.DELETE_SELF | Event.MOVE_SELF)
_DIRENT = int(DIRENT)
_ON_CHILD = int(Event.ON_CHILD)
_RENAME = int(Event.RENAME)
_MOVED = int(Event.MOVED_FROM | Event.MOVED_TO)
_WIRE_MOVED_FROM, _WIRE_MOVED_TO = int(Event.MOVED_FROM), int(Event.MOVED_TO)
_WIRE_DELETE_SELF = int(Event.DELETE_SELF)
#: ISDIR is the same bit in both.
_ATTRIB, _MOVE_SELF, _ISDIR = (
    int(InotifyBit.ATTRIB),
    int(InotifyBit.MOVE_SELF),
    int(InotifyBit.ISDIR),
)
_DELETE, _MOVED_TO = int(InotifyBit.DELETE), int(InotifyBit.MOVED_TO)
_OVERFLOW, _DELETE_SELF = int(InotifyBit.Q_OVERFLOW), int(InotifyBit.DELETE_SELF)
_BOTH_SIDES = int(InotifyBit.MOVED_FROM | InotifyBit.MOVED_TO)
_ENTRIES = int(InotifyBit.CREATE) | _DELETE | _BOTH_SIDES
_REMOVES, _ADDS = (
    int(InotifyBit.DELETE | InotifyBit.MOVED_FROM),
    int(InotifyBit.CREATE | InotifyBit.MOVED_TO),
)
#: The events of a child that inotify leaves out for IN_EXCL_UNLINK when the child is unlinked.
_THROUGH_OPEN_FILES = int(
    Event.OPEN
    | Event.OPEN_EXEC
    | Event.ACCESS
    | Event.MODIFY
    | Event.CLOSE_WRITE
    | Event.CLOSE_NOWRITE
)
_ENDED_BY_HOST = int(InotifyBit.IGNORED | InotifyBit.UNMOUNT)
#: Nodes that are verified in one turn of the event loop, each by some system calls.
_SLICE = 64
#: Why an event is left out, for the log.
_OWN = "left out: the guest itself did it"
_UNWANTED = "left out: no watcher in the guest wants it"
_OUTSIDE = "left out: it is outside of the share"


class MarkEvent(NamedTuple):
    """One event of a host mark, in inotify's bits.

    ``mask`` has one event bit, and ISDIR where the event is of a directory. MOVED_FROM and MOVED_TO
    together are a rename of which both sides are marked: ``mark_id`` and ``name`` are where the
    entry was, ``new_mark_id`` and ``new_name`` where it is. ``own``: this process caused the event,
    and it is not to be reported. ``inode``: the identity of the inode that the event happened to,
    for events with a name; empty if the back end does not know it.
    """

    mark_id: int
    mask: int
    name: bytes = b""
    own: bool = False
    new_mark_id: int = 0
    new_name: bytes = b""
    inode: bytes = b""

    @property
    def is_rename(self) -> bool:
        """Whether both sides of a move are in this event."""
        return self.mask & _BOTH_SIDES == _BOTH_SIDES


def kernel_mask(wanted: int) -> int:
    """Return the kernel's bits for a wanted mask.

    One side of a rename is watched with the other, because the report needs both names. Names are
    watched with what happens through open files, which may have lost them.
    """
    mask = 0
    for event, bit in _BITS:
        if wanted & event:
            mask |= bit
    if wanted & (_RENAME | _MOVED):
        mask |= _BOTH_SIDES
    if wanted & _ON_CHILD and wanted & _THROUGH_OPEN_FILES:
        mask |= _ENTRIES
    return mask


class EventStream:
    """Interprets the events of host marks in order; ``by_mark`` maps mark ids to nodes.

    ``look_up`` returns the identity of the inode that has a name, None when the name does not
    exist; ``OSError`` when that is unknown. Back ends that do not know the inodes of events have
    none.
    """

    def __init__(
        self,
        tree: WatchTree,
        by_mark: dict[int, Node],
        look_up: Callable[[int, bytes], bytes | None] | None = None,
    ) -> None:
        self._tree = tree
        self._by_mark = by_mark
        self._look_up = look_up
        self._lost_names = LostNames()
        self._events: list[HostEvent] = []
        self._trace: EventTrace | None = None
        self._wire: dict[int, int] = {}
        for event, bit in KERNEL_BITS.items():
            self._wire[int(bit)] = int(event)
            self._wire[int(bit | InotifyBit.ISDIR)] = int(event | Event.ISDIR)

    def reset(self) -> None:
        """Forget what is known of names: all watches have ended."""
        self._lost_names.clear()

    def export_state(self) -> list[LostNameState]:
        """Return what is known of names. All events were interpreted."""
        return self._lost_names.export_state()

    def restore_state(self, records: list[LostNameState]) -> None:
        """Add what is known of names."""
        self._lost_names.restore_state(records)

    def trace_to(self, trace: EventTrace) -> None:
        """Log each event from now on, and why one is left out."""
        self._trace = trace

    def path_of(self, node: Node, name: bytes = b"") -> str:
        """Return where a node's inode, or an entry of it, is now, for the log."""
        try:
            path = Path(self._tree.path(node)).readlink()
            return printable(os.fsencode(path / os.fsdecode(name) if name else path))
        except OSError as error:
            return f"an inode without a path ({error.strerror})"

    def _step(self, node: Node | None, raw: MarkEvent, outcome: str = "") -> None:
        """Log what becomes of an event of the host."""
        if self._trace is None or node is None:
            return
        path = self.path_of(node, raw.name)
        if raw.new_name:
            path += f" to {printable(raw.new_name)}"
        self._trace.step("host", _names(raw.mask), path, outcome)

    def shows_removal(self, batch: list[MarkEvent]) -> bool:
        """Return whether the batch shows the removal of a watched inode.

        Then earlier events of the inode may be unread, and the batch should be extended.
        """
        for raw in batch:
            node = self._by_mark.get(raw.mark_id)
            if node is not None and (
                self._shows_own_removal(node, raw) or self._removed_children(node, raw)
            ):
                return True
        return False

    def interpret(self, batch: list[MarkEvent]) -> list[HostEvent]:
        """Interpret the next events and return the events of watches, in order.

        The link count of an inode is read when its events are, which is late. DELETE_SELF comes
        where the kernel would have raised it if the daemon had no reference to the inode: after all
        other events of a file, and right before the DELETE of a directory.
        """
        last = {}
        last_move = {}
        for index, raw in enumerate(batch):
            last[raw.mark_id] = index
            if raw.new_mark_id:
                last[raw.new_mark_id] = index
            elif raw.mask & _MOVE_SELF:
                last_move[raw.mark_id] = index
        removed: list[Node] = []
        for index, raw in enumerate(batch):
            mask = raw.mask
            is_rename = mask & _BOTH_SIDES == _BOTH_SIDES
            source = self._node(raw.mark_id)
            target = self._node(raw.new_mark_id) if is_rename else source
            if mask & _OVERFLOW:
                if self._trace is not None:
                    self._trace.step("host", "the host's event queue has overflowed")
                self._events.append(HostEvent(0, Event.OVERFLOW))
                self._tree.suspect_all()
                self._lost_names.clear()
            if mask & _ISDIR and mask & _MOVED_TO:
                self._tree.suspect_outside()
            if target is not None and target.children and mask & _ISDIR:
                for child in self._removed_children(target, raw):
                    # A child that will still move is removed later, under a name that it gets then.
                    if last_move.get(child.mark_id, -1) > index:
                        continue
                    child.pending_removal, child.removed_by_own = True, raw.own
                    if mask & _DELETE:
                        self._end(child)
                    elif last.get(child.mark_id, -1) <= index:
                        removed.append(child)
            if mask & _ENTRIES:
                self._record_names(source, target, raw)
            if is_rename:
                self._report_rename(source, target, raw)
            elif source is not None:
                self._take(source, raw)
            if source is not None and source.pending_removal and last[source.mark_id] == index:
                removed.append(source)
            if (
                target is not source
                and target is not None
                and target.pending_removal
                and last[target.mark_id] == index
            ):
                removed.append(target)
            # After a rename over an inode, MOVE_SELF of the renamed one comes before DELETE_SELF.
            if removed and not (index + 1 < len(batch) and batch[index + 1].mask & _MOVE_SELF):
                for node in removed:
                    self._end(node)
                removed.clear()
        events, self._events = self._events, []
        return events

    def verify_some(self) -> list[HostEvent]:
        """Verify some of the nodes that may have changed unseen; return what is to be reported.

        To be called when all events are read.
        """
        self._report_return()
        for _ in range(_SLICE):
            node = self._tree.next_suspect()
            if node is None:
                break
            if self._tree.unlinked(node):
                # It is unknown who unlinked it. A duplicate report is better than a lost one.
                self._end(node)
            else:
                self._update_position(node)
        events, self._events = self._events, []
        return events

    def _node(self, mark_id: int) -> Node | None:
        """Return the node of a mark, verified if events were lost; None when there is none."""
        node = self._by_mark.get(mark_id)
        if node is None or not self._tree.is_suspect(node):
            return node
        # Events outside of the share must not be reported.
        self._update_position(node)
        return self._by_mark.get(mark_id)

    def _update_position(self, node: Node) -> None:
        for left in self._tree.moved(node):
            _log.info("a watched directory has left the share; its watch pauses")
            if self._trace is not None:
                outcome = "it has left the share"
                self._trace.step("host", "the watch pauses", self.path_of(left), outcome)
            self._events.append(HostEvent(left.watch_id, Event.WATCH_ENDED))
        self._report_return()

    def _report_return(self) -> None:
        """Report that events were lost while directories were outside of the share."""
        if self._tree.take_returned():
            _log.info("a watched directory is in the share again; the guest gets an overflow")
            self._events.append(HostEvent(0, Event.OVERFLOW, lost_by_host=False))

    def _removed_children(self, node: Node | None, raw: MarkEvent) -> list[Node]:
        """Return the watched directories that an rmdir, or a rename over them, has removed."""
        if node is None or not node.children:
            return []
        if not raw.mask & _ISDIR or not raw.mask & (_DELETE | _MOVED_TO):
            return []
        return self._tree.removed_children(node, raw.new_name if raw.is_rename else raw.name)

    def _take(self, node: Node, raw: MarkEvent) -> None:
        mask = raw.mask
        if mask & _DELETE_SELF:
            self._step(node, raw, "the last name is deleted")
            if not node.pending_removal:
                node.pending_removal, node.removed_by_own = True, raw.own
            return
        if mask & _ENDED_BY_HOST:
            if not node.pending_removal:
                # The daemon did not remove the mark.
                self._step(node, raw, "the host has ended the watch")
                _log.warning("the host has ended a watch: its file system was unmounted")
                if node.explicit:
                    self._events.append(HostEvent(node.watch_id, Event.WATCH_ENDED, ended=True))
                self._tree.drop(node)
            return
        if node.outside:
            if not mask & _MOVE_SELF:
                self._step(node, raw, _OUTSIDE)
                return
            self._update_position(node)
        if node.outside:
            self._step(node, raw, _OUTSIDE)
        elif node.explicit:
            if raw.own:
                self._step(node, raw, _OWN)
            else:
                self._report(node, raw)
            if self._shows_own_removal(node, raw):
                # The last of these changes was the removal.
                node.pending_removal, node.removed_by_own = True, raw.own
        else:
            self._step(node, raw, "left out: only what is below it is watched")
        if mask & _MOVE_SELF:
            self._update_position(node)

    def _report(self, node: Node, raw: MarkEvent) -> None:
        bits = self._wire.get(raw.mask)
        if bits is None:
            self._step(node, raw, "left out: virtio-fs has no such event")
            return
        wanted = node.wanted
        if not bits & wanted & ~_ISDIR and not bits & _MOVED:
            self._step(node, raw, _UNWANTED)
            return
        if raw.name and not bits & _DIRENT:
            if not wanted & _ON_CHILD:
                self._step(node, raw, _UNWANTED)
                return
            bits |= _ON_CHILD
            if bits & _THROUGH_OPEN_FILES and self._is_lost(raw):
                self._step(node, raw)
                self._events.append(HostEvent(node.watch_id, bits, raw.name, unlinked=True))
                return
        elif bits & _SELF and node.is_dir:
            bits |= _ISDIR
        self._step(node, raw)
        self._events.append(HostEvent(node.watch_id, bits, raw.name, bool(bits & _MOVED)))

    def _record_names(self, source: Node | None, target: Node | None, raw: MarkEvent) -> None:
        """Record who loses and gets a name, in directories whose children's events are wanted."""
        if raw.mask & _REMOVES and _watches_open_files(source):
            self._lost_names.removed((raw.mark_id, raw.name))
        if raw.mask & _ADDS and _watches_open_files(target):
            name = raw.new_name if raw.is_rename else raw.name
            mark_id = raw.new_mark_id if raw.is_rename else raw.mark_id
            replaces = bool(raw.mask & _MOVED_TO)
            self._lost_names.added((mark_id, name), raw.inode, replaces)

    def _is_lost(self, raw: MarkEvent) -> bool:
        """Return whether the inode of a child's event had lost its name before."""
        if not self._lost_names.is_lost((raw.mark_id, raw.name), raw.inode):
            return False
        if self._look_up is None:
            return True
        # Coalescing may have hidden that it got the name again.
        try:
            return self._look_up(raw.mark_id, raw.name) != raw.inode
        except OSError:
            return False

    def _report_rename(self, source: Node | None, target: Node | None, raw: MarkEvent) -> None:
        """Report a rename; only one side of it when the other is not watched for the guest."""
        if raw.own:
            self._step(source or target, raw, _OWN)
            return
        isdir = raw.mask & _ISDIR
        left = source if _is_reported(source) else None
        joined = target if _is_reported(target) else None
        if left is not None and joined is not None:
            event = HostEvent(
                left.watch_id,
                _RENAME | isdir,
                raw.name,
                new_watch_id=joined.watch_id,
                new_name=raw.new_name,
            )
        elif left is not None:
            event = HostEvent(left.watch_id, _WIRE_MOVED_FROM | isdir, raw.name, unpaired=True)
        elif joined is not None:
            event = HostEvent(joined.watch_id, _WIRE_MOVED_TO | isdir, raw.new_name, unpaired=True)
        else:
            self._step(source or target, raw, _UNWANTED)
            return
        self._step(left or joined, raw)
        self._events.append(event)

    def _end(self, node: Node) -> None:
        """End the watch of an unlinked inode.

        DELETE_SELF is left out when this process removed it.
        """
        if self._tree.get(node.watch_id) is node:
            isdir = _ISDIR if node.is_dir else 0
            mask = 0 if node.removed_by_own else _WIRE_DELETE_SELF | isdir
            if self._trace is not None:
                outcome = _OWN if node.removed_by_own else ""
                self._trace.step("host", "DELETE_SELF", self.path_of(node), outcome)
            self._events.append(HostEvent(node.watch_id, mask, ended=True))
        self._tree.drop(node)

    def _shows_own_removal(self, node: Node, raw: MarkEvent) -> bool:
        """Return whether an ATTRIB shows the last unlink of a file.

        A directory's removal shows in an event of its parent, if the parent is known.
        """
        return bool(
            raw.mask & _ATTRIB
            and not raw.name
            and node.parent is None
            and self._tree.unlinked(node)
        )


def _watches_open_files(node: Node | None) -> bool:
    """Return whether what happens to a directory's children through open files is wanted."""
    return node is not None and bool(node.wanted & _ON_CHILD and node.wanted & _THROUGH_OPEN_FILES)


def _is_reported(node: Node | None) -> bool:
    """Return whether the guest gets the events of a node."""
    return node is not None and node.explicit and not node.outside


def _names(mask: int) -> str:
    """Return the names of inotify's bits in a mask."""
    return "|".join(str(bit.name) for bit in InotifyBit if int(bit) & mask)
