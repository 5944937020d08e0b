# SPDX-License-Identifier: Apache-2.0
"""The socket that the daemon serves on, with the file of its process id beside it."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from farwatchd.config import UserError, number, option
from farwatchd.socket_cleanup import removed_at_end
from farwatchd.vhost_user.listen import ListenError, inherit, listen


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options of the socket. Exactly one of ``socket_path`` and ``fd`` is set."""

    socket_path: Path | None = option(
        "socket-path", "listen on this UNIX socket", None, Path, metavar="SOCKET"
    )
    fd: int | None = option(
        "fd",
        "use this inherited socket, listening or connected",
        None,
        number(0, 1 << 20),
        metavar="FD",
    )
    socket_group: str | None = option(
        "socket-group", "let the members of this group connect", None, metavar="GROUP"
    )
    keep_serving: bool = option(
        "keep-serving",
        "serve the next VMM when one has disconnected (default: end then, as virtiofsd does)",
        False,
    )

    @property
    def name(self) -> str:
        """The socket, as log lines name it."""
        return str(self.socket_path) if self.socket_path is not None else f"descriptor {self.fd}"


@contextlib.contextmanager
def open_socket(options: SocketOptions) -> Iterator[socket.socket]:
    """Make or inherit the socket to serve on; ``UserError``.

    A socket that is made here is removed at the end of the block, with the pid file.
    """
    try:
        if options.socket_path is None:
            assert options.fd is not None
            yield inherit(options.fd)
            return
        mode = 0o600 if options.socket_group is None else 0o660
        path = options.socket_path.absolute()
        sock = listen(path, mode)
    except ListenError as error:
        raise UserError(str(error)) from error
    pid_file = path.with_name(f"{path.name}.pid")
    with contextlib.closing(sock), _pid_file(path, pid_file):
        if options.socket_group is not None:
            _give_to_group(path, options.socket_group)
        yield sock


@contextlib.contextmanager
def _pid_file(path: Path, pid_file: Path) -> Iterator[None]:
    """Write the process id where virtiofsd does; remove it and the socket at the end."""
    try:
        pid_file.unlink(missing_ok=True)
        with os.fdopen(
            os.open(pid_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w"
        ) as stream:
            stream.write(f"{os.getpid()}\n")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"cannot write {pid_file}: {error.strerror}") from error
    with removed_at_end([path, pid_file]):
        yield


def _give_to_group(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise UserError(f"--socket-group {group}: there is no such group") from None
    except OSError as error:
        raise UserError(f"--socket-group {group}: {error.strerror}") from error
