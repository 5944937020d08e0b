# SPDX-License-Identifier: Apache-2.0
"""One ring as the front end set it up: size, addresses, event descriptors; running when it holds a
``SplitRing``."""

from __future__ import annotations

import logging
import os
import stat
from enum import Enum

from farwatchd.virtqueue import GuestMemory, RingAddress, RingMemory, SplitRing, VirtqueueError

log = logging.getLogger(__name__)

#: What an eventfd is by its mode, as all that has no inode of its own.
_NO_FILE_TYPE = 0


class KickState(Enum):
    """What reading a kick descriptor gave."""

    KICKED = "kicked"
    IDLE = "idle"
    CLOSED = "closed"


class Vring:
    """Settings, descriptors and state of one ring. It owns its descriptors."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.address: RingAddress | None = None
        self.base = 0
        self.enabled = False
        self.broken = False
        self.has_run = False
        self.ring: SplitRing | None = None
        self.kick_fd: int | None = None
        self._call_fd: int | None = None
        self._err_fd: int | None = None

    @property
    def ready(self) -> bool:
        """Whether everything is there that a running ring needs."""
        return (
            self.enabled
            and not self.broken
            and self.kick_fd is not None
            and self.address is not None
        )

    def start(self, memory: GuestMemory, event_idx: bool, indirect: bool) -> None:
        """Find the ring in ``memory`` and go on at ``base``; ``VirtqueueError`` when it is not to
        be found there.

        A ring that runs goes on, with the chains that were taken from it.
        """
        if self.address is None:
            raise VirtqueueError("no ring addresses")
        parts = RingMemory.at_user_addresses(memory, self.size, self.address, event_idx)
        base, used = (self.base, None) if self.ring is None else (self.ring.base, self.ring.used)
        self.ring = SplitRing(memory, parts, base, event_idx, indirect, used)
        self.has_run = True

    def stop(self) -> None:
        """Stop the ring, if it runs, and remember where it was."""
        if self.ring is not None:
            self.base = self.ring.base
            self.ring = None

    def fail(self) -> None:
        """Stop a ring that broke the rules until the front end sets it up anew, and tell whoever
        waits for it."""
        self.stop()
        self.broken = True
        self.signal()
        if self._err_fd is not None:
            _notify(self._err_fd)

    def signal(self) -> None:
        """Interrupt the driver."""
        if self._call_fd is not None:
            try:
                os.eventfd_write(self._call_fd, 1)
            except OSError as error:
                _report_unwritten(self._call_fd, error)

    def signal_if_wanted(self) -> None:
        """Interrupt the driver when it wants to hear of what was pushed since the last time."""
        if self.ring is not None and self.ring.must_signal():
            self.signal()

    @property
    def kick_is_eventfd(self) -> bool:
        """Whether the kick descriptor is an eventfd, as far as can be told: no pipe or socket,
        whose other end closes.

        Such a one need not be read.
        """
        return (
            self.kick_fd is not None
            and stat.S_IFMT(os.fstat(self.kick_fd).st_mode) == _NO_FILE_TYPE
        )

    def read_kick(self) -> KickState:
        """Consume a kick."""
        if self.kick_fd is None:
            return KickState.IDLE
        try:
            return KickState.KICKED if os.read(self.kick_fd, 8) else KickState.CLOSED
        except BlockingIOError:
            return KickState.IDLE
        except OSError as error:
            log.debug("queue %d: kick descriptor: %s", self.index, error)
            return KickState.CLOSED

    def set_kick(self, fd: int | None) -> None:
        """Own ``fd`` as the descriptor that tells of new chains; the former one is closed."""
        self.kick_fd = _replace(self.kick_fd, fd)

    def set_call(self, fd: int | None) -> None:
        """Own ``fd`` as the descriptor that interrupts the driver; the former one is closed."""
        self._call_fd = _replace(self._call_fd, fd)

    def set_err(self, fd: int | None) -> None:
        """Own ``fd`` as the descriptor that tells the front end of a broken ring; the former one is
        closed."""
        self._err_fd = _replace(self._err_fd, fd)

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self.set_kick(None)
        self.set_call(None)
        self.set_err(None)


def _replace(old: int | None, new: int | None) -> int | None:
    if new is not None:
        try:
            os.set_blocking(new, False)
        except OSError:
            os.close(new)
            raise
    if old is not None:
        os.close(old)
    return new


def _notify(fd: int) -> None:
    try:
        os.eventfd_write(fd, 1)
    except OSError as error:
        _report_unwritten(fd, error)


def _report_unwritten(fd: int, error: OSError) -> None:
    if isinstance(error, BlockingIOError):
        log.debug("descriptor %d is saturated: its owner has been notified already", fd)
    else:
        log.warning("an event descriptor of the front end cannot be written: %s", error)
