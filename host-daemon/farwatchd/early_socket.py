# SPDX-License-Identifier: Apache-2.0
"""The socket of ``--socket-path``, made before most of the command is loaded.

VM managers wait for it, some for less than a second. So this imports nothing that takes time, and
makes the socket only where that needs no decision: all else, and every error, is left to
``listener.py``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
from collections.abc import Sequence

_OPTION = "--socket-path"
#: With these the socket is made otherwise, or not at all.
_OTHERWISE = ("--answer-doctor", "--check", "--daemonize", "--fd", "--replace", "--socket-group")
_NO_SOCKET = ("-h", "--help", "-V", "--version", "--print-capabilities")
#: SIGUSR1 is held from here on (``termination.hold_status_signal``), the others until something
#: removes the socket at the end.
_HELD = (_signal.SIGTERM, _signal.SIGINT)
_BACKLOG = 128


class EarlySocket:
    """A listening socket, and the path at which it was made."""

    def __init__(self, path: str, sock: _socket.socket, held: set[int]) -> None:
        """``held``: the signals that were blocked for it."""
        self._path = path
        self._sock: _socket.socket | None = sock
        self._held = held

    def take(self, path: str) -> int | None:
        """Return the descriptor, which becomes the caller's; None if ``path`` is another one."""
        if self._sock is None or path != self._path:
            return None
        sock, self._sock = self._sock, None
        return sock.detach()

    def release_signals(self) -> None:
        """Let the signals through that would have ended the process with the socket left over."""
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, self._held)
        self._held = set()

    def discard(self) -> None:
        """Remove the socket, unless it was taken."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            try:  # noqa: SIM105 - contextlib and pathlib take long to load
                os.unlink(self._path)  # noqa: PTH108
            except OSError:
                pass
        self.release_signals()


def make(arguments: Sequence[str]) -> EarlySocket | None:
    """Make the socket that the command line asks for; None where this leaves it to others."""
    path = _path_in(arguments)
    if not path:
        return None
    # As Path.absolute() has it.
    path = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (*_HELD, _signal.SIGUSR1))
    held = set(_HELD) - set(before)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        return None
    finally:
        os.umask(mask)
    return EarlySocket(path, sock, held)


def _path_in(arguments: Sequence[str]) -> str:
    """Return the value of --socket-path; empty where the socket is made otherwise."""
    path = before = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if word in _NO_SOCKET or name in _OTHERWISE:
            return ""
        if before == _OPTION:
            path = word
        elif name == _OPTION and equals:
            path = value
        before = word
    return path
