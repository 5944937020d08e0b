# SPDX-License-Identifier: Apache-2.0
"""Accept connections on a listening socket, and pause when accept(2) fails."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable

from farwatchd.event_loop import Loop

_log = logging.getLogger(__name__)

#: Seconds without accepting after accept(2) failed: it would fail again immediately.
ACCEPT_PAUSE = 1.0


class Acceptor:
    """Accepts connections while it is started, for the event loop's thread."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        connected: Callable[[socket.socket], None],
        who: str,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Accept nothing before ``start``.

        ``listener`` stays the caller's, who calls ``stop`` before closing it. ``connected`` takes
        ownership of a new socket. ``who`` connects, for the log. ``around``: the context in which
        accept(2) is called.
        """
        self._loop = loop
        self._listener = listener
        self._connected = connected
        self._who = who
        self._around = around
        self._started = False
        self._paused = False
        self._waits = False
        self._failed = False
        listener.setblocking(False)

    def start(self) -> None:
        """Accept connections from now on."""
        self._started = True
        self._update()

    def stop(self) -> None:
        """Leave connections in the socket's queue until ``start``."""
        self._started = False
        self._update()

    def _update(self) -> None:
        waits = self._started and not self._paused
        if waits is self._waits:
            return
        self._waits = waits
        if waits:
            self._loop.add(self._listener.fileno(), self._accept)
        else:
            self._loop.remove(self._listener.fileno())

    def _accept(self) -> None:
        try:
            with self._around():
                sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning(
                    "%s cannot be accepted, trying again every %g s: %s",
                    self._who,
                    ACCEPT_PAUSE,
                    error.strerror,
                )
            self._paused = True
            self._update()
            self._loop.call_later(ACCEPT_PAUSE, self._resume)
            return
        self._failed = False
        self._connected(sock)

    def _resume(self) -> None:
        self._paused = False
        self._update()
