# SPDX-License-Identifier: Apache-2.0
"""The sockets that the daemon serves on, with the file of its process id beside the first."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from farwatchd.config import UserError, number, option
from farwatchd.early_socket import EarlySocket
from farwatchd.socket_cleanup import Cleanup, removed_at_end
from farwatchd.vhost_user.listen import ListenError, inherit, listen

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options of the sockets. Exactly one of ``socket_path`` and ``fd`` is set."""

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

    metrics_socket: Path | None = option(
        "metrics-socket",
        "answer with metrics in Prometheus' text format on this UNIX socket",
        None,
        Path,
        metavar="SOCKET",
    )

    replace: bool = option(
        "replace",
        "replace the daemon that listens on --socket-path, while its guest goes on",
        False,
    )

    @property
    def name(self) -> str:
        """The socket, as log lines name it."""
        return str(self.socket_path) if self.socket_path is not None else f"descriptor {self.fd}"


class Sockets(NamedTuple):
    """The sockets to serve on: for VMMs, for readers of the metrics, and for successors.

    With ``predecessor``, a connection to the running daemon, that one's are used.
    """

    front_end: socket.socket | None = None
    metrics: socket.socket | None = None
    handover: socket.socket | None = None
    predecessor: socket.socket | None = None
    cleanup: Cleanup = Cleanup()


@contextlib.contextmanager
def open_sockets(options: SocketOptions, early: EarlySocket | None = None) -> Iterator[Sockets]:
    """Make or inherit the sockets to serve on; ``UserError``. ``early`` was made before, if any.

    Sockets that are made here are removed at the end of the block, with the pid file.
    """
    if options.replace:
        with _replaced(options) as sockets:
            yield sockets
        return
    with contextlib.ExitStack() as stack:
        made: list[Path] = []
        # Before the helper that removes them at the end, whatever happens.
        stack.callback(_remove, made)
        try:
            if options.socket_path is None:
                assert options.fd is not None
                front_end = stack.enter_context(inherit(options.fd))
            else:
                front_end = stack.enter_context(_make(options.socket_path, options, made, early))
                made.append(_write_pid_file(made[0], os.getpid()))
            handover = None
            if options.socket_path is not None:
                handover = _listen_for_successors(handover_path(options.socket_path), made)
            if handover is not None:
                stack.enter_context(handover)
            metrics = None
            if options.metrics_socket is not None:
                metrics = stack.enter_context(listen(options.metrics_socket.absolute()))
                made.append(options.metrics_socket.absolute())
        except ListenError as error:
            raise UserError(str(error)) from error
        cleanup = Cleanup()
        if made:
            cleanup = stack.enter_context(removed_at_end(made))
            stack.callback(made.clear)
        if early is not None:
            early.release_signals()
        yield Sockets(front_end, metrics, handover, cleanup=cleanup)


def handover_path(socket_path: Path) -> Path:
    """Return where a daemon on this socket expects its successor."""
    path = socket_path.absolute()
    return path.with_name(f"{path.name}.handover")


def _listen_for_successors(path: Path, made: list[Path]) -> socket.socket | None:
    """Return the socket for successors; None, with a line in the log, where it cannot be made."""
    try:
        sock = listen(path, 0o600, socket.SOCK_SEQPACKET)
    except ListenError as error:
        _log.info("no successor can replace this daemon (--replace): %s", error)
        return None
    made.append(path)
    return sock


@contextlib.contextmanager
def _replaced(options: SocketOptions) -> Iterator[Sockets]:
    """Connect to the running daemon; its files are this one's from ``Cleanup.arm`` on."""
    assert options.socket_path is not None
    path = options.socket_path.absolute()
    handover = handover_path(path)
    files = [path, _pid_file(path), handover]
    if options.metrics_socket is not None:
        files.append(options.metrics_socket.absolute())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(os.fspath(handover))
        except OSError as error:
            raise UserError(
                f"--replace: no daemon can be reached at {handover}: {error.strerror}; start"
                " without --replace"
            ) from error
        with removed_at_end(files, partial(_replace_pid_file, path, os.getpid())) as cleanup:
            yield Sockets(predecessor=sock, cleanup=cleanup)


def _make(
    path: Path, options: SocketOptions, made: list[Path], early: EarlySocket | None
) -> socket.socket:
    if early is not None and options.socket_group is None:
        descriptor = early.take(os.fspath(path.absolute()))
        if descriptor is not None:
            made.append(path.absolute())
            return socket.socket(fileno=descriptor)
        # It is at another path, or at this one by another name.
        early.discard()
    sock = listen(path.absolute(), 0o600 if options.socket_group is None else 0o660)
    made.append(path.absolute())
    if options.socket_group is not None:
        _give_to_group(made[0], options.socket_group)
    return sock


def _pid_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.pid")


def _write_pid_file(path: Path, pid: int) -> Path:
    """Write the process id where virtiofsd does, and return where that is."""
    pid_file = _pid_file(path)
    try:
        pid_file.unlink(missing_ok=True)
        with os.fdopen(
            os.open(pid_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w"
        ) as stream:
            stream.write(f"{pid}\n")
    except OSError as error:
        raise UserError(f"cannot write {pid_file}: {error.strerror}") from error
    return pid_file


def _replace_pid_file(path: Path, pid: int) -> None:
    """Write the process id of a successor. Its guest goes on without the file, too."""
    with contextlib.suppress(UserError):
        _write_pid_file(path, pid)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _give_to_group(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise UserError(f"--socket-group {group}: there is no such group") from None
    except OSError as error:
        raise UserError(f"--socket-group {group}: {error.strerror}") from error
