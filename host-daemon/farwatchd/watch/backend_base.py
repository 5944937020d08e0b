# SPDX-License-Identifier: Apache-2.0
"""The base of both watch back ends: a watch tree, fed by the events of one notification group."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from farwatchd.inode_store.store import ExportedInodes, HostInode, InodeStore
from farwatchd.linux.group import NotificationGroup
from farwatchd.watch.event_stream import EventStream, MarkEvent
from farwatchd.watch.event_trace import EventTrace
from farwatchd.watch.watch_backend import HostEvent
from farwatchd.watch.watch_tree import Node, WatchTree
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import BackendState, Descriptors, GroupState, NodeState, State


def proc_path(fd: int) -> str:
    """Return a path to the inode of a descriptor, also if it is a symlink."""
    return f"/proc/self/fd/{fd}"


class TreeBackend(abc.ABC):
    """Implements ``WatchBackend`` on a ``WatchTree``, whose ``HostMarks`` it is.

    ``group`` is owned from now on. ``root_fd`` is the share's root directory and stays the
    caller's. ``inodes`` keeps the watched inodes, ``path_of`` returns a path to a descriptor's
    inode, ``look_up`` is for ``EventStream``.
    """

    #: Whether a node's mark has the node's watch id, so that marks need no table of their own.
    mark_ids_are_watch_ids = False

    def __init__(
        self,
        group: NotificationGroup,
        root_fd: int,
        inodes: InodeStore | None = None,
        path_of: Callable[[int], str] = proc_path,
        look_up: Callable[[int, bytes], bytes | None] | None = None,
    ) -> None:
        self._group = group
        self._inodes = inodes if inodes is not None else InodeStore()
        self._path_of = path_of
        self._tree = WatchTree(root_fd, self._inodes, path_of, self)
        self._by_mark = self._tree.by_watch_id if self.mark_ids_are_watch_ids else {}
        self._stream = EventStream(self._tree, self._by_mark, look_up)

    @property
    def count(self) -> int:
        """The number of host watches in use, implicit ones included."""
        return len(self._tree)

    def trace_to(self, trace: EventTrace) -> None:
        """Log each event of the host from now on; see ``WatchBackend``."""
        self._stream.trace_to(trace)

    def path_of(self, watch_id: int) -> str:
        """Return the path of a watch for the log; see ``WatchBackend``."""
        node = self._tree.get(watch_id)
        return "a deleted inode" if node is None else self._stream.path_of(node)

    def fileno(self) -> int:
        """Return the group's descriptor."""
        return self._group.fileno()

    def watch(self, fd: int, mask: Event, is_dir: bool) -> int:
        """Watch the inode behind ``fd``; see ``WatchBackend``."""
        return self._tree.add(fd, is_dir, int(mask)).watch_id

    def modify(self, watch_id: int, mask: Event) -> None:
        """Replace the mask of a watch; see ``WatchBackend``."""
        self._tree.modify(watch_id, int(mask))

    def unwatch(self, watch_id: int) -> None:
        """End a watch; see ``WatchBackend``."""
        self._tree.release(watch_id)

    def reset(self) -> None:
        """End all watches; see ``WatchBackend``."""
        self._tree.clear()
        self._stream.reset()

    def close(self) -> None:
        """End all watches and close the group."""
        self._tree.close()
        self._group.close()

    def delay(self) -> float | None:
        """Return 0 while watches are to be verified, else None."""
        return 0.0 if self._tree.is_unsettled else None

    def read(self) -> list[HostEvent]:
        """Return the next events; see ``WatchBackend``."""
        batch = self._gather()
        if not batch and self._tree.is_unsettled:
            return self._stream.verify_some()
        return self._stream.interpret(batch)

    def unread(self) -> bool:
        """Return whether events are unread; see ``WatchBackend``."""
        return any(group.pending() for group in self._all_groups())

    def settle(self) -> list[HostEvent]:
        """Return what waits for later events; see ``WatchBackend``."""
        return self._stream.interpret(self._flush())

    def export_state(self, state: State, fds: Descriptors, host_inodes: ExportedInodes) -> int:
        """Add the watches to a state; see ``WatchBackend``."""
        state.backend.append(
            BackendState(self.name.encode(), self.others_only, self._tree.returned)
        )
        state.groups += [GroupState(fds.add(group.fileno())) for group in self._all_groups()]
        state.nodes += self._tree.export_state(host_inodes, self._group_index)
        state.lost_names += self._stream.export_state()
        return self._tree.next_watch_id

    def restore_state(self, state: State, host_inodes: list[HostInode]) -> None:
        """Add the watches of a state; see ``WatchBackend``."""
        (backend,), (numbers,) = state.backend, state.numbers
        nodes = self._tree.restore_state(
            state.nodes, host_inodes, numbers.watch_id, bool(backend.returned)
        )
        self._stream.restore_state(state.lost_names)
        for node, record in zip(nodes, state.nodes, strict=True):
            if node.mark_id:
                self._by_mark[node.mark_id] = node
                self._restore_mark(node, record)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name; see ``WatchBackend``."""

    @property
    @abc.abstractmethod
    def others_only(self) -> bool:
        """Whether own events can be left out; see ``WatchBackend``."""

    @abc.abstractmethod
    def _flush(self) -> list[MarkEvent]:
        """Return the events that wait for later ones, as if none came."""

    def _all_groups(self) -> Sequence[NotificationGroup]:
        return (self._group,)

    def _group_index(self, node: Node) -> int:
        """Return the index of the group that has a node's mark."""
        return 0

    @abc.abstractmethod
    def _restore_mark(self, node: Node, record: NodeState) -> None:
        """Record the mark of a restored node, besides its number; ``StateError``."""

    @abc.abstractmethod
    def _gather(self) -> list[MarkEvent]:
        """Read the next events of the group, a bounded number of them."""

    @abc.abstractmethod
    def put_mark(self, node: Node) -> None:
        """Add or update the host mark of a node; see ``HostMarks``."""

    @abc.abstractmethod
    def remove_mark(self, node: Node) -> None:
        """Remove the host mark of a node; see ``HostMarks``."""

    @abc.abstractmethod
    def remove_all_marks(self, nodes: list[Node]) -> None:
        """Remove the host marks of all nodes; see ``HostMarks``."""
