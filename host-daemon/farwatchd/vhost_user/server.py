# SPDX-License-Identifier: Apache-2.0
"""Where front ends come from: a listening UNIX socket, made here or inherited, or one connected
descriptor."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import DeviceModel
from farwatchd.vhost_user.connection import Connection

log = logging.getLogger(__name__)

#: Bytes of a UNIX socket's path (``sun_path`` without its NUL).
MAX_PATH_BYTES = 107


class ListenError(Exception):
    """No front end can be expected there. The text is one line for the user."""


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """Make a listening socket at ``path`` with permission bits ``mode``; ``ListenError`` when that
    is impossible.

    The socket of a daemon that has died is replaced, that of a living one is not.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ListenError(
            f"socket path {path} is longer than {MAX_PATH_BYTES} bytes: choose a shorter one"
        )
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(old_mask)
    return listener


def inherit(fd: int) -> socket.socket:
    """Take over an inherited UNIX stream socket, listening or connected; ``ListenError`` when
    ``fd`` is none."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"descriptor {fd} is not an open socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ListenError(f"descriptor {fd} is not a UNIX stream socket")
    os.set_inheritable(fd, False)
    return sock


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


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"cannot use socket path {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"{path} exists and is not a socket: choose another socket path")
    # A socket of another type cannot connect: a living daemon does not notice, yet the error tells
    # that it lives.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        result = probe.connect_ex(os.fspath(path))
    if result in (errno.EPROTOTYPE, 0):
        raise ListenError(
            f"another daemon listens on {path}: stop it or choose another socket path"
        )
    if result != errno.ECONNREFUSED:
        raise ListenError(f"cannot use socket path {path}: {os.strerror(result)}")
    log.info("replacing the socket %s of a daemon that has gone", path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ListenError(f"cannot replace the socket {path}: {error.strerror}") from error
