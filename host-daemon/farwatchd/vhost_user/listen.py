# SPDX-License-Identifier: Apache-2.0
"""Make the socket on which front-ends connect, or take an inherited one.

Imported before the other modules of this package, which take longer to load: it imports none.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from pathlib import Path

_log = logging.getLogger(__name__)

#: Bytes of a UNIX socket's path (``sun_path`` without its NUL).
MAX_PATH_BYTES = 107


class ListenError(Exception):
    """No front-end can be expected there. The text is one line for the user."""


def listen(
    path: Path, mode: int = 0o600, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """Make a listening socket at ``path`` with permission bits ``mode``.

    ``ListenError`` when that is impossible.

    The socket of a daemon that has died is replaced, that of a living one is not.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ListenError(
            f"socket path {path} is longer than {MAX_PATH_BYTES} bytes: choose a shorter one"
        )
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, kind)
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
    """Take ownership of an inherited UNIX stream socket, listening or connected.

    ``ListenError``: ``fd`` is not such a socket.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"descriptor {fd} is not an open socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ListenError(f"descriptor {fd} is not a UNIX stream socket")
    os.set_inheritable(fd, False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"cannot use socket path {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"{path} exists and is not a socket: choose another socket path")
    # A socket of another type cannot connect: a running daemon does not notice, yet the error shows
    # that it lives.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        result = probe.connect_ex(os.fspath(path))
    if result in (errno.EPROTOTYPE, 0):
        raise ListenError(
            f"another daemon listens on {path}: stop it or choose another socket path"
        )
    if result != errno.ECONNREFUSED:
        raise ListenError(f"cannot use socket path {path}: {os.strerror(result)}")
    _log.info("replacing the socket %s of a daemon that has ended", path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ListenError(f"cannot replace the socket {path}: {error.strerror}") from error
