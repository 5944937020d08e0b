# SPDX-License-Identifier: Apache-2.0
"""One ring as the front-end set it up: size, addresses, event descriptors.

It runs while it has a ``Ring``.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from enum import Enum

from farwatchd.virtqueue import (
    DirtyLog,
    GuestMemory,
    LoggedRing,
    Ring,
    RingAddress,
    RingMemory,
    SplitRing,
)
from farwatchd.wire.state import NONE, Descriptors, ReceivedDescriptors, StateError, VringState

_log = logging.getLogger(__name__)

#: The file type in an eventfd's ``st_mode``: it has no inode of its own.
_NO_FILE_TYPE = 0

#: Makes a ring of the arguments of ``SplitRing``.
RingMaker = Callable[[GuestMemory, RingMemory, int, bool, bool, int | None], Ring]


class KickState(Enum):
    """The result of reading a kick descriptor."""

    KICKED = "kicked"
    IDLE = "idle"
    CLOSED = "closed"


class Vring:
    """Settings, descriptors and state of one ring. It owns its descriptors."""

    def __init__(self, index: int, make_ring: RingMaker = SplitRing) -> None:
        self.index = index
        self._make_ring = make_ring
        self.size = 0
        self.address: RingAddress | None = None
        #: The guest address by which writes to the used ring are to be logged.
        self.log_address: int | None = None
        self.base = 0
        self.enabled = False
        self.broken = False
        self.has_run = False
        self.ring: Ring | None = None
        #: Index of the next used element of a stopped ring that may go on with chains in flight.
        self._used: int | None = None
        self.kick_fd: int | None = None
        self._call_fd: int | None = None
        self._err_fd: int | None = None

    @property
    def ready(self) -> bool:
        """Whether the ring has all that it needs to run."""
        return (
            self.enabled
            and not self.broken
            and self.kick_fd is not None
            and self.address is not None
        )

    def start(
        self, memory: GuestMemory, event_idx: bool, indirect: bool, log: DirtyLog | None = None
    ) -> None:
        """Find the ring, whose address is known, in ``memory`` and go on at ``base``.

        ``log``: where to log writes into guest memory. ``VirtqueueError`` when the address is
        wrong.

        A ring that was running or stopped before goes on with the chains that are in flight.
        """
        assert self.address is not None
        parts = RingMemory.at_user_addresses(memory, self.size, self.address, event_idx)
        base, used = self.base, self._used
        if self.ring is not None:
            base, used = self.ring.base, self.ring.used
            self.ring.end()
        self.ring = (
            self._make_ring(memory, parts, base, event_idx, indirect, used)
            if log is None
            else LoggedRing(memory, parts, base, event_idx, indirect, used, log, self.log_address)
        )
        self.has_run = True

    def stop(self) -> None:
        """Stop the ring, if it runs, and remember its indices."""
        if self.ring is not None:
            self.base, self._used = self.ring.base, self.ring.used
            self.ring.end()
            self.ring = None

    def set_base(self, base: int) -> None:
        """Set the index of the next chain of a stopped ring.

        If it is not the index at which the ring stopped, no chain is in flight.
        """
        if base != self.base:
            self.base, self._used = base, None

    def forget_guest(self) -> None:
        """Forget that the ring ran, and chains in flight: the driver has reset the device."""
        self.has_run = False
        self._used = None

    def reset(self) -> None:
        """Return a stopped ring to the state before it ran; addresses and size stay."""
        self.forget_guest()
        self.base = 0
        self.enabled = self.broken = False

    def fail(self) -> None:
        """Stop a ring that broke the rules, and notify driver and front-end.

        It stays stopped until the front-end sets it up again.
        """
        self.stop()
        self.broken = True
        self.interrupt()
        if self._err_fd is not None:
            _notify(self._err_fd)

    def interrupt(self) -> None:
        """Interrupt the driver."""
        if self._call_fd is not None:
            try:
                os.eventfd_write(self._call_fd, 1)
            except OSError as error:
                _report_unwritten(self._call_fd, error)

    def interrupt_if_needed(self) -> None:
        """Interrupt the driver if it wants an interrupt for what was added since the last time."""
        if self.ring is not None and self.ring.needs_notification():
            self.interrupt()

    @property
    def kick_is_eventfd(self) -> bool:
        """Whether the kick descriptor looks like an eventfd, which need not be read.

        The other end of a pipe or a socket may close.
        """
        return (
            self.kick_fd is not None
            and stat.S_IFMT(os.fstat(self.kick_fd).st_mode) == _NO_FILE_TYPE
        )

    def export_state(self, fds: Descriptors, running: bool) -> VringState:
        """Return a stopped ring; ``running``: it is only stopped for that."""
        at = self.address
        return VringState(
            self.index,
            self.size,
            at is not None,
            *((at.descriptors, at.available, at.used) if at is not None else (0, 0, 0)),
            NONE if self.log_address is None else self.log_address,
            self.base,
            NONE if self._used is None else self._used,
            self.enabled,
            self.broken,
            self.has_run,
            fds.add(self.kick_fd),
            fds.add(self._call_fd),
            fds.add(self._err_fd),
            running,
        )

    def restore_state(self, state: VringState, fds: ReceivedDescriptors) -> None:
        """Become the stopped ring of a state, and take ownership of its descriptors."""
        self.size = state.size
        if state.has_address:
            self.address = RingAddress(state.descriptors, state.available, state.used)
        self.log_address = None if state.log_address == NONE else state.log_address
        self.base = state.base
        self._used = None if state.next_used == NONE else state.next_used
        self.enabled = bool(state.enabled)
        self.broken = bool(state.broken)
        self.has_run = bool(state.has_run)
        self.set_kick(fds.take_any(state.kick))
        self.set_call(fds.take_any(state.call))
        self.set_err(fds.take_any(state.err))
        if max(self.base, self._used or 0) > 0xFFFF:
            raise StateError(f"queue {self.index} has an index of more than 16 bits")

    def read_kick(self) -> KickState:
        """Read the kick descriptor; return what was found."""
        if self.kick_fd is None:
            return KickState.IDLE
        try:
            return KickState.KICKED if os.read(self.kick_fd, 8) else KickState.CLOSED
        except BlockingIOError:
            return KickState.IDLE
        except OSError as error:
            _log.debug("queue %d: kick descriptor: %s", self.index, error)
            return KickState.CLOSED

    def set_kick(self, fd: int | None) -> None:
        """Take ownership of ``fd`` as the descriptor by which the driver kicks.

        The former one is closed.
        """
        self.kick_fd = _replace(self.kick_fd, fd)

    def set_call(self, fd: int | None) -> None:
        """Take ownership of ``fd`` as the descriptor that interrupts the driver.

        The former one is closed.
        """
        self._call_fd = _replace(self._call_fd, fd)

    def set_err(self, fd: int | None) -> None:
        """Take ownership of ``fd`` as the descriptor that reports a broken ring.

        The former one is closed.
        """
        self._err_fd = _replace(self._err_fd, fd)

    def close(self) -> None:
        """Stop the ring, and close its descriptors."""
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
        _log.debug("descriptor %d is saturated: its owner has been notified already", fd)
    else:
        _log.warning("an event descriptor of the front-end cannot be written: %s", error)
