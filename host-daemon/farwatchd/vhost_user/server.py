# SPDX-License-Identifier: Apache-2.0
"""Accept front-ends on a listening UNIX socket, or serve the one of a connected socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from farwatchd.acceptor import Acceptor
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import DeviceModel
from farwatchd.vhost_user.connection import Connection, ConnectionRecord
from farwatchd.vhost_user.reserve import DescriptorReserve
from farwatchd.wire.state import Descriptors, ReceivedDescriptors, State

_log = logging.getLogger(__name__)


class Server:
    """Serves one front-end at a time; the next one waits until the present one leaves.

    ``on_change`` is called when a front-end has connected, with True, and when one has left.
    With ``once``, or when ``sock`` is a connected socket, ``on_end`` is called when the first
    front-end has left.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        device: DeviceModel,
        on_end: Callable[[], None],
        once: bool = False,
        on_change: Callable[[bool], None] | None = None,
        record: ConnectionRecord | None = None,
    ) -> None:
        """``record``: a copy of the connection, which outlives the process."""
        self._loop = loop
        self._record = record
        self._device = device
        self._on_end = on_end
        self._on_change = on_change
        self._connection: Connection | None = None
        self._waiting: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._once = once
        self._closing = False
        self._reserve = DescriptorReserve(1)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listener = sock
            self._acceptor = Acceptor(
                loop, sock, self._accepted, "a front-end", self._reserve.freed
            )
            self._acceptor.start()
        else:
            self._once = True
            self._connect(sock)

    @property
    def connected(self) -> bool:
        """Whether a front-end is served."""
        return self._connection is not None

    @property
    def within_message(self) -> bool:
        """Whether a message of the front-end has come in part."""
        return self._connection is not None and self._connection.within_message

    def pause(self) -> None:
        """Accept and serve nothing until ``resume``."""
        self._set_accepting(False)
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._set_accepting(self._waiting is None)
        if self._connection is not None:
            self._connection.resume()

    def export_state(self, state: State, fds: Descriptors) -> tuple[int, int]:
        """Add the paused connection to a state.

        Return the indices of the listening socket and of the front-end that waits.
        """
        if self._connection is not None:
            self._connection.export_state(state, fds)
        return (
            fds.add(None if self._listener is None else self._listener.fileno()),
            fds.add(None if self._waiting is None else self._waiting.fileno()),
        )

    def restore_state(self, state: State, fds: ReceivedDescriptors) -> None:
        """Become the paused server of a state; ``StateError``, ``OSError``."""
        self._set_accepting(False)
        (server,) = state.server
        waiting = fds.take_any(server.waiting)
        if waiting is not None:
            self._waiting = socket.socket(fileno=waiting)
        if state.connection:
            sock = socket.socket(fileno=fds.take(state.connection[0].socket))
            self._connection = Connection(self._loop, sock, self._device, self._left, self._record)
            self._connection.restore_state(state, fds)

    def close(self) -> None:
        """End everything without calling ``on_end``.

        The path of the listening socket stays: its creator removes it.
        """
        self._closing = True
        self._stop_listening()
        self._reserve.close()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._connection is not None:
            self._connection.close()

    def _accepted(self, sock: socket.socket) -> None:
        if self._connection is None:
            self._connect(sock)
            return
        _log.warning("another front-end has connected: it waits until the present one leaves")
        self._waiting = sock
        self._set_accepting(False)

    def _set_accepting(self, accepting: bool) -> None:
        if self._acceptor is None:
            return
        if accepting:
            self._acceptor.start()
        else:
            self._acceptor.stop()

    def _connect(self, sock: socket.socket) -> None:
        try:
            self._connection = Connection(self._loop, sock, self._device, self._left, self._record)
            self._changed(True)
        except OSError as error:
            _log.error("a front-end cannot be served: %s", error.strerror)
            self._left()

    def _left(self) -> None:
        self._connection = None
        if self._closing:
            return
        if self._once:
            self._stop_listening()
            self._on_end()
            return
        self._changed(False)
        sock, self._waiting = self._waiting, None
        self._set_accepting(True)
        if sock is not None:
            self._connect(sock)

    def _changed(self, connected: bool) -> None:
        if self._on_change is not None:
            self._on_change(connected)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        self._set_accepting(False)
        self._listener.close()
        self._listener = None
