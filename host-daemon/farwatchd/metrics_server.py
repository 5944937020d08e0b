# SPDX-License-Identifier: Apache-2.0
"""Answer with the metrics on a UNIX socket: ``curl --unix-socket PATH http://localhost/metrics``.

A file would have to be replaced outside the sandbox again and again; a socket is made before, and
costs nothing while nobody asks.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial

from farwatchd.acceptor import Acceptor
from farwatchd.event_loop import Loop

#: Seconds that a client has to send its request. One that only reads is answered after that.
PATIENCE = 1.0
#: Bytes of a request; nothing in it matters.
_REQUEST_SIZE = 8192
_HEADER = (
    "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    "Content-Length: {}\r\n\r\n"
)


class MetricsServer:
    """Serves one client at a time; others wait to be accepted."""

    def __init__(self, loop: Loop, listener: socket.socket, text: Callable[[], str]) -> None:
        """Answer on ``listener``, which stays the caller's, with what ``text`` returns then."""
        self._loop = loop
        self._text = text
        self._client: socket.socket | None = None
        self._acceptor = Acceptor(loop, listener, self._accepted, "a client of the metrics")
        self._acceptor.start()

    def _accepted(self, client: socket.socket) -> None:
        self._acceptor.stop()
        client.setblocking(False)
        self._loop.add(client.fileno(), self._answer)
        self._client = client
        self._loop.call_later(PATIENCE, partial(self._answer_silent, client))

    def _answer_silent(self, client: socket.socket) -> None:
        """Answer a client that has sent nothing, if it is still the present one."""
        if self._client is client:
            self._answer()

    def _answer(self) -> None:
        client, self._client = self._client, None
        assert client is not None
        self._loop.remove(client.fileno())
        with client, contextlib.suppress(OSError):
            # Unread data would reset the connection before the answer is read.
            with contextlib.suppress(BlockingIOError):
                client.recv(_REQUEST_SIZE)
            body = self._text().encode()
            # Much less than the socket's buffer: what does not fit is lost with the client's.
            client.sendall(_HEADER.format(len(body)).encode() + body)
        self._acceptor.start()
