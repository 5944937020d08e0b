# SPDX-License-Identifier: Apache-2.0
"""Makes records of the share's tables, for the journal and for a migration."""

from __future__ import annotations

import os
from typing import Any

from farwatchd.passthrough.lock_table import LockTable
from farwatchd.passthrough.open_file_table import OpenFile
from farwatchd.passthrough.share import ShareState
from farwatchd.state_dir.places import Places
from farwatchd.wire.journal import MountPlaceState, UnlockedState
from farwatchd.wire.state import NONE, LockHandleState, LockState, NumbersState, OpenFileState


def numbers_record(share: ShareState) -> NumbersState:
    """Return the next numbers."""
    return NumbersState(share.inodes.next_nodeid, share.open_files.next_fh, 0)


def file_record(fh: int, file: OpenFile) -> OpenFileState:
    """Return the record of an open file, which another process opens again."""
    return OpenFileState(fh, file.nodeid, NONE, file.flags, file.append_only, file.remote)


def lost_file_record(fh: int, nodeid: int) -> OpenFileState:
    """Return the record of an open file that was lost."""
    return OpenFileState(fh, nodeid, NONE, NONE, False, False)


def mount_records(
    share: ShareState, places: Places, ident: int, mounts: set[int]
) -> list[MountPlaceState]:
    """Return the record of a mount, and add it to ``mounts``; none if it is there."""
    if ident in mounts:
        return []
    fd = share.inodes.mount_descriptor(ident)
    if fd is None:
        return []
    mounts.add(ident)
    return [MountPlaceState(ident, os.fstat(fd).st_dev, places.path(fd) or b"")]


def owner_records(locks: LockTable, nodeid: int, owner: int) -> list[Any]:
    """Return the records of an owner's locks on an inode."""
    held, handles = locks.of_owner(nodeid, owner)
    return [
        UnlockedState(nodeid, owner),
        *(LockState(nodeid, owner, *lock) for lock in held),
        *(LockHandleState(nodeid, owner, fh) for fh in sorted(handles)),
    ]
