# SPDX-License-Identifier: Apache-2.0
"""The watched inodes of one watch back end, and the directories between them and the share's root.

A descriptor of the daemon may keep an unlinked inode alive, and then the host raises no DELETE_SELF
for it. The removal of a file shows in ATTRIB and the link count; the removal of a directory shows
only in an event of its parent. So the ancestors of each watched directory are watched, too, up to
the root: with implicit watches, which show removals, and moves that take a subtree out of the
share.

A node references its inode in the inode store, as the inodes that the guest knows do. A watch costs
no descriptor of its own.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from farwatchd.inode_store.store import GONE, ExportedInodes, HostInode, Identity, InodeStore
from farwatchd.wire.state import NONE, NodeState, StateError

_log = logging.getLogger(__name__)
_DELETED = b" (deleted)"
#: Directories between a watched one and the root. A path has fewer than 2048 names, but a directory
#: can be made relative to another one.
_MAX_DEPTH = 1 << 16

#: One number for all watches that have it: most have one of a few masks.
_MASKS: dict[int, int] = {}


def shared(mask: int) -> int:
    """Return the mask as the one number of this value that all watches keep."""
    return _MASKS.setdefault(mask, mask)


class Children:
    """The watched directories directly below a node, with an index by name.

    A name is the one at its last look-up, which may be later than the event that led to the
    look-up: two children may have one name for a while. The name None is unknown.
    """

    __slots__ = ("_named", "_nodes", "_unnamed")

    def __init__(self) -> None:
        self._nodes: set[Node] = set()
        self._named: dict[bytes, tuple[Node, ...]] = {}
        self._unnamed: set[Node] = set()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def add(self, child: Node) -> None:
        """Add a child under its present name."""
        self._nodes.add(child)
        if child.name is None:
            self._unnamed.add(child)
        else:
            self._named[child.name] = (*self._named.get(child.name, ()), child)

    def discard(self, child: Node) -> None:
        """Remove a child, if it is one."""
        self._nodes.discard(child)
        self.forget_name(child)

    def forget_name(self, child: Node) -> None:
        """Remove the child from the name index."""
        self._unnamed.discard(child)
        if child.name is None:
            return
        others = tuple(node for node in self._named.get(child.name, ()) if node is not child)
        if others:
            self._named[child.name] = others
        else:
            self._named.pop(child.name, None)

    def named(self, name: bytes) -> list[Node]:
        """Return the children that may have this name."""
        return [*self._named.get(name, ()), *self._unnamed]


@dataclass(slots=True, eq=False)
class Node:
    """One host watch of an inode.

    ``watch_id`` is the number of the watch, ``mark_id`` the back end's number of its host mark, 0
    while there is none. ``identity`` is the inode's on any mount. ``mark_identity`` is the
    inode's identity in the host's events and ``mark_mask`` the mask of its mark, in back ends that
    need them.

    An explicit watch is the guest's, with the mask ``wanted``. An implicit one serves the watches
    below it. ``outside``: the inode has left the share; its watch stays, so that a return is seen,
    and reports nothing. ``pending_removal``: the inode is unlinked, and that is not reported yet;
    ``removed_by_own`` says then that this process unlinked it. ``children`` is None until the node
    has a child.
    """

    watch_id: int
    inode: HostInode
    identity: Identity
    is_dir: bool
    wanted: int = 0
    explicit: bool = False
    outside: bool = False
    pending_removal: bool = False
    removed_by_own: bool = False
    mark_id: int = 0
    mark_identity: bytes = b""
    mark_mask: int = 0
    parent: Node | None = None
    name: bytes | None = None
    children: Children | None = None

    def subtree(self, include: Callable[[Node], bool]) -> list[Node]:
        """Return the node and all below it, parents before children.

        A child that ``include`` refuses is left out with all below it.
        """
        nodes = [self]
        for each in nodes:
            nodes.extend(child for child in each.children or () if include(child))
        return nodes


class HostMarks(Protocol):
    """The host's side of watches: what a watch tree needs of its back end."""

    def put_mark(self, node: Node) -> None:
        """Add or update the host mark of ``node``.

        It depends on ``wanted``, ``explicit``, ``outside`` and ``children``.

        Raises ``OSError`` with the errno for the guest; the mark is unchanged then.
        """

    def remove_mark(self, node: Node) -> None:
        """Remove the host mark of ``node``. That it has none is no error."""

    def remove_all_marks(self, nodes: list[Node]) -> None:
        """Remove the host marks of ``nodes``, which are all nodes of the tree."""


class WatchTree:
    """Nodes by watch id and by identity; see the module. ``len`` is the number of host watches.

    ``root_fd`` is the share's root directory and stays the caller's. ``path_of`` returns a path to
    a descriptor's inode.
    """

    def __init__(
        self, root_fd: int, inodes: InodeStore, path_of: Callable[[int], str], marks: HostMarks
    ) -> None:
        self._inodes = inodes
        status = os.fstat(root_fd)
        self._root_inode: HostInode | None = inodes.get(root_fd, status)
        self._root = self._root_inode.identity(status)
        self._path_of = path_of
        self._marks = marks
        self._watch_ids = itertools.count(1)
        #: All nodes.
        self.by_watch_id = self._by_watch_id = dict[int, Node]()
        self._by_identity: dict[Identity, Node] = {}
        # Nodes that may have been moved or unlinked unseen.
        self._suspects: dict[int, Node] = {}
        self._outside: dict[int, Node] = {}
        self._returned = False

    def __len__(self) -> int:
        return len(self._by_watch_id)

    def get(self, watch_id: int) -> Node | None:
        """Return the node of an explicit watch, or None."""
        node = self._by_watch_id.get(watch_id)
        return node if node is not None and node.explicit else None

    @property
    def is_unsettled(self) -> bool:
        """Whether nodes are to be verified, or the return of one is to be reported."""
        return self._returned or bool(self._suspects)

    @property
    def returned(self) -> bool:
        """Whether the return of a watch is to be reported."""
        return self._returned

    def take_returned(self) -> bool:
        """Return whether explicit watches are in the share again since the last call."""
        returned, self._returned = self._returned, False
        return returned

    def suspect_outside(self) -> None:
        """Record that inodes outside of the share may have returned with a directory above."""
        self._suspects.update(self._outside)

    def suspect_all(self) -> None:
        """Record that events were lost: each inode may be unlinked, moved, or out of the share."""
        self._suspects = dict(self._by_watch_id)

    def is_suspect(self, node: Node) -> bool:
        """Return whether a node is to be verified."""
        return node.watch_id in self._suspects

    def next_suspect(self) -> Node | None:
        """Return a node that is to be verified, or None."""
        return next(iter(self._suspects.values()), None)

    def add(self, fd: int, is_dir: bool, wanted: int) -> Node:
        """Watch the inode behind ``fd`` explicitly, or add ``wanted`` to its mask.

        ``fd`` stays the caller's. Raises ``OSError`` as ``WatchBackend.watch`` does, and then
        leaves everything unchanged.
        """
        status = self._inodes.status(fd)
        inode = self._inodes.get(fd, status)
        identity = inode.identity(status)
        node = self._by_identity.get(identity)
        if node is not None:
            if self._takes_over(node, inode):
                self.moved(node)
            self._require_inside(node)
            self.change(node, node.wanted | wanted, explicit=True)
            return node
        node = self._new(inode, identity, is_dir)
        node.wanted, node.explicit = shared(wanted), True
        try:
            self._marks.put_mark(node)
            inside = self._attach(node)
            if self.unlinked(node):
                raise _stale()
            if not inside:
                raise _not_in_the_share()
        except OSError:
            self.drop(node)
            raise
        return node

    def change(self, node: Node, wanted: int, explicit: bool) -> None:
        """Replace the mask of a node; on ``OSError`` it is unchanged."""
        before = node.wanted, node.explicit
        node.wanted, node.explicit = shared(wanted), explicit
        try:
            self._marks.put_mark(node)
        except OSError:
            node.wanted, node.explicit = before
            raise

    def modify(self, watch_id: int, wanted: int) -> None:
        """Replace the mask of an explicit watch.

        ``OSError``: ENOENT when it has ended, EACCES when it is outside of the share.
        """
        node = self.get(watch_id)
        if node is None:
            raise OSError(errno.ENOENT, "the watch has ended")
        self._require_inside(node)
        self.change(node, wanted, explicit=True)

    def release(self, watch_id: int) -> None:
        """End an explicit watch. Its node becomes implicit while directories below need it."""
        node = self.get(watch_id)
        if node is None:
            return
        if node.children:
            try:
                self.change(node, 0, explicit=False)
            except OSError as error:
                _log.warning(
                    "cannot reduce the mask of a host watch (%s); removals below it will not be"
                    " reported",
                    error.strerror,
                )
            else:
                return
        self.drop(node)

    def drop(self, node: Node) -> None:
        """Remove the node, and the ancestors that only it needed.

        Its children stay, without a parent.
        """
        while self._by_watch_id.pop(node.watch_id, None) is not None:
            del self._by_identity[node.identity]
            self._suspects.pop(node.watch_id, None)
            self._outside.pop(node.watch_id, None)
            for child in node.children or ():
                child.parent = None
            self._marks.remove_mark(node)
            self._inodes.put(node.inode)
            parent, node.parent = node.parent, None
            if parent is None:
                return
            _detach(parent, node)
            if parent.children or parent.explicit:
                return
            node = parent

    def clear(self) -> None:
        """Remove all nodes."""
        nodes = list(self._by_watch_id.values())
        self._by_watch_id.clear()
        self._by_identity.clear()
        self._suspects.clear()
        self._outside.clear()
        self._returned = False
        self._marks.remove_all_marks(nodes)
        for node in nodes:
            self._inodes.put(node.inode)

    def close(self) -> None:
        """Remove all nodes, and drop the reference to the root."""
        self.clear()
        if self._root_inode is not None:
            self._inodes.put(self._root_inode)
            self._root_inode = None

    def export_state(
        self, host_inodes: ExportedInodes, group_of: Callable[[Node], int]
    ) -> list[NodeState]:
        """Return the nodes; ``group_of`` returns the index of the group that has a mark."""
        return [
            NodeState(
                node.watch_id,
                host_inodes.index(node.inode),
                node.identity,
                node.is_dir,
                node.wanted,
                node.explicit,
                node.outside,
                node.pending_removal,
                node.removed_by_own,
                node.mark_id,
                node.mark_identity,
                node.mark_mask,
                NONE if node.parent is None else node.parent.watch_id,
                node.name is not None,
                node.name or b"",
                self.is_suspect(node),
                group_of(node),
            )
            for node in self._by_watch_id.values()
        ]

    def restore_state(
        self,
        records: list[NodeState],
        host_inodes: list[HostInode],
        next_watch_id: int,
        returned: bool,
    ) -> list[Node]:
        """Add the nodes of a state, whose marks exist, and return them; ``StateError``."""
        self._watch_ids = itertools.count(next_watch_id)
        self._returned = returned
        try:
            nodes = [self._restore(record, host_inodes) for record in records]
            for node, record in zip(nodes, records, strict=True):
                if record.parent != NONE:
                    node.parent = self._by_watch_id[record.parent]
                    if node.parent.children is None:
                        node.parent.children = Children()
                    node.parent.children.add(node)
        except (KeyError, IndexError):
            raise StateError("a watch has no inode, or no parent") from None
        return nodes

    def _restore(self, record: NodeState, host_inodes: list[HostInode]) -> Node:
        if record.watch_id in self._by_watch_id or record.identity in self._by_identity:
            raise StateError("a watch is there twice")
        node = Node(
            record.watch_id,
            host_inodes[record.host_inode],
            record.identity,
            bool(record.is_dir),
            shared(record.wanted),
            bool(record.explicit),
            bool(record.outside),
            bool(record.pending_removal),
            bool(record.removed_by_own),
            record.mark_id,
            record.mark_identity,
            shared(record.mark_mask),
            name=record.name if record.has_name else None,
        )
        node.inode.references += 1
        self._by_watch_id[node.watch_id] = self._by_identity[node.identity] = node
        if record.suspect:
            self._suspects[node.watch_id] = node
        if node.outside:
            self._outside[node.watch_id] = node
        return node

    @property
    def next_watch_id(self) -> int:
        """A number that no watch has had; it is not used here any more."""
        return next(self._watch_ids)

    def open(self, node: Node) -> int:
        """Return a descriptor of a node's inode, good for the next system calls.

        The inode store owns it. Raises ``OSError`` ENOENT when the inode is stale.
        """
        try:
            return self._inodes.open(node.inode)
        except OSError as error:
            if error.errno in GONE:
                raise _stale() from None
            raise

    def path(self, node: Node) -> str:
        """Return a path to a node's inode, good for the next system call.

        Raises ``OSError`` ENOENT when the inode is stale.
        """
        return self._path_of(self.open(node))

    def unlinked(self, node: Node) -> bool:
        """Return whether a node's inode has no name left."""
        try:
            return self._inodes.status(self._inodes.open(node.inode)).st_nlink == 0
        except OSError as error:
            if error.errno in GONE:
                return True
            _log.warning("cannot read the link count of a watched inode: %s", error.strerror)
            return False

    def moved(self, node: Node) -> list[Node]:
        """Update the tree after the move of a directory, which may be a lost event.

        Returns the nodes of explicit watches that the move took out of the share.
        """
        self._suspects.pop(node.watch_id, None)
        if not node.is_dir or node.identity == self._root or self._is_stale(node):
            return []
        former, node.parent = node.parent, None
        if former is not None and former.children is not None:
            former.children.forget_name(node)
        try:
            inside = self._attach(node)
        except OSError as error:
            _log.warning(
                "cannot watch the ancestors of a moved directory (%s); its removal will not be"
                " reported",
                error.strerror,
            )
            inside = True
        # Not earlier: the former parent may be the new one, and its unread events are still needed
        # then.
        if former is not None and node.parent is not former:
            _detach(former, node)
            if not former.children and not former.explicit:
                self.drop(former)
        if inside:
            self._return(node)
            return []
        return self._leave(node)

    def _leave(self, node: Node) -> list[Node]:
        """Record that a directory has left the share; return the explicit nodes that it took."""
        left = self._place(node, outside=True)
        return [each for each in left if each.explicit]

    def _return(self, node: Node) -> None:
        """Record that a directory is in the share."""
        while node.parent is not None and node.parent.outside:
            node = node.parent
        if any(each.explicit for each in self._place(node, outside=False)):
            self._returned = True

    def _place(self, top: Node, outside: bool) -> list[Node]:
        """Record where a node and all below it are; return those that were elsewhere."""
        # A suspect child may have been moved elsewhere. It is verified itself.
        nodes = top.subtree(lambda child: child.watch_id not in self._suspects)
        changed = [node for node in nodes if node.outside != outside]
        for node in changed:
            node.outside = outside
            if outside:
                self._outside[node.watch_id] = node
            else:
                del self._outside[node.watch_id]
            try:
                self._marks.put_mark(node)
            except OSError as error:
                _log.debug("a host mark cannot be changed: %s", error.strerror)
        return changed

    def _require_inside(self, node: Node) -> None:
        """Verify the place of a node that was outside of the share; EACCES if it still is."""
        if node.outside:
            self.moved(node)
            if node.outside:
                raise _not_in_the_share()

    def removed_children(self, parent: Node, name: bytes) -> list[Node]:
        """Return the watched directories that were the entry ``name`` and are unlinked."""
        candidates = parent.children.named(name) if parent.children else []
        return [child for child in candidates if self.unlinked(child)]

    def _attach(self, node: Node) -> bool:
        """Watch the directories from ``node`` up to the root.

        Return False if ``node`` is outside of the share. Concurrent moves are safe: each node is
        watched for moves before its parent is looked up. A move after the look-up has an event that
        is still unread, and its handling attaches again.
        """
        inside = False
        for _ in range(_MAX_DEPTH):
            if not node.is_dir or node.identity == self._root or node.parent is not None:
                return True
            try:
                fd = self._open_parent(self.open(node))
            except PermissionError:
                _log.debug(
                    "a watched directory may not be searched; its removal will not be reported"
                )
                return True
            except FileNotFoundError:
                if inside:
                    raise
                return False
            status = self._inodes.status(fd)
            inode = self._inodes.adopt(fd, status)
            identity = inode.identity(status)
            if not inside:
                # Most directories are watched after the one that they are in.
                inside = identity == self._root or self._is_known_inside(identity)
            try:
                inside = inside or self._inside(node)
            finally:
                if not inside:
                    self._inodes.put(inode)
            if not inside:
                return False
            parent = self._by_identity.get(identity)
            if parent is not None:
                self._takes_over(parent, inode)
            else:
                parent = self._new(inode, identity, is_dir=True)
            self._adopt(parent, node)
            node = parent
        raise OSError(errno.ENAMETOOLONG, "the directory is too deep in the share")

    def _takes_over(self, node: Node, inode: HostInode) -> bool:
        """Have a node use this inode, whose reference is taken, if its own is stale.

        That is on a mount that the host has unmounted, and the inode is reached by another one.
        """
        stale = self._is_stale(node)
        if stale:
            node.inode, inode = inode, node.inode
        self._inodes.put(inode)
        return stale

    def _inside(self, node: Node) -> bool:
        """Return whether the root is an ancestor of ``node``, without adding marks.

        True where the ancestors may not be searched.
        """
        if not node.is_dir or node.identity == self._root:
            return True
        fd, identity = -1, node.identity
        try:
            fd = self._open_parent(self.open(node))
            for _ in range(_MAX_DEPTH):
                former, identity = identity, self._inodes.identity(fd)
                if identity == self._root or self._is_known_inside(identity):
                    return True
                if identity == former:
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
        raise OSError(errno.ENAMETOOLONG, "the directory is too deep in the share")

    def _is_known_inside(self, identity: Identity) -> bool:
        known = self._by_identity.get(identity)
        return (
            known is not None
            and known.parent is not None
            and not known.outside
            and known.watch_id not in self._suspects
        )

    def _is_stale(self, node: Node) -> bool:
        """Return whether a node's inode is deleted for good. Then the host raises DELETE_SELF."""
        try:
            self.open(node)
        except FileNotFoundError:
            return True
        except OSError as error:
            _log.debug("a watched directory cannot be opened: %s", error.strerror)
        return False

    def _open_parent(self, fd: int) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return self._inodes.with_room(lambda: os.open("..", flags, dir_fd=fd))

    def _new(self, inode: HostInode, identity: Identity, is_dir: bool) -> Node:
        node = Node(next(self._watch_ids), inode, identity, is_dir)
        self._by_watch_id[node.watch_id] = self._by_identity[identity] = node
        return node

    def _adopt(self, parent: Node, child: Node) -> None:
        first = not parent.children
        child.parent = parent
        child.name = self._name_of(child)
        if parent.children is None:
            parent.children = Children()
        parent.children.add(child)
        if not first:
            return
        try:
            self._marks.put_mark(parent)
        except OSError:
            child.parent = None
            _detach(parent, child)
            if not parent.explicit:
                self.drop(parent)
            raise

    def _name_of(self, node: Node) -> bytes | None:
        """Return the name of a directory in its parent, or None when it cannot be read.

        Siblings without a name are all checked when one of them may have been removed.
        """
        try:
            fd = self.open(node)
            return entry_name(fd, self._inodes.status(fd), self._path_of(fd))
        except OSError:
            return None


def entry_name(fd: int, status: os.stat_result, link: str) -> bytes | None:
    """Return the name of the directory behind ``fd`` in its parent, the last one if it is unlinked.

    ``status`` is the directory's (``InodeStore.status``), ``link`` the descriptor's link in
    /proc/self/fd. None: the directory has no parent here.
    """
    try:
        # Without Path, which takes longer than the call: each watched directory is named.
        path = os.readlink(os.fsencode(link))  # noqa: PTH115
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _name_in_parent(fd, status.st_ino)
    # The kernel appends this to the path of an unlinked inode. A name may end with it as well.
    if status.st_nlink == 0:
        path = path.removesuffix(_DELETED)
    return path.rpartition(b"/")[2] or None


def _name_in_parent(fd: int, inode: int) -> bytes | None:
    parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(parent) as entries:
            return next((os.fsencode(each.name) for each in entries if each.inode() == inode), None)
    finally:
        os.close(parent)


def _stale() -> OSError:
    return OSError(errno.ENOENT, "the inode has been removed")


def _not_in_the_share() -> OSError:
    return OSError(errno.EACCES, "the directory is not in the share any more")


def _detach(parent: Node, child: Node) -> None:
    if parent.children is not None:
        parent.children.discard(child)
