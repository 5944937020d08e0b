# SPDX-License-Identifier: Apache-2.0
"""Writes what each request changes of the session's state, before its reply.

The journal is compacted when it has become much longer than the state: then all of the state is
written again, into the other file, while requests are served. What they change meanwhile is written
into both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from farwatchd.fuse.filesystem import ROOT
from farwatchd.fuse.session import Session
from farwatchd.linux.file_handles import handle_of, mount_of
from farwatchd.passthrough.changes import StateChanges
from farwatchd.passthrough.inode_table import Inode
from farwatchd.passthrough.share import ShareState
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.in_flight import InFlight
from farwatchd.state_dir.journal_files import JournalFiles
from farwatchd.state_dir.places import PlaceIdentity, Places
from farwatchd.state_dir.table_records import (
    file_record,
    lost_file_record,
    mount_records,
    numbers_record,
    owner_records,
)
from farwatchd.wire.journal import (
    HandleInodeState,
    LookupsState,
    OptionsState,
    PathInodeState,
    ReleasedState,
    RenamedState,
    decode,
    encode,
    encode_created,
    encode_file,
    encode_handle_inode,
    encode_lookups,
    encode_released,
)
from farwatchd.wire.state import (
    FlockState,
    StateError,
)

_log = logging.getLogger(__name__)

#: A journal is compacted when it has this many bytes, and this times the bytes of the state.
_COMPACT_FROM = 4 << 20
_COMPACT_TIMES = 4
#: Records of a transaction when all of the state is written.
_BATCH = 256
#: Changes that are written together at the end of that.
_LAST = 1000
#: How often what has changed meanwhile is written, until the rest is written together.
_ROUNDS = 10


class Journal:
    """Writes the changes of the share's tables; for the event loop's thread.

    Owns the files. ``call_soon`` is the event loop's.
    """

    def __init__(
        self,
        files: JournalFiles,
        in_flight: InFlight,
        share: ShareState,
        session: Session,
        options: bytes,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        """``options``: those that a daemon must have to use the journal."""
        self.changes = StateChanges()
        self.places = Places(lambda: share.inodes.get(ROOT).fd, share.proc)
        self._files = files
        self._in_flight = in_flight
        self._share = share
        self._session = session
        self._options = options
        self._call_soon = call_soon
        #: The native part writes what the plain requests change, while ``_files`` are lent to it.
        self._plain = session.plain
        if self._plain is not None:
            self._plain.keep_journal(self.changes, in_flight.view)
            files.lend_to(self._plain.use_journal)
        #: The mounts that the journal has, and the other file.
        self._mounts: set[int] = set()
        self._next_mounts: set[int] = set()
        self._compact_at = _COMPACT_FROM
        self._works = False
        #: What has changed since the other file was begun; None when it is not used.
        self._later: StateChanges | None = None
        #: What is left to write into it.
        self._batches: Iterator[list[Any]] = iter(())
        self._rounds = 0

    def start(self) -> None:
        """Write all of the state, and each change from now on."""
        self._share.record_changes(self.changes)
        self._rewrite()

    def go_on(self) -> None:
        """Write each change from now on to the journal of a daemon that was replaced."""
        self._share.record_changes(self.changes)
        try:
            contents = Contents()
            contents.apply(decode(memoryview(self._files.load())))
            self._files.attach()
        except (OSError, StateError) as error:
            self._fail(error)
            return
        self._works = True
        self._files.lend(self._compact_at)

    def reset(self) -> None:
        """Forget the session: it has ended."""
        self.changes.clear()
        self._in_flight.clear()
        self._mounts.clear()
        self._rewrite()

    def commit(self, unique: int) -> None:
        """Write what the request ``unique`` has changed, if it has."""
        changes = self.changes
        if not changes or self._commit_by_native_part(unique):
            return
        try:
            if self._works:
                self._append(encode(unique, list(self._records(changes, self._mounts))))
                if self._later is not None:
                    self._add_later()
        finally:
            changes.clear()

    def _commit_by_native_part(self, unique: int) -> bool:
        """Write what the request ``unique`` has changed in one step, where that is possible."""
        return self._plain is not None and self._plain.commit(unique, self._mounts)

    def commit_file(self, unique: int) -> None:
        """Do as ``commit`` after a file was opened or closed, which mostly changes nothing else."""
        if self._commit_by_native_part(unique):
            return
        changes = self.changes
        files = changes.files
        if (
            len(files) != 1
            or not self._works
            or self._later is not None
            or changes.has_more_than_files
        ):
            self.commit(unique)
            return
        fh = files.pop()
        file = self._share.open_files.find(fh)
        if file is None:
            self._append(encode_released(unique, fh))
        else:
            self._append(encode_file(unique, file_record(fh, file)))

    def commit_session(self, unique: int) -> None:
        """Write what the request ``unique`` has negotiated."""
        self.commit(unique)
        negotiated = self._session.negotiated
        if self._works and negotiated is not None:
            self._append(encode(unique, [negotiated]))
            if self._later is not None:
                self._rewrite()

    def commit_lookup(self, unique: int) -> None:
        """Do as ``commit`` after a lookup or a FORGET, which changes nothing else."""
        if self._commit_by_native_part(unique):
            return
        changes = self.changes
        new, inodes = changes.new, changes.inodes
        if self._works and self._later is None:
            if len(new) == 1 and not inodes:
                inode = self._new_by_handle()
                if inode is not None:
                    self._append(encode_handle_inode(unique, *inode))
                    new.clear()
            elif len(inodes) == 1 and not new:
                nodeid = inodes.pop()
                known = self._share.inodes.known(nodeid)
                lookups, named = (0, 0) if known is None else (known.lookups, known.named)
                self._append(encode_lookups(unique, nodeid, lookups, named))
        if changes:
            self.commit(unique)

    def commit_created(self, unique: int) -> None:
        """Do as ``commit`` after a file was made, which mostly adds an inode and an open file."""
        if self._commit_by_native_part(unique):
            return
        changes = self.changes
        if len(changes.new) == 1 and len(changes) == 2 and self._works and self._later is None:
            inode = self._new_by_handle()
            fh = next(iter(changes.files), None)
            file = None if fh is None else self._share.open_files.find(fh)
            if inode is not None and fh is not None and file is not None:
                self._append(encode_created(unique, *inode, file_record(fh, file)))
                changes.clear()
                return
        self.commit(unique)

    def _new_by_handle(self) -> tuple[int, int, int, int, bytes] | None:
        """Return the record of the new inode, if its mount is in the journal."""
        inode = self._share.inodes.known(next(iter(self.changes.new)))
        if inode is None or not inode.host_inode.by_handle:
            return None
        key = inode.host_inode.key
        if not isinstance(key, bytes) or mount_of(key) not in self._mounts:
            return None
        return inode.nodeid, inode.kind, inode.lookups, inode.named, key

    def _append(self, data: bytes) -> None:
        try:
            self._files.append(data)
        except OSError as error:
            self._fail(error)
            return
        if self._files.size > self._compact_at:
            self._compact_at = 1 << 62
            self._call_soon(self._compact)

    # All of the state

    def _rewrite(self) -> None:
        """Write all of the state now."""
        self._later = None
        try:
            self._files.rewrite(self._encoded(self._all_batches()))
        except OSError as error:
            self._fail(error)
            return
        self._works = True
        self._rewritten()

    def _compact(self) -> None:
        """Begin to write all of the state."""
        if not self._works or self._later is not None:
            return
        # What changes meanwhile has to be noted.
        self._files.lend(0)
        self._batches, self._later, self._rounds = self._all_batches(), StateChanges(), 0
        try:
            self._files.begin_next()
        except OSError as error:
            self._fail(error)
            return
        self._call_soon(self._write_batch)

    def _write_batch(self) -> None:
        """Write the next part of the state, or what has changed since its parts were written."""
        later = self._later
        if later is None:
            return
        try:
            batch = next(self._batches, None)
            if batch is not None:
                self._files.append_to_next(encode(0, batch))
            elif len(later) > _LAST and self._rounds < _ROUNDS:
                self._rounds += 1
                self._batches, self._later = self._changed_batches(later), StateChanges()
            else:
                for last in self._changed_batches(later):
                    self._files.append_to_next(encode(0, last))
                self._files.use_next()
                self._later = None
                self._rewritten()
                return
        except OSError as error:
            self._fail(error)
            return
        self._call_soon(self._write_batch)

    def _add_later(self) -> None:
        """Have the changes of a request be written into the other file, too."""
        assert self._later is not None
        if self.changes.renames:
            # It has paths from before and from after.
            self._rewrite()
            return
        self._later.add(self.changes)

    def _rewritten(self) -> None:
        self._mounts = self._next_mounts
        self._compact_at = max(_COMPACT_FROM, _COMPACT_TIMES * self._files.size)
        self._files.lend(self._compact_at)

    def _fail(self, error: Exception) -> None:
        """Keep no state: half of one would be worse."""
        _log.error(
            "the session's state cannot be kept any more: %s; if this daemon is killed its guest"
            " has to mount the share again",
            getattr(error, "strerror", None) or error,
        )
        self._works = False
        self._later = None
        self._files.invalidate()

    # Transactions

    def _records(self, changes: StateChanges, mounts: set[int]) -> Iterator[Any]:
        """Yield what has changed, as it is when each record is taken.

        ``mounts``: those that were written before.
        """
        for each in changes.renames:
            yield RenamedState(*each)
        for nodeid in changes.new:
            inode = self._share.inodes.known(nodeid)
            if inode is None:
                # It may have been written before.
                yield LookupsState(nodeid, 0, 0)
            else:
                yield from self._inode_records(inode, mounts)
        for nodeid in changes.inodes - changes.new:
            inode = self._share.inodes.known(nodeid)
            if inode is None:
                yield LookupsState(nodeid, 0, 0)
            else:
                yield LookupsState(nodeid, inode.lookups, inode.named)
        lost = self._share.open_files.lost()
        for fh in changes.files:
            file = self._share.open_files.find(fh)
            if file is not None:
                yield file_record(fh, file)
            elif fh in lost:
                yield lost_file_record(fh, lost[fh])
            else:
                yield ReleasedState(fh)
        for fh, kind in changes.flocks.items():
            if self._share.open_files.find(fh) is not None:
                yield FlockState(fh, kind)
        for nodeid, owner in changes.owners:
            yield from owner_records(self._share.locks, nodeid, owner)

    def _all_batches(self) -> Iterator[list[Any]]:
        """Yield records that make all of the state."""
        self._next_mounts = set()
        first: list[Any] = [OptionsState(self._options), numbers_record(self._share)]
        negotiated = self._session.negotiated
        if negotiated is not None:
            first.append(negotiated)
        yield first
        share, everything = self._share, StateChanges()
        everything.new.update(inode.nodeid for inode in share.inodes.all())
        everything.files.update(fh for fh, _ in share.open_files.all())
        everything.files.update(share.open_files.lost())
        everything.flocks.update(
            (fh, file.flock) for fh, file in share.open_files.all() if file.flock is not None
        )
        everything.owners.update(share.locks.owners())
        yield from self._changed_batches(everything)

    def _changed_batches(self, changes: StateChanges) -> Iterator[list[Any]]:
        return iter(partial(_batch, self._records(changes, self._next_mounts)), [])

    @staticmethod
    def _encoded(batches: Iterator[list[Any]]) -> Iterator[bytes]:
        return (encode(0, batch) for batch in batches)

    def _inode_records(self, inode: Inode, mounts: set[int]) -> list[Any]:
        host_inode = inode.host_inode
        counts = (inode.nodeid, inode.kind, inode.lookups, inode.named)
        if host_inode.by_handle:
            assert isinstance(host_inode.key, bytes)
            return [
                *mount_records(self._share, self.places, host_inode.mount_id, mounts),
                HandleInodeState(*counts, host_inode.key),
            ]
        if host_inode.fd < 0:
            return [PathInodeState(*counts, 0, 0, 0, b"", b"")]
        path = self.places.path(host_inode.fd)
        if host_inode.remote:
            # Without asking a server.
            key = host_inode.key
            device, ino = (0, 0) if isinstance(key, bytes) else key[:2]
            handle = handle_of(key) if isinstance(key, bytes) else b""
            identity = PlaceIdentity(device, ino, 0, handle)
        else:
            identity = self.places.identity(host_inode.fd)
        return [PathInodeState(*counts, *identity, b"" if path is None else path)]


def _batch(records: Iterator[Any]) -> list[Any]:
    return list(islice(records, _BATCH))
