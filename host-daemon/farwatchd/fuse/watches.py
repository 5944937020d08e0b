# SPDX-License-Identifier: Apache-2.0
"""The interface of the watch table for the FUSE session."""

from __future__ import annotations

from typing import Protocol

from farwatchd.wire.fsnotify import Event


class GuestWatches(Protocol):
    """The watches of one guest, each by the nodeid of its inode."""

    @property
    def supported(self) -> Event:
        """The bits that can be watched, ON_CHILD included."""

    def report_own(self, report: bool) -> None:
        """Choose whether the guest gets the events of its own operations.

        Mode ``others`` is ``False``: the guest's kernel raises them itself.
        """

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        """Replace the mask of an inode and return the part of it that is watched, live on return.

        ``fd`` is a descriptor of the inode, may be O_PATH, and stays the caller's. A mask of 0 ends
        the watch. Raises ``OSError``, with the former mask unchanged: ENOSPC no watch is left in
        the daemon or on the host, ENOENT the inode is unlinked, EACCES it may not be watched or is
        outside of the share, EOPNOTSUPP its file system cannot be watched.
        """

    def forget(self, nodeid: int) -> None:
        """End the watch of an inode that the guest has forgotten. Without a watch do nothing."""

    def reset(self) -> None:
        """End all watches."""
