# SPDX-License-Identifier: Apache-2.0
"""The fanotify watch back end: knows which process caused an event, so it can leave out this
daemon's own, as mode ``others`` needs."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator

from farwatchd.inode_store.store import OUT_OF_DESCRIPTORS, ObjectTable
from farwatchd.linux.fanotify import (
    FSID_SIZE,
    INFO_DFID_NAME,
    INFO_FID,
    INFO_NEW_DFID_NAME,
    INFO_OLD_DFID_NAME,
    Fan,
    FanEvent,
    Fanotify,
)
from farwatchd.linux.inotify import In
from farwatchd.watch.backend_base import TreeBackend, proc_path
from farwatchd.watch.entry_history import EntryHistory
from farwatchd.watch.event_stream import KERNEL_BITS, MarkEvent, kernel_mask
from farwatchd.watch.watch_tree import Node, entry_name
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

_CHUNK = 65536
_MAX_CHUNKS = 16

#: The bits of a coalesced event, in an order in which they can have happened.
_ORDER = tuple(
    int(bit)
    for bit in (
        In.CREATE,
        In.OPEN,
        In.OPEN_EXEC,
        In.ACCESS,
        In.MODIFY,
        In.ATTRIB,
        In.CLOSE_WRITE,
        In.CLOSE_NOWRITE,
        In.MOVE_SELF,
        In.DELETE,
        In.DELETE_SELF,
    )
)
_BOTH_ENDS = int(In.CREATE | In.DELETE)
_ORDER_RELINKED = (int(In.DELETE), *(bit for bit in _ORDER if bit != int(In.DELETE)))
_MOVES = int(In.MOVED_FROM | In.MOVED_TO)
_DIRENT = int(In.CREATE | In.DELETE) | _MOVES
_SELF_ONLY = int(In.MOVE_SELF | In.DELETE_SELF)
_ISDIR = int(In.ISDIR)
_OWN_REMOVAL = int(In.ATTRIB | In.DELETE_SELF)
_CHILD_REMOVAL = int(In.DELETE | In.MOVED_TO)
_DIRECTORY = int(In.MOVE_SELF) | int(Fan.ONDIR)
_ON_CHILD = int(Event.ON_CHILD)
#: The mark id of an inode without a mark.
_UNMARKED = 0
_OVERFLOW = MarkEvent(-1, int(In.Q_OVERFLOW))

#: The ``own_pid`` of no process: all events are reported.
NO_PID = -1


class FanotifyBackend(TreeBackend):
    """Watches through one fanotify group with inode marks. See ``WatchBackend`` and
    ``TreeBackend``.

    Events of the process ``own_pid`` update the watch tree and are not reported; with NO_PID all
    are reported.

    The host reports a directory's own events without the directory's name in its parent. The
    parent's watchers get them with the name at the time of reading. A directory that is not watched
    itself is found with CAP_DAC_READ_SEARCH and on the file system of the share's root only.
    """

    name = "fanotify"
    supported = Event(sum(KERNEL_BITS)) | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        inodes: ObjectTable | None = None,
        path_of: Callable[[int], str] = proc_path,
        own_pid: int = NO_PID,
    ) -> None:
        self._own_pid = own_pid
        self._report_own = False
        self._mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        try:
            self._fanotify = Fanotify()
        except OSError:
            os.close(self._mount_fd)
            raise
        self._by_identity: dict[bytes, Node] = {}
        self._history = EntryHistory(self._look_up)
        super().__init__(self._fanotify, root_fd, inodes, path_of)

    @property
    def others_only(self) -> bool:
        """Whether a process was given whose events can be left out."""
        return self._own_pid != NO_PID

    def report_own(self, report: bool) -> None:
        """Choose whether events of ``own_pid`` are reported; see ``WatchBackend``."""
        self._report_own = report

    def close(self) -> None:
        """End all watches and close the group."""
        super().close()
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
            self._mount_fd = -1

    def put_mark(self, node: Node) -> None:
        """Add or update the host mark of a node; see ``HostMarks``.

        EOPNOTSUPP: fanotify cannot identify inodes of the file system.
        """
        mask = _mark_mask(node)
        path = self._tree.path(node)
        identity = node.mark_identity or self._fanotify.identity(node.inode.fd)
        try:
            self._fanotify.add(path, mask)
        except OSError as error:
            # The guest's users see local events there.
            if error.errno in (errno.ENODEV, errno.EXDEV):
                raise OSError(errno.EOPNOTSUPP, error.strerror) from error
            raise
        if node.mark_mask & ~mask:
            self._fanotify.remove(path, node.mark_mask & ~mask)
        node.mark_mask = mask
        if not node.mark_id:
            node.mark_id, node.mark_identity = node.watch_id, identity
            self._by_mark[node.mark_id] = node
            self._by_identity[identity] = node

    def remove_mark(self, node: Node) -> None:
        """Remove the host mark of a node; see ``HostMarks``."""
        if self._by_mark.pop(node.mark_id, None) is None:
            return
        del self._by_identity[node.mark_identity]
        try:
            self._fanotify.remove(self._tree.path(node), node.mark_mask)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning(
                    "a host mark cannot be removed (%s); its events are dropped", error.strerror
                )

    def remove_all_marks(self, nodes: list[Node]) -> None:
        """Remove the host marks of all nodes; see ``HostMarks``."""
        self._by_mark.clear()
        self._by_identity.clear()
        if nodes:
            self._fanotify.remove_all()

    def _gather(self) -> list[MarkEvent]:
        """Read a chunk of events, and more when earlier events of a removed inode may be unread."""
        batch: list[MarkEvent] = []
        for _ in range(_MAX_CHUNKS):
            chunk = self._expand(self._fanotify.read(_CHUNK))
            batch += chunk
            if not chunk or not self._stream.shows_removal(chunk):
                break
        return batch + self._hidden_entries()

    def _hidden_entries(self) -> list[MarkEvent]:
        """Return the entry events that coalescing has hidden, once all events are read.

        Events that come during the check belong to what the check saw. Then the result is dropped,
        and the check is made again after them.
        """
        history = self._history
        if not len(history) or (self._fanotify.pending() and not history.is_full):
            return []
        hidden: list[MarkEvent] = []
        if history.has_suspects:
            hidden = history.missing()
            if self._fanotify.pending() and not history.is_full:
                return []
        history.clear()
        return hidden

    def _look_up(self, mark_id: int, name: bytes) -> bytes | None:
        """Return the identity of an entry of a marked directory; see ``EntryHistory``."""
        node = self._by_mark.get(mark_id)
        if node is None:
            raise OSError(errno.ENOENT, "the directory is not watched any more")
        fsid = node.mark_identity[:FSID_SIZE]
        return self._fanotify.identity_at(self._tree.open(node), name, fsid)

    def reset(self) -> None:
        """End all watches and drop what is recorded of events."""
        super().reset()
        self._history.clear()

    def _expand(self, events: list[FanEvent]) -> list[MarkEvent]:
        """Turn coalesced events of inodes into single events of marks."""
        batch: list[MarkEvent] = []
        for before, event in itertools.pairwise([None, *events]):
            if event is not None:
                for single in self._single(event, before):
                    batch.append(single)
                    self._record(single, event)
        return batch

    def _record(self, single: MarkEvent, event: FanEvent) -> None:
        """Record an entry event of an explicit watch in the history."""
        node = self._by_mark.get(single.mark_id)
        if single.mask & _DIRENT and node is not None and node.explicit:
            self._history.record(single, event.infos[INFO_FID].identity)

    def _single(self, event: FanEvent, before: FanEvent | None) -> Iterator[MarkEvent]:
        mask = event.mask
        if mask & In.Q_OVERFLOW:
            yield _OVERFLOW
            return
        own = event.pid == self._own_pid and not self._report_own
        isdir = mask & _ISDIR
        if mask & Fan.RENAME:
            yield from self._rename(event, isdir, own)
            return
        directory, name = self._where(event, INFO_DFID_NAME)
        # With FAN_REPORT_DFID_NAME a directory's own events are those of "." in it.
        target = directory if name == b"." else self._where(event, INFO_FID)[0]
        if name == b".":
            try:
                directory, name = self._entry(event.infos[INFO_DFID_NAME].identity)
            except OSError as error:
                _log.warning(
                    "no descriptor is left to read a directory's name (%s); the guest gets an"
                    " overflow; raise --rlimit-nofile", error.strerror
                )  # fmt: skip
                yield _OVERFLOW
                directory = _UNMARKED
            if before is not None and self._is_renamed_over(before, directory, name):
                # The link count of the replaced directory changed. No watcher of its parent gets an
                # event for that.
                directory = _UNMARKED
        for bit in self._order(event, directory, name):
            if not mask & bit:
                continue
            if directory and not bit & _SELF_ONLY:
                yield MarkEvent(directory, bit | isdir, name, own)
            if target and not bit & _DIRENT:
                yield MarkEvent(target, bit if bit & _SELF_ONLY else bit | isdir, b"", own)

    def _order(self, event: FanEvent, directory: int, name: bytes) -> tuple[int, ...]:
        """Return the bits in the order in which those of an event can have happened.

        One inode may have been linked and unlinked under one name any number of times. The last
        event is the one that agrees with the directory.
        """
        if event.mask & _BOTH_ENDS == _BOTH_ENDS and directory:
            try:
                if self._look_up(directory, name) == event.infos[INFO_FID].identity:
                    return _ORDER_RELINKED
            except OSError:
                pass
        return _ORDER

    def _is_renamed_over(self, event: FanEvent, directory: int, name: bytes) -> bool:
        return bool(event.mask & Fan.RENAME) and self._where(event, INFO_NEW_DFID_NAME) == (
            directory,
            name,
        )

    def _rename(self, event: FanEvent, isdir: int, own: bool) -> Iterator[MarkEvent]:
        source, old = self._where(event, INFO_OLD_DFID_NAME)
        target, new = self._where(event, INFO_NEW_DFID_NAME)
        if source and target:
            yield MarkEvent(source, _MOVES | isdir, old, own, target, new)
        elif source:
            yield MarkEvent(source, int(In.MOVED_FROM) | isdir, old, own)
        elif target:
            yield MarkEvent(target, int(In.MOVED_TO) | isdir, new, own)

    def _entry(self, identity: bytes) -> tuple[int, bytes]:
        """Return the mark id of a directory's parent, and the directory's name there.

        Raises ``OSError`` when no descriptor is left.
        """
        node = self._by_identity.get(identity)
        if node is not None:
            if node.parent is None or node.name is None:
                return _UNMARKED, b""
            return node.parent.mark_id, node.name
        try:
            fd = self._inodes.with_room(
                lambda: self._fanotify.open_object(self._mount_fd, identity)
            )
        except OSError as error:
            return _not_found(error)
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            parent = self._inodes.with_room(lambda: os.open("..", flags, dir_fd=fd))
            try:
                mark_id = self._mark_of(self._fanotify.identity(parent))
            finally:
                os.close(parent)
            return mark_id, entry_name(self._path_of(fd), unlinked=False) or b""
        except OSError as error:
            return _not_found(error)
        finally:
            os.close(fd)

    def _where(self, event: FanEvent, kind: int) -> tuple[int, bytes]:
        info = event.infos.get(kind)
        if info is None:
            return _UNMARKED, b""
        return self._mark_of(info.identity), info.name

    def _mark_of(self, identity: bytes) -> int:
        node = self._by_identity.get(identity)
        return _UNMARKED if node is None else node.mark_id


def _not_found(error: OSError) -> tuple[int, bytes]:
    if error.errno in OUT_OF_DESCRIPTORS:
        raise error
    _log.debug("a directory is deleted or cannot be opened: %s", error.strerror)
    return _UNMARKED, b""


def _mark_mask(node: Node) -> int:
    """Return the mask of a node's mark. fanotify refuses entry bits on what is no directory."""
    mask = 0
    if node.explicit:
        mask = _OWN_REMOVAL | kernel_mask(node.wanted)
    if not node.is_dir:
        return mask & ~_DIRENT
    if node.children:
        mask |= _CHILD_REMOVAL
    # FAN_RENAME has both sides of a move in one event.
    if mask & _MOVES:
        mask = mask & ~_MOVES | int(Fan.RENAME)
    if node.wanted & _ON_CHILD:
        mask |= int(Fan.EVENT_ON_CHILD)
    return mask | _DIRECTORY
