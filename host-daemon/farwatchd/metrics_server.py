# SPDX-License-Identifier: Apache-2.0
"""Answer with the metrics on a UNIX socket: ``curl --unix-socket PATH http://localhost/metrics``.

A file would have to be replaced outside the sandbox again and again; a socket is made before, and
costs nothing while nobody asks.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial

from farwatchd.event_loop import Loop

_log = logging.getLogger(__name__)

#: Seconds that a client has to send its request. One that only reads is answered after that.
PATIENCE = 1.0
#: Seconds without accepting after accept(2) failed.
_PAUSE = 1.0
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
        self._listener = listener
        self._text = text
        self._client: socket.socket | None = None
        listener.setblocking(False)
        loop.add(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            _log.debug("a client of the metrics cannot be accepted: %s", error.strerror)
            self._loop.remove(self._listener.fileno())
            self._loop.call_later(_PAUSE, self._resume)
            return
        client.setblocking(False)
        self._loop.remove(self._listener.fileno())
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
        self._resume()

    def _resume(self) -> None:
        self._loop.add(self._listener.fileno(), self._accept)
