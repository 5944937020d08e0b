# SPDX-License-Identifier: Apache-2.0
"""The watched objects of one back end, and the directories between them and the root of the share.

The daemon's own descriptor keeps a removed object alive, so the host never says DELETE_SELF of it. A file's ATTRIB and
its link count tell; a directory's removal shows only in its parent. So each watched directory's ancestors are watched
too, privately, up to the root: they tell of removal, and of a move that takes a whole subtree out of the share.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_log = logging.getLogger(__name__)
_DELETED = b" (deleted)"
_MAX_DEPTH = 1024

Identity = tuple[int, int]


@dataclass(slots=True, eq=False)
class Node:
    """One host watch. ``fd`` is the node's own O_PATH descriptor; ``place`` is the back end's handle of the watch.

    ``name`` is the object's entry as last looked up, which may be later than the event that led to the look-up: two
    children may claim one ``names`` entry for a while. None: the system did not tell.
    """

    key: int
    fd: int
    ident: Identity
    is_dir: bool
    wanted: int = 0
    public: bool = False
    dying: bool = False
    place: int = 0
    parent: Node | None = None
    name: bytes | None = None
    children: set[Node] = field(default_factory=set)
    names: dict[bytes | None, set[Node]] = field(default_factory=dict)

    def gone(self) -> bool:
        """Whether no name leads to the object any more."""
        return os.fstat(self.fd).st_nlink == 0


class Placer(Protocol):
    """The system's side of a watch."""

    def place(self, node: Node) -> None:
        """Put or update the host watch of ``node``, as its ``wanted``, ``public`` and ``children`` ask; ``OSError``."""

    def remove(self, node: Node) -> None:
        """Take the host watch of ``node`` away; that it is gone already is no error."""


class WatchTree:
    """Watched objects by key and by identity; see the module. ``root_fd`` is the share's root directory.

    ``path_of`` gives a path that leads to the object of a descriptor. ``len`` counts the host watches.
    """

    def __init__(self, root_fd: int, path_of: Callable[[int], str], placer: Placer) -> None:
        self._root = _identity(root_fd)
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
        """Watch the object behind ``fd``, or add to its mask; ``OSError``: see ``Backend.watch``. All or nothing."""
        ident = _identity(fd)
        node = self._by_ident.get(ident)
        if node is not None:
            self.change(node, node.wanted | wanted, public=True)
            return node
        node = self._new(os.dup(fd), ident, is_dir)
        node.wanted, node.public = wanted, True
        try:
            self._placer.place(node)
            inside = self._attach(node)
            if node.gone():
                raise OSError(errno.ENOENT, "the object has been removed")
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
                _log.warning("cannot narrow a host watch (%s); removals below it are not seen", error.strerror)
            else:
                return
        self.drop(node)

    def drop(self, node: Node) -> None:
        """Remove the node, and the ancestors that only it needed. Children stay, without a parent."""
        while self._by_key.pop(node.key, None) is not None:
            del self._by_ident[node.ident]
            for child in node.children:
                child.parent = None
            self._placer.remove(node)
            os.close(node.fd)
            parent, node.parent = node.parent, None
            if parent is None:
                return
            _part(parent, node)
            if parent.children or parent.public:
                return
            node = parent

    def clear(self) -> None:
        """Remove all nodes."""
        while self._by_key:
            self.drop(next(iter(self._by_key.values())))

    def moved(self, node: Node) -> list[Node]:
        """Follow the move of a directory. Return the public nodes that left the share with it, no longer watched."""
        if not node.is_dir or node.ident == self._root:
            return []
        former, node.parent = node.parent, None
        if former is not None:
            _forget_name(former, node)
        try:
            inside = self._attach(node)
        except OSError as error:
            _log.warning("cannot watch the way to a moved directory (%s); its removal is not seen", error.strerror)
            inside = True
        # Only now: the former parent may be the new one, and what waits in its watch's stream is still needed then.
        if former is not None and node.parent is not former:
            former.children.discard(node)
            if not former.children and not former.public:
                self.drop(former)
        if inside:
            return []
        left = _subtree(node)
        for each in left:
            self.drop(each)
        return [each for each in left if each.public]

    def removed_children(self, parent: Node, name: bytes) -> list[Node]:
        """The watched child directories of ``parent``, once its entry ``name``, that no name leads to any more."""
        claims = parent.names.get(name, set()) | parent.names.get(None, set())
        return [child for child in claims if child.gone()]

    def _attach(self, node: Node) -> bool:
        """Watch the directories from ``node`` up to the root; False when the way does not lead there.

        Safe against moves meanwhile: each node is watched for moves before its parent is looked up, so a move that
        comes too late for the look-up is still to be read, and attaches again.
        """
        if not self._inside(node):
            return False
        for _ in range(_MAX_DEPTH):
            if not node.is_dir or node.ident == self._root or node.parent is not None:
                return True
            try:
                fd = _open_parent(node.fd)
            except PermissionError:
                _log.debug("a watched directory may not be searched; its removal is not seen")
                return True
            ident = _identity(fd)
            parent = self._by_ident.get(ident)
            if parent is not None:
                os.close(fd)
            else:
                parent = self._new(fd, ident, is_dir=True)
            self._join(parent, node)
            node = parent
        raise OSError(errno.ENAMETOOLONG, "the directory lies too deep")

    def _inside(self, node: Node) -> bool:
        """Whether the way up from ``node`` leads to the root, as far as it may be looked at; watches nothing."""
        if not node.is_dir or node.ident == self._root:
            return True
        fd, ident = os.dup(node.fd), node.ident
        try:
            for _ in range(_MAX_DEPTH):
                above = _open_parent(fd)
                os.close(fd)
                fd = above
                former, ident = ident, _identity(fd)
                known = self._by_ident.get(ident)
                if ident == self._root or (known is not None and known.parent is not None):
                    return True
                if ident == former:
                    return False
        except PermissionError:
            return True
        except FileNotFoundError:
            return False
        finally:
            os.close(fd)
        raise OSError(errno.ENAMETOOLONG, "the directory lies too deep")

    def _new(self, fd: int, ident: Identity, is_dir: bool) -> Node:
        node = Node(next(self._keys), fd, ident, is_dir)
        self._by_key[node.key] = self._by_ident[ident] = node
        return node

    def _join(self, parent: Node, child: Node) -> None:
        first = not parent.children
        child.parent = parent
        child.name = self._name_of(child)
        parent.children.add(child)
        parent.names.setdefault(child.name, set()).add(child)
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
        """The entry's name, or None when the system does not tell: then all such siblings are looked at."""
        try:
            path = os.fsencode(Path(self._path_of(node.fd)).readlink())
            if node.gone():
                path = path.removesuffix(_DELETED)
        except OSError:
            return None
        return path.rpartition(b"/")[2] or None


def _identity(fd: int) -> Identity:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _open_parent(fd: int) -> int:
    return os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)


def _forget_name(parent: Node, child: Node) -> None:
    claims = parent.names.get(child.name, set())
    claims.discard(child)
    if not claims:
        parent.names.pop(child.name, None)


def _part(parent: Node, child: Node) -> None:
    parent.children.discard(child)
    _forget_name(parent, child)


def _subtree(node: Node) -> list[Node]:
    nodes = [node]
    for each in nodes:
        nodes.extend(each.children)
    return nodes
