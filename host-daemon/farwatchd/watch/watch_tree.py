# SPDX-License-Identifier: Apache-2.0
"""The watched objects of one back end, and the directories between them and the root of the share.

A descriptor of the daemon's may keep a removed object alive, and then the host does not say
DELETE_SELF of it. A file's ATTRIB and its link count tell; a directory's removal shows only in its
parent. So each watched directory's ancestors are watched too, privately, up to the root: they tell
of removal, and of a move that takes a subtree out of the share.

Nodes hold objects as the inodes that the guest knows do, so a watch costs no descriptor beside the
inode's own.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from farwatchd.inode_store.store import GONE, HostObject, Identity, ObjectTable
from farwatchd.watch.nodes import Children, Node

_log = logging.getLogger(__name__)
_DELETED = b" (deleted)"
_MAX_DEPTH = 1024


class Placer(Protocol):
    """The system's side of a watch."""

    def place(self, node: Node) -> None:
        """Put or update the host watch of ``node``, as its ``wanted``, ``public`` and ``children``
        ask; ``OSError``."""

    def remove(self, node: Node) -> None:
        """Take the host watch of ``node`` away; that it is gone already is no error."""

    def remove_all(self, nodes: list[Node]) -> None:
        """Take the host watches of ``nodes`` away, which are all that there are."""


class WatchTree:
    """Watched objects by key and by identity; see the module. ``root_fd`` is the share's root
    directory.

    ``path_of`` gives a path that leads to the object of a descriptor. ``len`` counts the host
    watches.
    """

    def __init__(
        self, root_fd: int, objects: ObjectTable, path_of: Callable[[int], str], placer: Placer
    ) -> None:
        self._objects = objects
        status = os.fstat(root_fd)
        self._root_held: HostObject | None = objects.hold(root_fd, status)
        self._root = self._root_held.identity(status)
        self._path_of = path_of
        self._placer = placer
        self._keys = itertools.count(1)
        self._by_key: dict[int, Node] = {}
        self._by_ident: dict[Identity, Node] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: int) -> Node | None:
        """The public node of that key."""
        node = self._by_key.get(key)
        return node if node is not None and node.public else None

    def add(self, fd: int, is_dir: bool, wanted: int) -> Node:
        """Watch the object behind ``fd``, or add to its mask; ``OSError``: see ``Backend.watch``.
        All or nothing."""
        status = os.fstat(fd)
        held = self._objects.hold(fd, status)
        ident = held.identity(status)
        node = self._by_ident.get(ident)
        if node is not None:
            self._objects.drop(held)
            self.change(node, node.wanted | wanted, public=True)
            return node
        node = self._new(held, ident, is_dir)
        node.wanted, node.public = wanted, True
        try:
            self._placer.place(node)
            inside = self._attach(node)
            if self.gone(node):
                raise _removed()
            if not inside:
                raise OSError(errno.EACCES, "the directory is not in the share any more")
        except OSError:
            self.drop(node)
            raise
        return node

    def change(self, node: Node, wanted: int, public: bool) -> None:
        """Replace the mask of a node; on ``OSError`` it is as before."""
        before = node.wanted, node.public
        node.wanted, node.public = wanted, public
        try:
            self._placer.place(node)
        except OSError:
            node.wanted, node.public = before
            raise

    def modify(self, key: int, wanted: int) -> None:
        """Replace the mask of a public node; ``OSError``, ENOENT when there is none."""
        node = self.get(key)
        if node is None:
            raise OSError(errno.ENOENT, "the watch has ended")
        self.change(node, wanted, public=True)

    def release(self, key: int) -> None:
        """End the public watch; the node stays while directories below need it."""
        node = self.get(key)
        if node is None:
            return
        if node.children:
            try:
                self.change(node, 0, public=False)
            except OSError as error:
                _log.warning(
                    "cannot narrow a host watch (%s); removals below it are not seen",
                    error.strerror,
                )
            else:
                return
        self.drop(node)

    def drop(self, node: Node) -> None:
        """Remove the node, and the ancestors that only it needed. Children stay, without a
        parent."""
        while self._by_key.pop(node.key, None) is not None:
            del self._by_ident[node.ident]
            for child in node.children or ():
                child.parent = None
            self._placer.remove(node)
            self._objects.drop(node.held)
            parent, node.parent = node.parent, None
            if parent is None:
                return
            _part(parent, node)
            if parent.children or parent.public:
                return
            node = parent

    def clear(self) -> None:
        """Remove all nodes."""
        nodes = list(self._by_key.values())
        self._by_key.clear()
        self._by_ident.clear()
        self._placer.remove_all(nodes)
        for node in nodes:
            self._objects.drop(node.held)

    def close(self) -> None:
        """Remove all nodes for good, and let the root go."""
        self.clear()
        if self._root_held is not None:
            self._objects.drop(self._root_held)
            self._root_held = None

    def path(self, node: Node) -> str:
        """A path that leads to a node's object, when followed, for one system call; ``OSError``,
        ENOENT: it is gone."""
        return self._path_of(self._open(node))

    def gone(self, node: Node) -> bool:
        """Whether no name leads to a node's object any more."""
        try:
            return os.fstat(self._objects.open(node.held)).st_nlink == 0
        except OSError as error:
            if error.errno in GONE:
                return True
            _log.warning("cannot tell whether a watched object is gone: %s", error.strerror)
            return False

    def moved(self, node: Node) -> list[Node]:
        """Follow the move of a directory. Return the public nodes that left the share with it, no
        longer watched."""
        if not node.is_dir or node.ident == self._root or self._vanished(node):
            return []
        former, node.parent = node.parent, None
        if former is not None and former.children is not None:
            former.children.forget_name(node)
        try:
            inside = self._attach(node)
        except OSError as error:
            _log.warning(
                "cannot watch the way to a moved directory (%s); its removal is not seen",
                error.strerror,
            )
            inside = True
        # Only now: the former parent may be the new one, and what waits in its watch's stream is
        # still needed then.
        if former is not None and node.parent is not former:
            _part(former, node)
            if not former.children and not former.public:
                self.drop(former)
        if inside:
            return []
        left = node.subtree()
        for each in left:
            self.drop(each)
        return [each for each in left if each.public]

    def removed_children(self, parent: Node, name: bytes) -> list[Node]:
        """The watched child directories of ``parent``, once its entry ``name``, that no name leads
        to any more."""
        claims = parent.children.claiming(name) if parent.children else []
        return [child for child in claims if self.gone(child)]

    def _attach(self, node: Node) -> bool:
        """Watch the directories from ``node`` up to the root; False when the way does not lead
        there.

        Safe against moves meanwhile: each node is watched for moves before its parent is looked up,
        so a move that comes too late for the look-up is still to be read, and attaches again.
        """
        if not self._inside(node):
            return False
        for _ in range(_MAX_DEPTH):
            if not node.is_dir or node.ident == self._root or node.parent is not None:
                return True
            try:
                fd = self._open_parent(self._open(node))
            except PermissionError:
                _log.debug("a watched directory may not be searched; its removal is not seen")
                return True
            status = os.fstat(fd)
            held = self._objects.take(fd, status)
            ident = held.identity(status)
            parent = self._by_ident.get(ident)
            if parent is not None:
                self._objects.drop(held)
            else:
                parent = self._new(held, ident, is_dir=True)
            self._join(parent, node)
            node = parent
        raise OSError(errno.ENAMETOOLONG, "the directory lies too deep")

    def _inside(self, node: Node) -> bool:
        """Whether the way up from ``node`` leads to the root, as far as it may be looked at;
        watches nothing."""
        if not node.is_dir or node.ident == self._root:
            return True
        fd, ident = -1, node.ident
        try:
            fd = self._open_parent(self._open(node))
            for _ in range(_MAX_DEPTH):
                former, ident = ident, self._objects.identity(fd)
                known = self._by_ident.get(ident)
                if ident == self._root or (known is not None and known.parent is not None):
                    return True
                if ident == former:
                    return False
                above = self._open_parent(fd)
                os.close(fd)
                fd = above
        except PermissionError:
            return True
        except FileNotFoundError:
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        raise OSError(errno.ENAMETOOLONG, "the directory lies too deep")

    def _vanished(self, node: Node) -> bool:
        """Whether nothing is left of an object. Then nobody held it, and the host says so
        itself."""
        try:
            self._open(node)
        except FileNotFoundError:
            return True
        except OSError as error:
            _log.debug("a watched directory cannot be opened: %s", error.strerror)
        return False

    def _open(self, node: Node) -> int:
        try:
            return self._objects.open(node.held)
        except OSError as error:
            if error.errno in GONE:
                raise _removed() from None
            raise

    def _open_parent(self, fd: int) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return self._objects.with_room(lambda: os.open("..", flags, dir_fd=fd))

    def _new(self, held: HostObject, ident: Identity, is_dir: bool) -> Node:
        node = Node(next(self._keys), held, ident, is_dir)
        self._by_key[node.key] = self._by_ident[ident] = node
        return node

    def _join(self, parent: Node, child: Node) -> None:
        first = not parent.children
        child.parent = parent
        child.name = self._name_of(child)
        if parent.children is None:
            parent.children = Children()
        parent.children.add(child)
        if not first:
            return
        try:
            self._placer.place(parent)
        except OSError:
            child.parent = None
            _part(parent, child)
            if not parent.public:
                self.drop(parent)
            raise

    def _name_of(self, node: Node) -> bytes | None:
        """The entry's name, or None when the system does not tell: then all such siblings are
        looked at."""
        try:
            path = os.fsencode(Path(self.path(node)).readlink())
            if self.gone(node):
                path = path.removesuffix(_DELETED)
        except OSError:
            return None
        return path.rpartition(b"/")[2] or None


def _removed() -> OSError:
    return OSError(errno.ENOENT, "the object has been removed")


def _part(parent: Node, child: Node) -> None:
    if parent.children is not None:
        parent.children.discard(child)
