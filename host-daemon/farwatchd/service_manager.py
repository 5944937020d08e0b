# SPDX-License-Identifier: Apache-2.0
"""Report to the service manager that started the daemon: the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, MutableMapping

_log = logging.getLogger(__name__)

_MICROSECOND = 1e-6


class ServiceManager:
    """The service manager, or nobody: then all is left out.

    ``watchdog``: seconds within which it expects a sign of life, None if it expects none.
    """

    def __init__(self, sock: socket.socket | None = None, watchdog: float | None = None) -> None:
        """Report through ``sock``, a connected socket of messages whose ownership is taken."""
        if sock is not None:
            sock.setblocking(False)
        self._sock = sock
        self.watchdog = watchdog if sock is not None else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Connect to the one that the environment names, and take its variables out.

        Call it before the sandbox is entered, where its socket cannot be named.
        """
        path = environment.pop("NOTIFY_SOCKET", "")
        period = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        if not path:
            return cls()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # "@" stands for the NUL of an abstract address.
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            sock.close()
            _log.warning("cannot report to the service manager at %s: %s", path, error.strerror)
            return cls()
        meant = pid in ("", str(os.getpid()))
        usec = int(period) if meant and period.isascii() and period.isdigit() else 0
        return cls(sock, usec * _MICROSECOND or None)

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 if there is none."""
        return -1 if self._sock is None else self._sock.fileno()

    def close(self) -> None:
        """Report nothing any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ready(self, status: str) -> None:
        """Report that requests can be served."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Report what the daemon does, in one line for people."""
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Report that the daemon ends."""
        self._send("STOPPING=1", "STATUS=ending")

    def start_watchdog(self, call_later: Callable[[float, Callable[[], None]], None]) -> None:
        """Report that the event loop turns, twice in each period that the manager expects.

        ``call_later`` is the loop's.
        """
        if self.watchdog is None:
            return
        period = self.watchdog / 2

        def beat() -> None:
            self._send("WATCHDOG=1")
            call_later(period, beat)

        beat()

    def forward(self, message: bytes) -> None:
        """Send a message as it is."""
        if self._sock is not None:
            # A manager that does not read must not stop the daemon.
            with contextlib.suppress(OSError):
                self._sock.send(message)

    def _send(self, *fields: str) -> None:
        self.forward("\n".join(field.replace("\n", " ") for field in fields).encode())
