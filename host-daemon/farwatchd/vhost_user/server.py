# SPDX-License-Identifier: Apache-2.0
"""Accept front-ends on a listening UNIX socket, or serve the one of a connected socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import DeviceModel
from farwatchd.vhost_user.connection import Connection
from farwatchd.vhost_user.reserve import DescriptorReserve

_log = logging.getLogger(__name__)

#: Seconds without accepting after accept(2) failed: it would fail again immediately.
ACCEPT_PAUSE = 1.0


class Server:
    """Serves one front-end at a time; the next one waits until the present one leaves.

    ``on_change`` is called when a front-end has connected, with True, and when one has left.
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
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._loop = loop
        self._device = device
        self._on_end = on_end
        self._on_change = on_change
        self._connection: Connection | None = None
        self._waiting: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._once = once
        self._closing = False
        self._accepting = False
        self._accept_failed = False
        self._reserve = DescriptorReserve(1)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listener = sock
            sock.setblocking(False)
            self._set_accepting(True)
        else:
            self._once = True
            self._connect(sock)

    @property
    def connected(self) -> bool:
        """Whether a front-end is served."""
        return self._connection is not None

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

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            with self._reserve.freed():
                sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if not self._accept_failed:
                self._accept_failed = True
                _log.warning(
                    "a front-end cannot be accepted, trying again every %g s: %s",
                    ACCEPT_PAUSE,
                    error.strerror,
                )
            self._set_accepting(False)
            self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
            return
        self._accept_failed = False
        if self._connection is None:
            self._connect(sock)
            return
        _log.warning("another front-end has connected: it waits until the present one leaves")
        self._waiting = sock
        self._set_accepting(False)

    def _accept_again(self) -> None:
        if self._waiting is None:
            self._set_accepting(True)

    def _set_accepting(self, accepting: bool) -> None:
        if self._listener is None or accepting is self._accepting:
            return
        self._accepting = accepting
        if accepting:
            self._loop.add(self._listener.fileno(), self._accept)
        else:
            self._loop.remove(self._listener.fileno())

    def _connect(self, sock: socket.socket) -> None:
        try:
            self._connection = Connection(self._loop, sock, self._device, self._left)
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
