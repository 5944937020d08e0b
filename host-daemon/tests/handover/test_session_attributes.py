# SPDX-License-Identifier: Apache-2.0
"""Whether each attribute of a session's objects has been thought of.

A new attribute of one of these classes is an error here until it is in the table: is it part of the
state that another process gets (docs/state.md), or why not?
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from enum import Enum

import pytest
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.handlers.attributes import AttributeHandlers
from farwatchd.fuse.handlers.io import IoHandlers
from farwatchd.fuse.handlers.locks import LockHandlers
from farwatchd.fuse.handlers.namespace import NamespaceHandlers
from farwatchd.fuse.killpriv import KillPriv
from farwatchd.fuse.session import Session
from farwatchd.fuse.wait_requests import WaitRequests
from farwatchd.inode_store.mount_points import MountPoints
from farwatchd.inode_store.mounts import Mount, MountTable
from farwatchd.inode_store.remote_mounts import RemoteMounts
from farwatchd.inode_store.store import HostInode, InodeStore
from farwatchd.passthrough.inode_table import Inode, InodeTable
from farwatchd.passthrough.lock_table import LockTable, _Owner
from farwatchd.passthrough.open_file_table import OpenFile, OpenFileTable
from farwatchd.passthrough.share import ShareState
from farwatchd.vhost_user.backend import Backend
from farwatchd.vhost_user.connection import Connection
from farwatchd.vhost_user.server import Server
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.deferred import PendingReplies
from farwatchd.virtio_fs.device import Device
from farwatchd.virtqueue.logged_ring import LoggedRing
from farwatchd.virtqueue.ring import SplitRing
from farwatchd.watch.backend_base import TreeBackend
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_stream import EventStream
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.lost_names import LostNames
from farwatchd.watch.rename_joiner import RenameJoiner
from farwatchd.watch.watch_table import WatchTable
from farwatchd.watch.watch_tree import Node, WatchTree


class Fate(Enum):
    """What becomes of an attribute when another process goes on with the session."""

    #: It is the same there, after a handover and by the journal.
    KEPT = "kept"
    #: It is handed over. After a crash the VMM or the guest gives it again.
    GIVEN_AGAIN = "given again"
    #: It is handed over. After a crash the guest gets WATCHES_LOST instead.
    WATCHES_LOST = "watches lost"
    #: It is handed over, and lost by a crash: docs/state.md says so.
    LOST = "lost"
    #: It is made of options, or connects objects.
    WIRING = "wiring"
    #: It follows from others, or is true for a moment only.
    DERIVED = "derived"
    #: It counts for metrics and the log since the process was started.
    COUNTER = "counter"


_K, _G, _E, _L = Fate.KEPT, Fate.GIVEN_AGAIN, Fate.WATCHES_LOST, Fate.LOST
_W, _D, _C = Fate.WIRING, Fate.DERIVED, Fate.COUNTER

FATES: dict[type, dict[Fate, str]] = {
    Server: {
        _G: "_connection _waiting _listener",
        _W: "_loop _device _on_end _on_change _acceptor _once _reserve _record",
        _D: "_closing",
    },
    Connection: {_G: "_sock _backend", _W: "_loop _on_close _reserve _record", _D: "_decoder"},
    Backend: {
        _G: "_features _protocol_features _memory _vrings _paused _log _log_event_fd",
        _W: "_device",
    },
    Vring: {
        _G: "index size address log_address base enabled broken has_run _used kick_fd _call_fd"
        " _err_fd",
        _W: "_make_ring",
        _D: "ring",
    },
    LoggedRing: {_D: "_given _last_head", _W: "_memory _log _used_size _used_addresses _chain"},
    SplitRing: {
        _K: "_next_available _next_used",
        _W: "_size _mask _chain _available _used _used_shorts _event_idx _used_event _avail_event"
        " _fence",
        _D: "_seen_available _notified",
    },
    Device: {
        _K: "_pending",
        _W: "_loop _handler _config _source _busy_poll state_transfer make_ring",
        _D: "_running _scheduled _next_drain _former",
        _C: "_failures_seen _small_buffer_reported",
    },
    PendingReplies: {_K: "_held _restored", _W: "record before_reply", _D: "in_threads"},
    Session: {
        _K: "_negotiated",
        _W: "_fs _watches _options _locks _pool _waits _attribute_handlers _killpriv _lock_handlers"
        " _handlers _first_handlers on_reset plain",
        _D: "_served",
        _C: "_refusal_level metrics",
    },
    BlockingLocks: {
        _K: "_pending",
        _L: "_early",
        _W: "_call_later",
        _D: "_retry_timer _retry_soon suspended _asked",
    },
    WaitRequests: {_K: "_pending", _W: "_source", _D: "accepting"},
    KillPriv: {_D: "_negotiated"},
    LockHandlers: {_W: "_fs _locks _pool", _D: "_posix _flock"},
    AttributeHandlers: {_W: "_fs _pool _encode", _D: "_setxattr_in_size"},
    IoHandlers: {_W: "_fs _encode _killpriv _pool _unlocked known_entry"},
    NamespaceHandlers: {_W: "_fs _pool _killpriv _encode"},
    ShareState: {
        _K: "inodes open_files locks",
        _W: "options proc credentials run_aside own_umask",
        _D: "ended posix_acls writeback",
    },
    InodeTable: {
        _K: "_next _by_nodeid",
        _W: "_store _touch _most changes",
        _D: "_by_host_inode _expects_open _root",
    },
    Inode: {_K: "nodeid host_inode kind lookups named"},
    OpenFileTable: {
        _K: "_files _next _lost",
        _W: "_budget _close_remote changes",
        _D: "_count_of",
    },
    OpenFile: {_K: "nodeid fd flags append_only remote flock", _D: "reading cached_writes"},
    LockTable: {_K: "_inodes", _W: "_budget _close_remote changes", _D: "_count"},
    _Owner: {_K: "fd borrowed handles locks", _D: "remote"},
    InodeStore: {
        _K: "_mounts _by_key",
        _W: "keep budget _most_open _reader _separator _call_later needed touch _mount_points",
        _D: "remote_mounts _open _by_descriptor _timer_runs",
    },
    HostInode: {_K: "key fd mount remote by_handle", _L: "status", _D: "references"},
    MountTable: {_K: "_by_id", _W: "_mandatory"},
    MountPoints: {_W: "_store _mounts _call_soon", _D: "_used _used_inodes released"},
    Mount: {_K: "ident fd refused by_handle", _D: "inodes is_own kept point"},
    RemoteMounts: {_D: "_known any"},
    WatchTable: {
        _E: "_by_nodeid _by_watch_id",
        _W: "_backend _queue _max_watches _max_reads _call_later _trace",
        _D: "_timer_runs",
        _C: "_overflows",
    },
    EventQueue: {
        _E: "_records dropped",
        _W: "limit _trace _wakeup",
        _C: "queued_total dropped_total overflows_total",
    },
    WatchTree: {
        _E: "_watch_ids by_watch_id _by_watch_id _by_identity _suspects _outside _returned",
        _W: "_inodes _root_inode _root _path_of _marks",
    },
    Node: {
        _E: "watch_id inode identity is_dir wanted explicit outside pending_removal removed_by_own"
        " mark_id mark_identity mark_mask parent name children",
    },
    EventStream: {_E: "_lost_names", _W: "_tree _by_mark _look_up _trace _wire", _D: "_events"},
    LostNames: {_E: "_inodes", _W: "_limit"},
    # It is settled before a handover.
    RenameJoiner: {_W: "_patience _limit", _D: "_ready _queued _unmatched"},
    TreeBackend: {_E: "_group _by_mark", _W: "_inodes _tree _stream _path_of"},
    FanotifyBackend: {
        _E: "_groups _group_of_fsid _group_of_mark _refused _by_identity",
        _W: "_own_pid _report_own _mount_fd _epoll",
        _D: "_history",
    },
    InotifyBackend: {_E: "_inotify", _W: "_clock", _D: "_joiner"},
}


def attributes(owner: type) -> set[str]:
    """Return the attributes that a class gives its objects."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    found = {
        node.target.id
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return found | {
        node.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("owner", FATES, ids=lambda owner: owner.__name__)
def test_fate_of_each_attribute_is_known(owner: type) -> None:
    declared = [name for names in FATES[owner].values() for name in names.split()]
    assert len(declared) == len(set(declared))
    new, gone = attributes(owner) - set(declared), set(declared) - attributes(owner)
    assert not new, f"say in this table what becomes of {sorted(new)} in another process"
    assert not gone, f"{sorted(gone)} are in this table only"
