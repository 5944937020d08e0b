# SPDX-License-Identifier: Apache-2.0
"""A reserve of descriptors for those in the front-end's messages, out of the guest's reach."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

_log = logging.getLogger(__name__)


class DescriptorReserve:
    """Keeps up to ``count`` unused descriptors open, and closes them for a moment."""

    def __init__(self, count: int) -> None:
        """Open the descriptors, or as many as the process still may."""
        self._count = count
        self._fds: list[int] = []
        self._fill()

    @contextlib.contextmanager
    def freed(self) -> Iterator[None]:
        """Close the descriptors while the block runs, and open them again."""
        self._free()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Close the descriptors for good; harmless inside ``freed``."""
        self._count = 0
        self._free()

    def _free(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _fill(self) -> None:
        try:
            while len(self._fds) < self._count:
                # Needs no file of the sandbox, unlike /dev/null.
                self._fds.append(
                    os.dup(self._fds[0]) if self._fds else os.eventfd(0, os.EFD_CLOEXEC)
                )
        except OSError as error:
            _log.debug("%d of %d descriptors reserved: %s", len(self._fds), self._count, error)
