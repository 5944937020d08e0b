# SPDX-License-Identifier: Apache-2.0
"""What inotify instances and fanotify groups have in common: a descriptor that events are read
from."""

from __future__ import annotations

import ctypes
import os


class Group:
    """Owns the descriptor ``fd``, which does not block. Closing it makes the kernel drop all that
    it watches."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def read_bytes(self, size: int) -> bytes:
        """Read whole events, up to ``size`` bytes; nothing when there are none."""
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check(result: int, call: str) -> int:
    """Return the result of a C library call, or raise the ``OSError`` that it left behind."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result
