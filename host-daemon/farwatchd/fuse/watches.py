# SPDX-License-Identifier: Apache-2.0
"""What the FUSE session asks of the watch table."""

from __future__ import annotations

from typing import Protocol

from farwatchd.wire.fsnotify import Event


class Watches(Protocol):
    """Which inode is watched for what."""

    @property
    def supported(self) -> Event:
        """The bits that can be watched, ON_CHILD included."""

    def tell_own(self, tell: bool) -> None:
        """Whether to tell the guest what was done on its behalf: not in mode others."""

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        """Watch ``mask`` instead of what was watched before, 0 to end; returns what is watched.
        ``OSError`` if not."""

    def forget(self, nodeid: int) -> None:
        """The inode is gone: end its watch, if it has one."""

    def reset(self) -> None:
        """End all watches."""
