# SPDX-License-Identifier: Apache-2.0
"""Accept front-ends on a listening UNIX socket, or serve the one of a connected socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import DeviceModel
from farwatchd.vhost_user.connection import Connection

log = logging.getLogger(__name__)


class Server:
    """Serves one front end at a time; the next one waits until the present one leaves.

    With ``once``, or when ``sock`` is a connected socket, ``on_end`` is called when the first front
    end has left.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        device: DeviceModel,
        on_end: Callable[[], None],
        once: bool = False,
    ) -> None:
        self._loop = loop
        self._device = device
        self._on_end = on_end
        self._connection: Connection | None = None
        self._waiting: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._once = once
        self._closing = False
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listener = sock
            sock.setblocking(False)
            loop.add(sock.fileno(), self._accept)
        else:
            self._once = True
            self._connect(sock)

    def close(self) -> None:
        """End everything without calling ``on_end``. The listening socket's path stays: its maker
        removes it."""
        self._closing = True
        self._stop_listening()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._connection is not None:
            self._connection.close()

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        if self._connection is None:
            self._connect(sock)
            return
        log.warning("another front end has connected: it waits until the present one leaves")
        self._waiting = sock
        self._loop.remove(self._listener.fileno())

    def _connect(self, sock: socket.socket) -> None:
        self._connection = Connection(self._loop, sock, self._device, self._left)

    def _left(self) -> None:
        self._connection = None
        if self._closing:
            return
        if self._once:
            self._stop_listening()
            self._on_end()
            return
        if self._waiting is not None and self._listener is not None:
            sock, self._waiting = self._waiting, None
            self._loop.add(self._listener.fileno(), self._accept)
            self._connect(sock)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        if self._waiting is None:
            self._loop.remove(self._listener.fileno())
        self._listener.close()
        self._listener = None
