# SPDX-License-Identifier: Apache-2.0
"""The transfer of the device's state while the front-end migrates the guest.

See "Migrating back-end state" in QEMU's docs/interop/vhost-user.rst: the state goes through a pipe
or a socket, whose other end the front-end has, until that end is closed.
"""

from __future__ import annotations

import logging
import os
import stat
from enum import IntEnum
from typing import Protocol

from farwatchd.event_loop import Loop
from farwatchd.wire.state import StateError

_log = logging.getLogger(__name__)

#: Bytes that are read or written before other descriptors get their turn.
_PER_TURN = 1 << 20


class Direction(IntEnum):
    """``VHOST_TRANSFER_STATE_DIRECTION_*``."""

    SAVE = 0
    LOAD = 1


class MigratedState(Protocol):
    """The state that is transferred."""

    @property
    def max_size(self) -> int:
        """The largest state that is taken, in bytes."""

    def save(self) -> bytes:
        """Return the state. ``StateError``: it cannot be saved now."""

    def load(self, data: bytes) -> None:
        """Become that state. ``StateError``: nothing is left of any state then."""


class StateTransfer:
    """Transfers the state, once at a time; for the event loop's thread."""

    def __init__(self, loop: Loop, state: MigratedState) -> None:
        self._loop = loop
        self._state = state
        self._fd: int | None = None
        self._direction = Direction.SAVE
        self._left = memoryview(b"")
        self._received = bytearray()
        #: Why the last transfer failed; None if it did not.
        self._problem: str | None = "no state was transferred"

    @property
    def active(self) -> bool:
        """Whether the front-end has not asked for the result yet."""
        return self._fd is not None or self._problem is None

    def begin(self, direction: Direction, fd: int) -> None:
        """Transfer the state through ``fd``, and take ownership of that.

        A former transfer ends. ``StateError``: that is not possible.
        """
        self.end()
        try:
            kind = os.fstat(fd).st_mode
            if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):
                raise StateError("its descriptor is neither a pipe nor a socket")
            os.set_blocking(fd, False)
            if direction is Direction.SAVE:
                self._left = memoryview(self._saved())
                self._loop.add_writable(fd, self._write)
            else:
                self._received = bytearray()
                self._loop.add(fd, self._read)
        except OSError as error:
            os.close(fd)
            raise StateError(f"its descriptor cannot be used: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._direction, self._problem = fd, direction, None

    def check(self) -> str | None:
        """Return why the transfer failed, None if it did not; nothing is left of it."""
        if self._fd is not None:
            # What the front-end has sent is all there, and this end may not have been read yet.
            (self._write if self._direction is Direction.SAVE else self._read)()
        if self._fd is not None:
            self._fail(
                "the front-end has not read all of it"
                if self._direction is Direction.SAVE
                else "its end has not come"
            )
        problem = self._problem
        self._problem = "no state was transferred"
        return problem

    def end(self) -> None:
        """End a transfer that is in progress."""
        if self._fd is not None:
            self._fail("another one was begun, or the front-end has left")
        self._problem = "no state was transferred"

    def _write(self) -> None:
        assert self._fd is not None
        try:
            while self._left:
                written = os.write(self._fd, self._left[:_PER_TURN])
                self._left = self._left[written:]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"the front-end does not take it: {error.strerror}")
            return
        self._close()

    def _read(self) -> None:
        assert self._fd is not None
        try:
            while data := os.read(self._fd, _PER_TURN):
                self._received += data
                if len(self._received) > self._state.max_size:
                    self._fail(f"it has more than {self._state.max_size} bytes")
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"it cannot be read: {error.strerror}")
            return
        received = bytes(self._received)
        self._close()
        try:
            self._state.load(received)
        except StateError as error:
            self._problem = str(error)
            _log.error("the migrated state cannot be used: %s", error)
        except Exception:
            self._problem = "a bug"
            _log.exception("bug: the migrated state cannot be used")

    def _saved(self) -> bytes:
        """Return the state; a bug is an error as well, since the front-end waits for the reply."""
        try:
            return self._state.save()
        except StateError:
            raise
        except Exception as error:
            _log.exception("bug: the state cannot be saved")
            raise StateError("it cannot be saved") from error

    def _fail(self, problem: str) -> None:
        self._problem = problem
        _log.error("the state of the session was not migrated: %s", problem)
        self._close()

    def _close(self) -> None:
        assert self._fd is not None
        self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = None
        self._left = memoryview(b"")
        self._received = bytearray()
