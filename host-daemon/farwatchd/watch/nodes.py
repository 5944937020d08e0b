# SPDX-License-Identifier: Apache-2.0
"""The nodes of the watch tree: one for each host watch, and what lies below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from farwatchd.inode_store.store import HostObject, Identity


class Children:
    """The watched directories right below one, also by name.

    A name is as last looked up, which may be later than the event that led to the look-up: two
    children may claim one for a while. None: the system did not tell.
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
        """One more, by the name that it has."""
        self._nodes.add(child)
        if child.name is None:
            self._unnamed.add(child)
        else:
            self._named[child.name] = (*self._named.get(child.name, ()), child)

    def discard(self, child: Node) -> None:
        """One less."""
        self._nodes.discard(child)
        self.forget_name(child)

    def forget_name(self, child: Node) -> None:
        """The child has its name no more."""
        self._unnamed.discard(child)
        if child.name is None:
            return
        others = tuple(node for node in self._named.get(child.name, ()) if node is not child)
        if others:
            self._named[child.name] = others
        else:
            self._named.pop(child.name, None)

    def claiming(self, name: bytes) -> list[Node]:
        """Those that may be called so."""
        return [*self._named.get(name, ()), *self._unnamed]


@dataclass(slots=True, eq=False)
class Node:
    """One host watch of the object ``held``; ``place`` is the back end's number of it, 0 while
    there is none.

    ``dying``: its removal is known, but not told yet; ``silent`` says then whether the guest did
    it. ``handle`` is what events call the object, where they do, and ``mask`` what the host
    watches, where that matters. ``children`` is None where there never were any, as of all that is
    no directory.
    """

    key: int
    held: HostObject
    ident: Identity
    is_dir: bool
    wanted: int = 0
    public: bool = False
    dying: bool = False
    silent: bool = False
    place: int = 0
    handle: bytes = b""
    mask: int = 0
    parent: Node | None = None
    name: bytes | None = None
    children: Children | None = None

    def subtree(self) -> list[Node]:
        """The node and all below it, from above."""
        nodes = [self]
        for each in nodes:
            nodes.extend(each.children or ())
        return nodes
