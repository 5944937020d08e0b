# SPDX-License-Identifier: Apache-2.0
"""The fanotify watch back end.

It knows which process caused an event, so it can leave out this daemon's own, as mode ``others``
needs.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Iterator

from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.inode_store.store import (
    ExportedInodes,
    HostInode,
    InodeStore,
)
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
from farwatchd.linux.inotify import InotifyBit
from farwatchd.linux.syscalls import file_system_type
from farwatchd.watch.backend_base import TreeBackend, proc_path
from farwatchd.watch.entry_history import EntryHistory
from farwatchd.watch.event_stream import KERNEL_BITS, MarkEvent, kernel_mask
from farwatchd.watch.event_trace import printable
from farwatchd.watch.watch_tree import Node, entry_name, shared
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import (
    Descriptors,
    FileSystemGroupState,
    NodeState,
    RefusedState,
    State,
    StateError,
)

_log = logging.getLogger(__name__)

_CHUNK = 65536
_MAX_CHUNKS = 16

#: The bits of a coalesced event, in an order in which they can have happened.
_ORDER = tuple(
    int(bit)
    for bit in (
        InotifyBit.CREATE,
        InotifyBit.OPEN,
        InotifyBit.OPEN_EXEC,
        InotifyBit.ACCESS,
        InotifyBit.MODIFY,
        InotifyBit.ATTRIB,
        InotifyBit.CLOSE_WRITE,
        InotifyBit.CLOSE_NOWRITE,
        InotifyBit.MOVE_SELF,
        InotifyBit.DELETE,
        InotifyBit.DELETE_SELF,
    )
)
_BOTH_ENDS = int(InotifyBit.CREATE | InotifyBit.DELETE)
_ORDER_RELINKED = (
    int(InotifyBit.DELETE),
    *(bit for bit in _ORDER if bit != int(InotifyBit.DELETE)),
)
#: Most events are not coalesced: those have their one bit.
_ORDER_OF_ONE = {bit: (bit,) for bit in _ORDER}
_MOVES = int(InotifyBit.MOVED_FROM | InotifyBit.MOVED_TO)
_DIRENT = int(InotifyBit.CREATE | InotifyBit.DELETE) | _MOVES
_SELF_ONLY = int(InotifyBit.MOVE_SELF | InotifyBit.DELETE_SELF)
_ISDIR = int(InotifyBit.ISDIR)
_DELETE_SELF = int(InotifyBit.DELETE_SELF)
_OWN_REMOVAL = int(InotifyBit.ATTRIB | InotifyBit.DELETE_SELF)
_CHILD_REMOVAL = int(InotifyBit.DELETE | InotifyBit.MOVED_TO)
_DIRECTORY = int(InotifyBit.MOVE_SELF) | int(Fan.ONDIR)
_MOVED_FROM, _MOVED_TO = int(InotifyBit.MOVED_FROM), int(InotifyBit.MOVED_TO)
_Q_OVERFLOW = int(InotifyBit.Q_OVERFLOW)
_RENAME = int(Fan.RENAME)
_ON_CHILD = int(Event.ON_CHILD)
#: The mark id of an inode without a mark.
_UNMARKED = 0
_OVERFLOW = MarkEvent(-1, _Q_OVERFLOW)

#: BTRFS_SUPER_MAGIC. A group has marks of one btrfs subvolume only. On btrfs this many subvolumes
#: can be watched besides the root's: only at its start may the daemon open groups.
_BTRFS = 0x9123683E
_SPARE_GROUPS = 8

#: Why fanotify refuses a mark, by errno.
_REFUSALS = {
    errno.ENODEV: "its file system has no id, which fanotify needs",
    errno.EXDEV: "it is in a btrfs subvolume, of which fanotify watches none before Linux 6.8, and"
    f" {_SPARE_GROUPS} besides the share's own since then",
    errno.EOPNOTSUPP: "its file system has no file handles",
    errno.EEXIST: "it is on a clone of another file system in the share, and both have one id",
}

#: The ``own_pid`` of no process: all events are reported.
NO_PID = -1


class UnwatchableError(OSError):
    """EOPNOTSUPP: fanotify cannot watch a part of the share. ``strerror`` says why."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.EOPNOTSUPP, _REFUSALS[number])


class FanotifyBackend(TreeBackend):
    """Watches through fanotify groups with inode marks. See ``WatchBackend`` and ``TreeBackend``.

    Events of the process ``own_pid`` update the watch tree and are not reported; with NO_PID all
    are reported. ``unlimited_queue``: the host's queue is to have no limit of its own.

    The host reports a directory's own events without the directory's name in its parent. The
    parent's watchers get them with the name at the time of reading. A directory that is not watched
    itself is found with CAP_DAC_READ_SEARCH and on the file system of the share's root only.
    """

    name = "fanotify"
    mark_ids_are_watch_ids = True
    supported = Event(sum(KERNEL_BITS)) | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        inodes: InodeStore | None = None,
        path_of: Callable[[int], str] = proc_path,
        own_pid: int = NO_PID,
        unlimited_queue: bool = False,
        groups: list[Fanotify] | None = None,
    ) -> None:
        """Make groups, or take ownership of ``groups``, whose marks will be restored."""
        self._own_pid = own_pid
        self._report_own = False
        self._mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        # The first group has all marks that it can have. The spare ones are for other subvolumes.
        self._groups: list[Fanotify] = []
        self._epoll = select.epoll()
        try:
            if groups is not None:
                self._groups += groups
            else:
                self._groups.append(Fanotify(unlimited_queue))
                if file_system_type(os.fsencode(path_of(self._mount_fd))) == _BTRFS:
                    self._groups += [Fanotify(unlimited_queue) for _ in range(_SPARE_GROUPS)]
            for group in self._groups:
                self._epoll.register(group.fileno(), select.EPOLLIN)
        except OSError:
            self._close_groups()
            raise
        if unlimited_queue and not self._groups[0].has_unlimited_queue:
            _log.info(
                "the host's event queue stays limited by fs.fanotify.max_queued_events: without"
                " CAP_SYS_ADMIN it cannot be longer"
            )
        # The group of a file system's or subvolume's marks, by file system id; and of each mark
        # that is not in the first group, by mark id.
        self._group_of_fsid: dict[bytes, Fanotify] = {}
        self._group_of_mark: dict[int, Fanotify] = {}
        self._refused: set[bytes] = set()
        self._by_identity: dict[bytes, Node] = {}
        self._history = EntryHistory(self._look_up)
        super().__init__(self._groups[0], root_fd, inodes, path_of, self._look_up)

    @property
    def others_only(self) -> bool:
        """Whether a process was given whose events can be left out."""
        return self._own_pid != NO_PID

    def report_own(self, report: bool) -> None:
        """Choose whether events of ``own_pid`` are reported; see ``WatchBackend``."""
        self._report_own = report

    def fileno(self) -> int:
        """Return a descriptor that is readable when a group has events."""
        return self._groups[0].fileno() if len(self._groups) == 1 else self._epoll.fileno()

    def reset(self) -> None:
        """End all watches and drop what is recorded of events."""
        super().reset()
        self._history.clear()

    def close(self) -> None:
        """End all watches and close the groups."""
        super().close()
        self._close_groups()

    def _close_groups(self) -> None:
        for group in self._groups:
            group.close()
        self._epoll.close()
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
            self._mount_fd = -1

    def put_mark(self, node: Node) -> None:
        """Add or update the host mark of a node; see ``HostMarks``.

        ``UnwatchableError``: fanotify cannot watch this part of the share. A warning says so once.
        """
        mask = _mark_mask(node)
        path = self._tree.path(node)
        if node.mark_id:
            group = self._group_of(node)
            group.add(path, mask)
            if node.mark_mask & ~mask:
                group.remove(path, node.mark_mask & ~mask)
            node.mark_mask = shared(mask)
            return
        try:
            identity = self._identity(node.inode.fd)
            if identity in self._by_identity:
                # Events would be reported of the wrong inode.
                raise OSError(errno.EEXIST, "two inodes have one handle")
            group = self._add(path, mask, identity[:FSID_SIZE])
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            refusal = UnwatchableError(error.errno)
            self._warn(node, str(refusal.strerror))
            raise refusal from error
        node.mark_id, node.mark_identity, node.mark_mask = node.watch_id, identity, shared(mask)
        self._by_identity[identity] = node
        if group is not self._groups[0]:
            self._group_of_mark[node.mark_id] = group

    def _add(self, path: str, mask: int, fsid: bytes) -> Fanotify:
        """Add the first mark of an inode to a group that takes it, and return the group."""
        known = self._group_of_fsid.get(fsid)
        candidates = self._groups if known is None else [known, *self._groups]
        for group in candidates:
            try:
                group.add(path, mask)
            except OSError as error:
                if error.errno != errno.EXDEV or group is candidates[-1]:
                    raise
            else:
                self._group_of_fsid[fsid] = group
                return group
        raise AssertionError("there is always one group")

    def _warn(self, node: Node, reason: str) -> None:
        """Log once for each file system that a part of the share is not watched."""
        device = bytes(str(os.fstat(node.inode.fd).st_dev), "ascii")
        if device in self._refused:
            return
        self._refused.add(device)
        _log.warning(
            "the guest gets no events of the host for %s and the rest of its file system: %s;"
            " use --fsnotify=remote to watch it with inotify",
            # A name that the guest has made must not look like a line of the log.
            printable(os.readlink(os.fsencode(self._tree.path(node)))),  # noqa: PTH115
            reason,
        )

    def remove_mark(self, node: Node) -> None:
        """Remove the host mark of a node; see ``HostMarks``."""
        if self._by_identity.pop(node.mark_identity, None) is None:
            return
        group = self._group_of(node)
        self._group_of_mark.pop(node.mark_id, None)
        try:
            group.remove(self._tree.path(node), node.mark_mask)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning(
                    "a host mark cannot be removed (%s); its events are dropped", error.strerror
                )

    def remove_all_marks(self, nodes: list[Node]) -> None:
        """Remove the host marks of all nodes; see ``HostMarks``."""
        self._by_identity.clear()
        self._group_of_mark.clear()
        self._group_of_fsid.clear()
        if nodes:
            for group in self._groups:
                group.remove_all()

    def export_state(self, state: State, fds: Descriptors, host_inodes: ExportedInodes) -> int:
        """Add the watches to a state; see ``WatchBackend``."""
        state.file_system_groups += [
            FileSystemGroupState(fsid, self._groups.index(group))
            for fsid, group in self._group_of_fsid.items()
        ]
        state.refused += [RefusedState(device) for device in self._refused]
        return super().export_state(state, fds, host_inodes)

    def restore_state(self, state: State, host_inodes: list[HostInode]) -> None:
        """Add the watches of a state; see ``WatchBackend``."""
        super().restore_state(state, host_inodes)
        for record in state.file_system_groups:
            self._group_of_fsid[record.fsid] = self._restored_group(record.group)
        self._refused |= {record.device for record in state.refused}

    def _restored_group(self, index: int) -> Fanotify:
        if index >= len(self._groups):
            raise StateError("a mark is of a group that is not there")
        return self._groups[index]

    def _restore_mark(self, node: Node, record: NodeState) -> None:
        self._by_identity[node.mark_identity] = node
        group = self._restored_group(record.group)
        if group is not self._groups[0]:
            self._group_of_mark[node.mark_id] = group

    def _all_groups(self) -> list[Fanotify]:
        return self._groups

    def _group_index(self, node: Node) -> int:
        return self._groups.index(self._group_of(node))

    def _flush(self) -> list[MarkEvent]:
        """Return the entry events that coalescing has hidden until now."""
        hidden = self._history.missing() if self._history.has_suspects else []
        self._history.clear()
        return hidden

    def _group_of(self, node: Node) -> Fanotify:
        return self._group_of_mark.get(node.mark_id, self._groups[0])

    def _identity(self, fd: int) -> bytes:
        return self._groups[0].identity(fd)

    def _gather(self) -> list[MarkEvent]:
        """Read a chunk of events, and more when earlier events of a removed inode may be unread.

        Own events are read until another one comes. The host's queue has them as well, and they
        must not fill it.
        """
        batch: list[MarkEvent] = []
        for _ in range(_MAX_CHUNKS):
            # Marks of different groups are of different subvolumes. No event concerns two of them.
            events = [event for group in self._groups for event in group.read(_CHUNK)]
            chunk = self._expand(events)
            batch += chunk
            if not events:
                break
            if not all(each.own for each in chunk) and not self._stream.shows_removal(chunk):
                break
        return batch + self._hidden_entries()

    def _hidden_entries(self) -> list[MarkEvent]:
        """Return the entry events that coalescing has hidden, once all events are read.

        Events that come during the check belong to what the check saw. Then the result is dropped,
        and the check is made again after them.
        """
        history = self._history
        if not len(history) or (self.unread() and not history.is_full):
            return []
        hidden: list[MarkEvent] = []
        if history.has_suspects:
            hidden = history.missing()
            if self.unread() and not history.is_full:
                return []
        history.clear()
        return hidden

    def _look_up(self, mark_id: int, name: bytes) -> bytes | None:
        """Return the identity of an entry of a marked directory; see ``EntryHistory``."""
        node = self._by_mark.get(mark_id)
        if node is None:
            raise OSError(errno.ENOENT, "the directory is not watched any more")
        fsid = node.mark_identity[:FSID_SIZE]
        return self._groups[0].identity_at(self._tree.open(node), name, fsid)

    def _expand(self, events: list[FanEvent]) -> list[MarkEvent]:
        """Turn coalesced events of inodes into single events of marks."""
        batch: list[MarkEvent] = []
        before: FanEvent | None = None
        for event in events:
            for single in self._single(event, before):
                if single.mask & _DIRENT:
                    self._record(single)
                batch.append(single)
            before = event
        return batch

    def _record(self, event: MarkEvent) -> None:
        """Record the entry event of an explicit watch in the history."""
        node = self._by_mark.get(event.mark_id)
        if node is not None and node.explicit:
            self._history.record(event, event.inode)

    def _single(self, event: FanEvent, before: FanEvent | None) -> Iterator[MarkEvent]:
        mask = event.mask
        if mask & _Q_OVERFLOW:
            self._history.clear()
            yield _OVERFLOW
            return
        own = event.pid == self._own_pid and not self._report_own
        isdir = mask & _ISDIR
        if mask & _RENAME:
            yield from self._rename(event, isdir, own)
            return
        directory, name = self._where(event, INFO_DFID_NAME)
        # With FAN_REPORT_DFID_NAME a directory's own events are those of "." in it.
        target = directory if name == b"." else self._where(event, INFO_FID)[0]
        inode = event.infos[INFO_FID].identity if INFO_FID in event.infos else b""
        if name == b".":
            inode = event.infos[INFO_DFID_NAME].identity
            try:
                directory, name = self._entry(inode)
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
        order = _ORDER_OF_ONE.get(mask & ~_ISDIR, _ORDER)
        if mask & _BOTH_ENDS == _BOTH_ENDS and directory and self._is_there(event, directory, name):
            order = _ORDER_RELINKED
        for bit in order:
            if not mask & bit:
                continue
            if directory and not bit & _SELF_ONLY:
                yield MarkEvent(directory, bit | isdir, name, own, inode=inode)
            if target and not bit & _DIRENT:
                yield MarkEvent(target, bit if bit & _SELF_ONLY else bit | isdir, b"", own)

    def _is_there(self, event: FanEvent, directory: int, name: bytes) -> bool:
        """Return whether the inode of an entry event has the name now.

        One inode may have been linked and unlinked under one name any number of times. The last
        event is the one that agrees with the directory.
        """
        try:
            return self._look_up(directory, name) == event.infos[INFO_FID].identity
        except OSError:
            return False

    def _is_renamed_over(self, event: FanEvent, directory: int, name: bytes) -> bool:
        return bool(event.mask & _RENAME) and self._where(event, INFO_NEW_DFID_NAME) == (
            directory,
            name,
        )

    def _rename(self, event: FanEvent, isdir: int, own: bool) -> Iterator[MarkEvent]:
        source, old = self._where(event, INFO_OLD_DFID_NAME)
        target, new = self._where(event, INFO_NEW_DFID_NAME)
        inode = event.infos[INFO_FID].identity
        if source and target:
            yield MarkEvent(source, _MOVES | isdir, old, own, target, new, inode)
        elif source:
            yield MarkEvent(source, _MOVED_FROM | isdir, old, own, inode=inode)
        elif target:
            yield MarkEvent(target, _MOVED_TO | isdir, new, own, inode=inode)

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
                lambda: self._groups[0].open_object(self._mount_fd, identity)
            )
        except OSError as error:
            return _not_found(error)
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            parent = self._inodes.with_room(lambda: os.open("..", flags, dir_fd=fd))
            try:
                mark_id = self._mark_of(self._groups[0].identity(parent))
            finally:
                os.close(parent)
            name = entry_name(fd, self._inodes.status(fd), self._path_of(fd))
            return (mark_id, name) if name else (_UNMARKED, b"")
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
    if node.outside:
        mask = _DELETE_SELF
    elif node.explicit:
        mask = _OWN_REMOVAL | kernel_mask(node.wanted)
    if not node.is_dir:
        return mask & ~_DIRENT
    if node.children:
        mask |= _CHILD_REMOVAL
    # FAN_RENAME has both sides of a move in one event.
    if mask & _MOVES:
        mask = mask & ~_MOVES | _RENAME
    if node.wanted & _ON_CHILD and not node.outside:
        mask |= int(Fan.EVENT_ON_CHILD)
    return mask | _DIRECTORY
