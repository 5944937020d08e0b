# SPDX-License-Identifier: Apache-2.0
"""What inotify and fanotify have in common: a group is a descriptor from which events are read."""

from __future__ import annotations

import array
import fcntl
import os
import termios


class NotificationGroup:
    """An inotify or fanotify instance. Owns the non-blocking descriptor ``fd``.

    Closing the descriptor makes the kernel remove all marks of the group.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which the group closes."""
        return self._fd

    def read_bytes(self, size: int) -> bytes:
        """Return up to ``size`` bytes of whole events; no bytes when no event is queued."""
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return b""

    def pending(self) -> int:
        """Return how many bytes can be read; 0 when no event is queued."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, waiting)
        return waiting[0]

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
