# SPDX-License-Identifier: Apache-2.0
"""Finds out whether inodes can be referenced by file handle, on the share's root."""

from __future__ import annotations

import errno
import logging
import os

from farwatchd.inode_store.descriptors import for_guest
from farwatchd.inode_store.mounts import open_mount
from farwatchd.inode_store.options import MOST_OPEN, InodeFileHandles
from farwatchd.inode_store.store import InodeStore, most_open
from farwatchd.linux.file_handles import HandleReader

_log = logging.getLogger(__name__)

_REASONS = {
    errno.EPERM: "opening by handle needs CAP_DAC_READ_SEARCH",
    errno.EOPNOTSUPP: "the share's file system has no file handles that last",
    errno.ENOSYS: "the kernel has no file handles",
}


class HandlesUnavailableError(Exception):
    """File handles are mandatory and do not work. The text is one line for the user."""


def open_store(
    keep: InodeFileHandles,
    root_fd: int,
    open_files: int,
    capable: bool = True,
    inode_descriptors: int = MOST_OPEN,
) -> InodeStore:
    """Make the inode store that ``keep`` asks for; ``root_fd`` is the share's root directory.

    ``open_files`` is how many files the process may have open; ``capable`` is False if it will lose
    the capability that file handles need. At most ``inode_descriptors`` of the inodes by handle are
    open. ``HandlesUnavailableError``: file handles are mandatory and do not work.
    """
    most = for_guest(open_files)
    if keep is InodeFileHandles.NEVER:
        return InodeStore(most_for_guest=most)
    reason = _obstacle(root_fd) if capable else _REASONS[errno.EPERM]
    if reason is None:
        _log.info("inodes are referenced by file handle")
        return InodeStore(keep, most_open(open_files, inode_descriptors), most)
    if keep is InodeFileHandles.MANDATORY:
        raise HandlesUnavailableError(f"{reason}; use --inode-file-handles=prefer")
    _log.info("inodes are referenced by descriptor, each costs one of %d: %s", open_files, reason)
    return InodeStore(most_for_guest=most)


def _obstacle(root_fd: int) -> str | None:
    """Return why the root cannot be opened by handle; None if it can."""
    try:
        os.close(open_mount(HandleReader().read(root_fd), root_fd, own=True))
    except OSError as error:
        return _REASONS.get(error.errno or 0) or os.strerror(error.errno or 0)
    return None
