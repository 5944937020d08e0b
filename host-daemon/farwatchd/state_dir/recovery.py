# SPDX-License-Identifier: Apache-2.0
"""Makes the session of a daemon that was stopped or killed, from what its journal has.

That is done when the VMM has connected and all its rings have started: only the guest's memory
shows which requests have their replies. What the last request has changed counts if it has.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence

from farwatchd.fuse.filesystem import ROOT, Lock
from farwatchd.fuse.session import Session
from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS
from farwatchd.inode_store.store import HostInode, InodeStore, mount_id_of
from farwatchd.iovec import gather
from farwatchd.linux.file_handles import handle_of, mount_of
from farwatchd.linux.libc import failure
from farwatchd.passthrough.open import passed_flags
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir.contents import Contents, renamed
from farwatchd.state_dir.host_locks import HostLocks, OwnersLocks
from farwatchd.state_dir.in_flight import InFlight, InFlightChain
from farwatchd.state_dir.journal_writer import Journal
from farwatchd.state_dir.places import PlaceIdentity, Places
from farwatchd.state_dir.replay import NOT_TWICE, Replay
from farwatchd.vhost_user.vring import Vring
from farwatchd.virtqueue import Chain, Ring, VirtqueueError
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import WATCHES_LOST
from farwatchd.wire.fuse import Opcode, in_header
from farwatchd.wire.journal import (
    HandleInodeState,
    MountPlaceState,
    PathInodeState,
    RenamedState,
    Transaction,
)
from farwatchd.wire.state import (
    NONE,
    OpenFileState,
    PendingReplyState,
    SessionState,
    State,
    StateError,
)

_log = logging.getLogger(__name__)

#: The flags of open(2) that have done what they do.
_DONE = os.O_TRUNC | os.O_CREAT | os.O_EXCL


class Recovery:
    """The session of a former process, before its rings run again: ``FormerSession``."""

    def __init__(
        self,
        transactions: list[Transaction],
        in_flight: InFlight,
        journal: Journal,
        replay: Replay,
        session: Session,
        fs: PassthroughFs,
        store: InodeStore,
        queue: EventQueue | None,
    ) -> None:
        self._transactions = transactions
        self._in_flight = in_flight
        self._journal = journal
        self._replay = replay
        self._session = session
        self._fs = fs
        self._store = store
        self._queue = queue

    def left(self) -> bool:
        """Wait for the front-end to come again; see ``FormerSession``."""
        return True

    def resume(self, vrings: Sequence[Vring]) -> list[PendingReplyState] | None:
        """Become the session, unless a new guest has come; see ``FormerSession``."""
        rings = {each.index: each.ring for each in vrings if each.ring is not None}
        chains: list[InFlightChain] = []
        for ring in rings.values():
            # A new guest has nothing else in flight than the request that begins its session.
            ring.go_on_after(0)
        try:
            if any(map(_is_new, rings.values())):
                _log.info("a new guest has come: it begins a session of its own")
                self._start_afresh()
                return []
            if not self._in_flight.queues() <= rings.keys():
                return None
            chains = self._chains(rings)
            changing = {each.unique for each in chains if _opcode(_chain(rings, each)) in NOT_TWICE}
            self._recover(chains, changing, {_unique(ring.peek()) for ring in rings.values()})
        except (StateError, VirtqueueError, OSError, ValueError) as error:
            _log.error(
                "the session cannot go on: %s; the guest has to mount the share again",
                getattr(error, "strerror", None) or error,
            )
            self._start_afresh()
        for vring in vrings:
            # Of what the former process has completed the driver may not know.
            vring.interrupt()
        return [PendingReplyState(each.queue, each.head, b"") for each in chains]

    def _start_afresh(self) -> None:
        self._journal.start()
        self._session.reset()

    def _chains(self, rings: dict[int, Ring]) -> list[InFlightChain]:
        """Return the chains in flight, and have the rings go on after them; ``StateError``."""
        for queue, ring in rings.items():
            self._in_flight.settle(queue, ring.used)
        chains = self._in_flight.chains()
        for each in chains:
            if each.queue not in rings or _unique(_chain(rings, each)) != each.unique:
                raise StateError("another guest has come")
        for queue, ring in rings.items():
            ring.go_on_after(sum(each.queue == queue for each in chains))
        return chains

    def _recover(
        self, chains: list[InFlightChain], changing: set[int], first: set[int | None]
    ) -> None:
        """Restore the session, and expect what may have been done: ``StateError``.

        ``changing``: the requests among ``chains`` that must not be done twice. ``first``: those
        that come next.
        """
        again = first | {each.unique for each in chains}
        transactions = list(self._transactions)
        last = transactions[-1].unique if transactions else 0
        renames: list[RenamedState] = []
        if last and last in again:
            # Its reply has not reached the guest: it is served again.
            while transactions and transactions[-1].unique == last:
                renames += [
                    each for each in transactions.pop().records if isinstance(each, RenamedState)
                ]
        contents = Contents()
        contents.apply(transactions)
        if contents.session is None:
            raise StateError("its state is not there")
        restored = Restored(contents, self._fs, self._store, self._journal.places, renames)
        restored.restore()
        self._restore_session(contents.session)
        intent = self._in_flight.intent()
        self._replay.expect(intent if intent and intent.unique in again else None, changing)
        self._journal.start()
        _log.info(
            "the guest goes on: %d inodes, %d open files, %d requests in flight",
            len(contents.inodes),
            len(contents.files),
            len(chains),
        )
        restored.report()

    def _restore_session(self, session: SessionState) -> None:
        state = State(session=[session])
        self._session.restore_state(state)
        if self._queue is not None and self._session.has_events:
            self._queue.push(WATCHES_LOST)
            self._queue.announce()


def _chain(rings: dict[int, Ring], each: InFlightChain) -> Chain | None:
    try:
        return rings[each.queue].chain(each.head)
    except VirtqueueError:
        return None


def _header(chain: Chain | None) -> tuple[int, ...] | None:
    if chain is None:
        return None
    start = gather(chain.readable, 0, in_header.size)
    return in_header.values(start) if len(start) == in_header.size else None


def _unique(chain: Chain | None) -> int | None:
    head = _header(chain)
    return None if head is None else head[2]


def _opcode(chain: Chain | None) -> int | None:
    head = _header(chain)
    return None if head is None else head[1]


def _is_new(ring: Ring) -> bool:
    """Return whether the next request of a ring begins a session."""
    try:
        head = _header(ring.peek())
    except VirtqueueError:
        # The chain of another guest's, which was completed.
        return False
    return head is not None and head[1] == Opcode.INIT


class Restored:
    """The tables of the share, as the contents of a journal say."""

    def __init__(
        self,
        contents: Contents,
        fs: PassthroughFs,
        store: InodeStore,
        places: Places,
        renames: Sequence[RenamedState] = (),
    ) -> None:
        """Restore ``contents``, after which ``renames`` may have been done."""
        self._contents = contents
        self._fs = fs
        self._share = fs.share
        self._store = store
        self._places = places
        self._renames = renames
        self.lost_files = 0
        self.lost_inodes = 0
        self._locks = HostLocks(fs)
        #: The flags of open(2) that an open file can have.
        self._flags = (passed_flags(fs.share.options) | os.O_DIRECTORY) & ~_DONE
        #: Mounts by the id that they had.
        self._mounts: dict[int, int] = {}
        self._held: list[HostInode] = []

    def restore(self) -> None:
        """Find inodes, open files and take locks; ``StateError``."""
        contents = self._contents
        self._find_mounts()
        for inode in contents.inodes.values():
            self._find(inode)
        self._find_rest()
        for held in self._held:
            self._store.put(held)
        self._share.inodes.skip_numbers(contents.next_nodeid)
        for fh in sorted(contents.files):
            self._open(contents.files[fh])
        self._share.open_files.skip_numbers(contents.next_fh)
        for fh, kind in contents.flocks.items():
            self._locks.flock(fh, kind)
        for (nodeid, owner), held_locks in contents.owners.items():
            if held_locks.locks:
                locks = [
                    Lock(each.kind, each.start, each.end, each.pid) for each in held_locks.locks
                ]
                self._locks.posix(OwnersLocks(nodeid, owner, held_locks.handles, locks))

    @property
    def lost_locks(self) -> int:
        """Lock owners and open files whose locks another process has."""
        return self._locks.lost

    def report(self) -> None:
        """Log what is lost."""
        for count, what in (
            (self.lost_inodes, "inodes are stale: the host has deleted or moved them"),
            (self.lost_files, "open files are lost, each use of them is an error"),
            (self.lost_locks, "lock owners have lost their locks, and the files with them"),
        ):
            if count:
                _log.warning("%d %s", count, what)

    # Inodes

    def _find_mounts(self) -> None:
        for mount in self._contents.mounts.values():
            try:
                fd = self._places.open(mount.path)
                try:
                    if not self._is_mount(mount, fd):
                        continue
                    self._mounts[mount.ident] = mount_id_of(self._store.place(fd))
                    self._held.append(self._store.get(fd, os.fstat(fd)))
                finally:
                    os.close(fd)
            except OSError as error:
                _log.debug("a mount at %s is not found: %s", os.fsdecode(mount.path), error)

    def _is_mount(self, record: MountPlaceState, fd: int) -> bool:
        """Return whether the file system of a directory is that of a mount."""
        return os.fstat(fd).st_dev == record.device

    def _is_same(self, record: PathInodeState, found: PlaceIdentity, _: os.stat_result) -> bool:
        """Return whether it is that inode, and no later one with its number."""
        if record.device and found.device != record.device:
            return False
        if record.handle:
            return found.handle == record.handle
        return bool(record.birth) and (found.ino, found.birth) == (record.ino, record.birth)

    def _find(self, record: HandleInodeState | PathInodeState) -> None:
        found = (
            self._by_handle(record)
            if isinstance(record, HandleInodeState)
            else self._by_path(record)
        )
        if record.nodeid == ROOT:
            root = self._share.inodes.get(ROOT).host_inode
            if found is not root:
                raise StateError("it is of another shared directory")
        if found is None:
            self.lost_inodes += 1
            found = self._store.stale()
        self._add(record, found)

    def _find_rest(self) -> None:
        """Add the inodes that could not be found by their own records alone."""

    def _add(self, record: HandleInodeState | PathInodeState, found: HostInode) -> None:
        self._share.inodes.recover(
            record.nodeid, found, record.kind, record.lookups, bool(record.named)
        )

    def _by_handle(self, record: HandleInodeState) -> HostInode | None:
        mount = self._mounts.get(mount_of(record.key))
        return None if mount is None else self._store.by_handle(mount, handle_of(record.key))

    def _by_path(self, record: PathInodeState) -> HostInode | None:
        if not record.path and record.nodeid != ROOT:
            return None
        found = self._at(record, record.path)
        for each in self._renames:
            if found is not None:
                break
            found = self._at(record, renamed(record.path, each))
        return found

    def _at(self, record: PathInodeState, path: bytes) -> HostInode | None:
        try:
            fd = self._places.open(path)
        except OSError:
            return None
        try:
            identity = self._places.identity(fd)
            status = os.fstat(fd)
            if not self._is_same(record, identity, status):
                return None
            return self._store.get(fd, status)
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                raise
            return None
        finally:
            os.close(fd)

    # Open files

    def _open(self, record: OpenFileState) -> None:
        fd: int | None = None
        if record.flags == NONE:
            # It was lost before.
            self._share.open_files.recover(record.fh, record.nodeid, None, record)
            return
        record = record._replace(flags=record.flags & self._flags)
        try:
            fd = self._reopened(record)
        except OSError as error:
            _log.debug("an open file of node %d is lost: %s", record.nodeid, error.strerror)
            self.lost_files += 1
        self._share.open_files.recover(record.fh, record.nodeid, fd, record)

    def _reopened(self, record: OpenFileState) -> int:
        """Open a file again; ``OSError``, also for one that this daemon would not open."""
        inode = self._share.inodes.get(record.nodeid)
        if not stat.S_ISREG(inode.kind) and not inode.is_dir:
            raise failure(errno.ENXIO)
        if record.flags & os.O_ACCMODE != os.O_RDONLY:
            self._share.refuse_if_readonly()
        flags = record.flags if record.append_only else record.flags & ~os.O_APPEND
        return self._share.proc.reopen(inode.fd, flags)
