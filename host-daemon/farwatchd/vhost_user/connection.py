# SPDX-License-Identifier: Apache-2.0
"""One connected front-end.

Reads its messages, with the descriptors they carry, and writes the replies.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from farwatchd.event_loop import Loop
from farwatchd.linux import scm_rights
from farwatchd.vhost_user.backend import Backend, DeviceModel
from farwatchd.vhost_user.messages import MAX_FDS, MessageDecoder, ProtocolError, close_all
from farwatchd.vhost_user.reserve import DescriptorReserve
from farwatchd.wire.state import Descriptors, ReceivedDescriptors, State, StateError

_log = logging.getLogger(__name__)

#: Socket reads before other descriptors get their turn.
READS_PER_TURN = 32


class ConnectionRecord(Protocol):
    """A copy of the connection, which outlives the process."""

    def begin(self) -> None:
        """Record that a message may be read, which the next process could not read again."""

    def update(self, state: State, fds: Descriptors) -> None:
        """Record what the connection has led to."""

    def end(self) -> None:
        """Record that no message is half read, and none without its reply."""

    def forget(self) -> None:
        """Record that there is no connection."""


class Connection:
    """A connection, which owns its socket.

    It ends, and resets the device, when the front-end closes it or breaks the protocol, or when the
    socket fails.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        device: DeviceModel,
        on_close: Callable[[], None],
        record: ConnectionRecord | None = None,
    ) -> None:
        """Serve ``sock``, and take ownership of it.

        ``OSError`` when the loop cannot wait for it; the socket is closed then.
        """
        self._loop = loop
        self._sock = sock
        self._backend = Backend(device)
        self._decoder = MessageDecoder()
        self._on_close = on_close
        self._record = record
        try:
            sock.setblocking(False)
            loop.add(sock.fileno(), self._readable)
        except OSError:
            sock.close()
            raise
        # For the largest message and what is made of it: a memory region takes two more, before
        # the former ones are closed. And for the kick descriptors, which are closed while rings
        # are stopped.
        self._reserve = DescriptorReserve(3 * MAX_FDS + device.queue_count)
        _log.info("front-end connected")

    def close(self) -> None:
        """End the connection; harmless when it has ended already."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove(self._sock.fileno())
        if self._record is not None:
            # Another process has a copy.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._decoder.close()
        self._reserve.close()
        try:
            self._backend.close()
        finally:
            if self._record is not None:
                self._record.forget()
            self._on_close()

    @property
    def within_message(self) -> bool:
        """Whether a message of the front-end has come in part."""
        return self._decoder.within_message

    def pause(self) -> None:
        """Read no message and serve no ring until ``resume``."""
        self._loop.remove(self._sock.fileno())
        self._backend.pause()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._loop.add(self._sock.fileno(), self._readable)
        self._backend.resume()

    def export_state(self, state: State, fds: Descriptors) -> None:
        """Add the paused connection, between two messages, to a state."""
        self._backend.export_state(state, fds, self._sock.fileno())

    def restore_state(self, state: State, fds: ReceivedDescriptors) -> None:
        """Become the paused connection of a state; ``StateError``."""
        self.pause()
        self._backend.restore_state(state, fds)

    def _readable(self) -> None:
        try:
            for _ in range(READS_PER_TURN):
                if not self._read():
                    return
        except (ProtocolError, OSError) as error:
            _log.error("front-end disconnected: %s", error)
            self.close()

    def _read(self) -> bool:
        """Read once and handle the message that it completes; return whether there may be more."""
        # Handling takes descriptors as well: a memory region keeps two of its own.
        with self._reserve.freed():
            if self._record is None:
                return self._receive()
            self._record.begin()
            more = self._receive()
            if self._sock.fileno() >= 0 and not self._decoder.within_message:
                self._record.end()
            return more

    def _receive(self) -> bool:
        try:
            data, fds, flags = scm_rights.receive(self._sock, self._decoder.wanted, MAX_FDS)
        except BlockingIOError:
            return False
        truncated = bool(flags & socket.MSG_CTRUNC)
        if truncated and len(fds) == MAX_FDS:
            close_all(fds)
            raise ProtocolError(f"more than {MAX_FDS} descriptors with one message")
        if not data:
            close_all(fds)
            if self._decoder.within_message:
                raise ProtocolError("the connection ended in the middle of a message")
            _log.info("front-end left")
            self.close()
            return False
        message = self._decoder.feed(data, fds, truncated)
        if message is not None:
            reply = self._backend.handle(message)
            if self._record is not None:
                self._update(self._record)
            if reply is not None:
                self._send(reply)
        return True

    def _update(self, record: ConnectionRecord) -> None:
        state, fds = State(), Descriptors()
        with contextlib.suppress(StateError):
            self._backend.export_running(state, fds, self._sock.fileno())
            record.update(state, fds)

    def _send(self, reply: bytes) -> None:
        try:
            sent = self._sock.send(reply)
        except BlockingIOError:
            sent = 0
        if sent != len(reply):
            raise ProtocolError("the front-end does not read replies")
