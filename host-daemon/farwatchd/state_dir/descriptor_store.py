# SPDX-License-Identifier: Apache-2.0
"""A process that has the VMM's connection, its memory and its event descriptors, too.

So they stay when the daemon is killed: the VMM notices nothing, and need not connect again. The
next daemon gets them. The process ends when the VMM has left, or when the daemon has ended without
one. It listens in the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from farwatchd.handover.channel import HandoverChannel, HandoverError, Kind

NAME = "descriptors"
#: Bytes of a state beside the descriptors.
MAX_DATA = 60000
#: Seconds for descriptors that are being sent.
_LIMIT = 5.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLLRDHUP = 0x2000
#: When the last daemon ended, before the data.
_ENDED = struct.Struct("<Q")


class Stored(NamedTuple):
    """What a former daemon has left, empty for nothing.

    ``ended_ns``: when that one had ended at the latest, since the epoch; 0 if that is unknown.
    """

    data: bytes
    fds: list[int]
    ended_ns: int


class DescriptorStore:
    """The daemon's connection to the process. Owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = HandoverChannel(sock)

    def take(self) -> Stored:
        """Return what a former daemon has left; ``HandoverError``.

        The caller owns the descriptors. Call it first, and once.
        """
        fds, data = self._channel.receive_all_fds(_LIMIT)
        if len(data) < _ENDED.size:
            raise HandoverError("the process that has it is of another version")
        return Stored(data[_ENDED.size :], fds, *_ENDED.unpack_from(data))

    def keep(self, data: bytes, fds: Sequence[int]) -> None:
        """Have the process keep duplicates of these and nothing else; ``HandoverError``.

        The first one is the VMM's connection. Without any it keeps nothing.
        """
        if len(data) > MAX_DATA:
            raise HandoverError("the VMM has too many memory regions")
        self._channel.send_all_fds(fds)
        self._channel.send(Kind.STATE, data)


def connect(directory: int) -> DescriptorStore:
    """Connect to the process that listens in a directory; start one if there is none.

    ``OSError``.
    """
    # By a path that is not too long for a socket.
    path = f"/proc/self/fd/{directory}/{NAME}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            sock.connect(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise
            _start(directory, path)
            sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return DescriptorStore(sock)


def _start(directory: int, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        old_mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(old_mask)
        listener.listen()
        child = os.fork()
        if not child:
            try:
                os.setsid()
                # Nobody's child: nobody waits for it, and it is not ended with the daemon.
                if not os.fork():
                    _StoreProcess(_detach(listener)).serve()
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def _detach(listener: socket.socket) -> socket.socket:
    """Hold nothing of the daemon but the listening socket; return it."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    fd = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 3)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    fd = os.dup2(fd, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    own = socket.socket(fileno=fd)
    # Whoever connects sees the process that has called this last.
    own.listen()
    return own


class _StoreProcess:
    """The process: serves a daemon, or two while one replaces the other."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._channels: list[HandoverChannel] = []
        self._data = b""
        self._fds: list[int] = []
        self._ended_ns = 0

    def serve(self) -> None:
        """Serve until there is neither a daemon nor a VMM."""
        self._accept()
        while self._channels or self._fds:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            for channel in self._channels:
                poll.register(channel.fileno(), select.POLLIN)
            if self._fds and not self._channels:
                poll.register(self._fds[0], _POLLRDHUP)
            ready = {fd for fd, _ in poll.poll()}
            if self._fds and not self._channels and self._fds[0] in ready:
                return
            sending = [each for each in self._channels if each.fileno() in ready]
            for channel in sending:
                self._receive(channel)
            # The next daemon gets all that the former one has sent before it ended.
            if not sending and self._listener.fileno() in ready:
                self._accept()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        channel = HandoverChannel(sock)
        try:
            channel.send_all_fds(self._fds)
            channel.send(Kind.STATE, _ENDED.pack(self._ended_ns) + self._data)
        except HandoverError:
            channel.close()
            return
        self._channels.append(channel)

    def _receive(self, channel: HandoverChannel) -> None:
        try:
            fds, data = channel.receive_all_fds(_LIMIT)
        except HandoverError:
            # It has ended, or does not say what it should.
            self._ended_ns = time.time_ns()
            self._channels.remove(channel)
            channel.close()
            return
        for fd in self._fds:
            os.close(fd)
        self._data, self._fds = data, fds
