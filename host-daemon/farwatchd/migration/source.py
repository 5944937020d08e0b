# SPDX-License-Identifier: Apache-2.0
"""Makes the state of a stopped session, for a daemon that the front-end migrates it to.

The guest's programs are not running meanwhile.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from farwatchd.fuse.filesystem import ROOT
from farwatchd.migration.options import MigrationMode, MigrationOptions
from farwatchd.migration.path_search import find_paths
from farwatchd.passthrough.inode_table import Inode
from farwatchd.passthrough.share import ShareState
from farwatchd.state_dir.places import DELETED, PlaceIdentity, Places
from farwatchd.state_dir.table_records import (
    file_record,
    lost_file_record,
    mount_records,
    numbers_record,
    owner_records,
)
from farwatchd.wire.journal import (
    HandleInodeState,
    MountIdentityState,
    PathInodeState,
)
from farwatchd.wire.state import FlockState

_log = logging.getLogger(__name__)

#: Of an inode that cannot be opened here any more.
_STALE = PlaceIdentity(0, 0, 0, b"")


class Collector:
    """Collects the records of the share's tables."""

    def __init__(self, share: ShareState, places: Places, options: MigrationOptions) -> None:
        self._share = share
        self._places = places
        self._options = options
        self._mounts: set[int] = set()
        self._by_handle = options.migration_mode is MigrationMode.FILE_HANDLES

    def records(self) -> list[Any]:
        """Return all records."""
        share = self._share
        records: list[Any] = [numbers_record(share)]
        unknown: dict[int, PlaceIdentity] = {}
        for inode in list(share.inodes.all()):
            records += self._inode_records(inode, unknown)
        records += self._searched(unknown)
        records += [file_record(fh, file) for fh, file in share.open_files.all()]
        records += [lost_file_record(*each) for each in share.open_files.lost().items()]
        records += [
            FlockState(fh, file.flock)
            for fh, file in share.open_files.all()
            if file.flock is not None
        ]
        for nodeid, owner in share.locks.owners():
            records += owner_records(share.locks, nodeid, owner)
        return records

    def _inode_records(self, inode: Inode, unknown: dict[int, PlaceIdentity]) -> list[Any]:
        """Return the records of an inode, or add it to those whose paths are ``unknown``."""
        key = inode.host_inode.key
        by_handle = inode.host_inode.by_handle and isinstance(key, bytes)
        if self._by_handle and by_handle:
            return self._handle_records(inode)
        try:
            fd = self._share.inodes.get(inode.nodeid).fd
            identity = self._places.identity(fd)
            links = os.fstat(fd).st_nlink
        except OSError:
            return [_path_record(inode, _STALE, b"")]
        if not links:
            if not self._share.open_files.any_of(inode.nodeid):
                # The guest is about to forget it.
                return [_path_record(inode, _STALE, b"")]
            if by_handle:
                return self._handle_records(inode)
            return [_path_record(inode, self._sent(identity), b"")]
        path = self._places.path(fd)
        if path == b"" and inode.nodeid != ROOT:
            path = None
        # Of several names this one may be removed, as the kernel says in this way.
        confirm = self._options.migration_confirm_paths or (path or b"").endswith(DELETED)
        if path is None or (confirm and not self._places.leads_to(path, identity)):
            unknown[inode.nodeid] = identity
            return []
        return [_path_record(inode, self._sent(identity), path)]

    def _searched(self, unknown: dict[int, PlaceIdentity]) -> list[Any]:
        """Return the records of inodes whose paths have to be searched for."""
        if not unknown:
            return []
        found = find_paths(self._places, self._share.inodes.get(ROOT).fd, unknown)
        records: list[Any] = []
        for nodeid, identity in unknown.items():
            inode = self._share.inodes.known(nodeid)
            assert inode is not None
            if nodeid not in found and inode.host_inode.by_handle:
                records += self._handle_records(inode)
            else:
                records.append(_path_record(inode, self._sent(identity), found.get(nodeid, b"")))
        _log.info("%d of %d inodes were found by searching", len(found), len(unknown))
        return records

    def _handle_records(self, inode: Inode) -> list[Any]:
        key = inode.host_inode.key
        assert isinstance(key, bytes)
        ident = inode.host_inode.mount_id
        records: list[Any] = []
        for mount in mount_records(self._share, self._places, ident, self._mounts):
            fd = self._share.inodes.mount_descriptor(ident)
            assert fd is not None
            records.append(mount)
            records.append(mount_identity(self._places, ident, fd))
        return [
            *records,
            HandleInodeState(inode.nodeid, inode.kind, inode.lookups, inode.named, key),
        ]

    def _sent(self, identity: PlaceIdentity) -> PlaceIdentity:
        """Return what the destination is to compare."""
        if self._options.migration_verify_handles:
            return identity
        return identity._replace(handle=b"", birth=0)


def mount_identity(places: Places, ident: int, fd: int) -> MountIdentityState:
    """Return what another file system does not have: its id, and the handle of a directory."""
    file_system = os.statvfs(fd).f_fsid
    return MountIdentityState(ident, file_system, places.identity(fd).handle)


def _path_record(inode: Inode, identity: PlaceIdentity, path: bytes) -> PathInodeState:
    return PathInodeState(inode.nodeid, inode.kind, inode.lookups, inode.named, *identity, path)
