# SPDX-License-Identifier: Apache-2.0
"""The fanotify back end: knows which process caused an event, so this daemon's own can be left out
(mode others)."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from farwatchd.inode_store.store import OUT_OF_DESCRIPTORS, ObjectTable
from farwatchd.linux.fanotify import (
    INFO_DFID_NAME,
    INFO_FID,
    INFO_NEW_DFID_NAME,
    INFO_OLD_DFID_NAME,
    Fan,
    FanEvent,
    Fanotify,
)
from farwatchd.linux.inotify import In, RawEvent
from farwatchd.watch.backend_base import Watcher, proc_path
from farwatchd.watch.event_stream import KERNEL_BITS, kernel_mask
from farwatchd.watch.nodes import Node
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

_CHUNK = 65536
_MAX_CHUNKS = 16

#: fanotify merges what one process did to one object: the order in which that can have happened.
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
_MOVES = int(In.MOVED_FROM | In.MOVED_TO)
_DIRENT = int(In.CREATE | In.DELETE) | _MOVES
_SELF_ONLY = int(In.MOVE_SELF | In.DELETE_SELF)
_ISDIR = int(In.ISDIR)
_OWN_END = int(In.ATTRIB | In.DELETE_SELF)
_CHILDRENS_END = int(In.DELETE | In.MOVED_TO)
_DIRECTORY = int(In.MOVE_SELF) | int(Fan.ONDIR)
_ON_CHILD = int(Event.ON_CHILD)
_NOWHERE = 0

#: No process: nobody's events are left out.
EVERYBODY = -1


class FanotifyBackend(Watcher):
    """Watches through one fanotify group with inode marks. See ``Backend``, and ``Watcher`` for the
    parameters.

    Events that the process ``own_pid`` causes are followed, but not told; with EVERYBODY all are.

    fanotify tells of a directory's own events without saying what the directory is called in its
    parent. The parent's watchers get them by the name that the directory has when the event is
    read; a directory that is not watched itself is only found with CAP_DAC_READ_SEARCH and on the
    file system of the share's root.
    """

    name = "fanotify"
    supported = Event(sum(KERNEL_BITS)) | Event.ON_CHILD | Event.RENAME

    def __init__(
        self,
        root_fd: int,
        objects: ObjectTable | None = None,
        path_of: Callable[[int], str] = proc_path,
        clock: Callable[[], float] = time.monotonic,
        own_pid: int = EVERYBODY,
    ) -> None:
        self._own_pid = own_pid
        self._tell_own = False
        self._mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        try:
            self._fanotify = Fanotify()
        except OSError:
            os.close(self._mount_fd)
            raise
        self._cookies = itertools.count(1)
        self._by_handle: dict[bytes, Node] = {}
        super().__init__(self._fanotify, root_fd, objects, path_of, clock)

    @property
    def others_only(self) -> bool:
        """Whether what this process causes can be left out."""
        return self._own_pid != EVERYBODY

    def tell_own(self, tell: bool) -> None:
        """Whether to tell what this process causes; see ``Backend``."""
        self._tell_own = tell

    def close(self) -> None:
        """End all watches and close the group."""
        super().close()
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
            self._mount_fd = -1

    def place(self, node: Node) -> None:
        """Put the host mark of a node (called by the tree). EOPNOTSUPP: its file system has no
        handles."""
        mask = _mark_mask(node)
        path = self._tree.path(node)
        handle = node.handle or self._fanotify.identity(node.held.fd)
        try:
            self._fanotify.add(path, mask)
        except OSError as error:
            # A file system that cannot say whose event it is leaves its objects to the guest alone.
            if error.errno in (errno.ENODEV, errno.EXDEV):
                raise OSError(errno.EOPNOTSUPP, error.strerror) from error
            raise
        if node.mask & ~mask:
            self._fanotify.remove(path, node.mask & ~mask)
        node.mask = mask
        if not node.place:
            node.place, node.handle = node.key, handle
            self._by_place[node.place] = node
            self._by_handle[handle] = node

    def remove(self, node: Node) -> None:
        """Take the host mark of a node away (called by the tree)."""
        if self._by_place.pop(node.place, None) is None:
            return
        del self._by_handle[node.handle]
        try:
            self._fanotify.remove(self._tree.path(node), node.mask)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning(
                    "a mark cannot be taken away (%s); its events are ignored", error.strerror
                )

    def remove_all(self, nodes: list[Node]) -> None:
        """Take all host marks away (called by the tree)."""
        self._by_place.clear()
        self._by_handle.clear()
        if nodes:
            self._fanotify.remove_all()

    def _gather(self) -> list[RawEvent]:
        chunk = self._expand(self._fanotify.read(_CHUNK))
        batch = chunk
        for _ in range(_MAX_CHUNKS - 1):
            if not chunk or not self._stream.shows_removal(chunk):
                break
            chunk = self._expand(self._fanotify.read(_CHUNK))
            batch = batch + chunk
        return batch

    def _expand(self, events: list[FanEvent]) -> list[RawEvent]:
        """Bring merged events of objects into a sequence of single ones of watches."""
        batch: list[RawEvent] = []
        for before, event in itertools.pairwise([None, *events]):
            if event is not None:
                batch += self._single(event, before)
        return batch

    def _single(self, event: FanEvent, before: FanEvent | None) -> Iterator[RawEvent]:
        mask = event.mask
        if mask & In.Q_OVERFLOW:
            yield RawEvent(-1, int(In.Q_OVERFLOW), 0, b"")
            return
        silent = event.pid == self._own_pid and not self._tell_own
        isdir = mask & _ISDIR
        if mask & Fan.RENAME:
            yield from self._moves(event, isdir, silent)
            return
        directory, name = self._where(event, INFO_DFID_NAME)
        # With FAN_REPORT_DFID_NAME a directory's own events come as those of "." in it.
        target = directory if name == b"." else self._where(event, INFO_FID)[0]
        if name == b".":
            try:
                directory, name = self._entry(event.infos[INFO_DFID_NAME].identity)
            except OSError as error:
                _log.warning("no descriptor left to find a directory's name (%s)", error.strerror)
                yield RawEvent(-1, int(In.Q_OVERFLOW), 0, b"")
                directory = _NOWHERE
            if (
                before is not None
                and before.mask & Fan.RENAME
                and self._where(before, INFO_NEW_DFID_NAME)
                == (
                    directory,
                    name,
                )
            ):
                # The directory was renamed over: its link count changed, which is no event of the
                # parent's child.
                directory = _NOWHERE
        for bit in _ORDER:
            if not mask & bit:
                continue
            if directory and not bit & _SELF_ONLY:
                yield RawEvent(directory, bit | isdir, 0, name, silent)
            if target and not bit & _DIRENT:
                yield RawEvent(target, bit if bit & _SELF_ONLY else bit | isdir, 0, b"", silent)

    def _moves(self, event: FanEvent, isdir: int, silent: bool) -> Iterator[RawEvent]:
        source, old = self._where(event, INFO_OLD_DFID_NAME)
        target, new = self._where(event, INFO_NEW_DFID_NAME)
        cookie = next(self._cookies) if source and target else 0
        if source:
            yield RawEvent(source, int(In.MOVED_FROM) | isdir, cookie, old, silent)
        if target:
            yield RawEvent(target, int(In.MOVED_TO) | isdir, cookie, new, silent)

    def _entry(self, identity: bytes) -> tuple[int, bytes]:
        """The watch of a directory's parent, and the directory's name there; ``OSError`` without a
        descriptor."""
        node = self._by_handle.get(identity)
        if node is not None:
            if node.parent is None or node.name is None:
                return _NOWHERE, b""
            return node.parent.place, node.name
        try:
            fd = self._objects.with_room(
                lambda: self._fanotify.open_object(self._mount_fd, identity)
            )
        except OSError as error:
            return _not_found(error)
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            parent = self._objects.with_room(lambda: os.open("..", flags, dir_fd=fd))
            try:
                place = self._place_of(self._fanotify.identity(parent))
            finally:
                os.close(parent)
            return place, os.fsencode(Path(self._path_of(fd)).readlink()).rpartition(b"/")[2]
        except OSError as error:
            return _not_found(error)
        finally:
            os.close(fd)

    def _where(self, event: FanEvent, kind: int) -> tuple[int, bytes]:
        info = event.infos.get(kind)
        if info is None:
            return _NOWHERE, b""
        return self._place_of(info.identity), info.name

    def _place_of(self, identity: bytes) -> int:
        node = self._by_handle.get(identity)
        return _NOWHERE if node is None else node.place


def _not_found(error: OSError) -> tuple[int, bytes]:
    if error.errno in OUT_OF_DESCRIPTORS:
        raise error
    _log.debug("a directory is gone or cannot be looked up: %s", error.strerror)
    return _NOWHERE, b""


def _mark_mask(node: Node) -> int:
    """The mask of a node's mark: fanotify refuses bits of entries on what is no directory."""
    mask = 0
    if node.public:
        mask = _OWN_END | kernel_mask(node.wanted)
    if not node.is_dir:
        return mask & ~_DIRENT
    if node.children:
        mask |= _CHILDRENS_END
    # One RENAME tells of both halves at once, of each to those that want it.
    if mask & _MOVES:
        mask = mask & ~_MOVES | int(Fan.RENAME)
    if node.wanted & _ON_CHILD:
        mask |= int(Fan.EVENT_ON_CHILD)
    return mask | _DIRECTORY
