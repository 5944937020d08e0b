# SPDX-License-Identifier: Apache-2.0
"""Messages with descriptors between a running daemon and its successor.

::

    successor                    predecessor
    HELLO: version, options  ->
                             <-  WELCOME: its namespaces
    READY: a file            ->
                             <-  DESCRIPTORS, several times; STATE: it is in the file
    TAKEN                    ->
                             <-  GO
    ACK                      ->

Either side ends it with REFUSED and a line for the user, or by closing the connection. Until ACK
has come the predecessor goes on with the session if the connection ends; before GO has come the
successor does nothing that the guest or the host could notice.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from farwatchd.linux import scm_rights

#: Bytes of a message.
_MAX_MESSAGE = 1 << 16
#: Descriptors of a message: ``SCM_MAX_FD``.
MAX_FDS = 253
#: Descriptors of a state.
_MAX_ALL_FDS = 1 << 21


class HandoverError(Exception):
    """The session is not handed over. The text is one line."""


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1
    WELCOME = 2
    READY = 3
    DESCRIPTORS = 4
    STATE = 5
    TAKEN = 6
    GO = 7
    ACK = 8
    REFUSED = 9


class HandoverMessage(NamedTuple):
    """A message, whose receiver owns its descriptors."""

    kind: Kind
    data: bytes
    fds: list[int]


def encode_hello(version: int, options: Mapping[str, str]) -> bytes:
    """Return the data of HELLO."""
    return "\0".join([str(version), *(f"{name}={text}" for name, text in options.items())]).encode()


def decode_hello(data: bytes) -> tuple[str, dict[str, str]]:
    """Return version and options of HELLO, as far as there are any."""
    version, *options = data.decode(errors="replace").split("\0")
    return version, dict(
        (name, text) for name, _, text in (each.partition("=") for each in options)
    )


class HandoverChannel:
    """One end of the connection. Owns its socket, of the type SOCK_SEQPACKET."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def send(
        self, kind: Kind, data: bytes = b"", fds: Sequence[int] = (), timeout: float = 1.0
    ) -> None:
        """Send a message within ``timeout`` seconds; ``HandoverError``."""
        try:
            self._sock.settimeout(timeout)
            socket.send_fds(self._sock, [bytes([kind]) + data], list(fds))
        except OSError as error:
            # It may have sent its reason before.
            self.receive(0)
            raise HandoverError(f"the other daemon has ended or hangs ({error})") from error

    def send_all_fds(self, fds: Sequence[int]) -> None:
        """Send descriptors in as many messages as they need; ``HandoverError``."""
        for start in range(0, len(fds), MAX_FDS):
            self.send(Kind.DESCRIPTORS, b"", fds[start : start + MAX_FDS], timeout=5.0)

    def receive(self, timeout: float | None) -> HandoverMessage | None:
        """Return the next message, None if none has come within ``timeout`` seconds.

        ``HandoverError``: the connection has ended, or the message is a refusal, or no message.
        """
        try:
            self._sock.settimeout(timeout)
            data, fds, flags = scm_rights.receive(self._sock, _MAX_MESSAGE, MAX_FDS)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError as error:
            raise HandoverError(f"the connection has ended ({error})") from error
        try:
            if not data:
                raise HandoverError("the other daemon has ended")
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise HandoverError("no descriptor is free; raise --rlimit-nofile")
            try:
                kind = Kind(data[0])
            except ValueError:
                raise HandoverError(f"a message of unknown kind {data[0]}") from None
            if kind is Kind.REFUSED:
                raise HandoverError(data[1:].decode(errors="replace"))
        except HandoverError:
            _close_all(fds)
            raise
        return HandoverMessage(kind, data[1:], fds)

    def expect(self, kind: Kind, timeout: float) -> HandoverMessage:
        """Return the next message, which must be of this kind; ``HandoverError``."""
        message = self.receive(timeout)
        if message is None:
            raise HandoverError(f"the other daemon has not answered within {timeout:g} s")
        if message.kind is not kind:
            _close_all(message.fds)
            raise HandoverError(f"{message.kind.name} has come instead of {kind.name}")
        return message

    def receive_all_fds(self, timeout: float) -> tuple[list[int], bytes]:
        """Return all descriptors up to STATE, which the caller owns, and its data.

        ``HandoverError``.
        """
        fds: list[int] = []
        try:
            while True:
                message = self.receive(timeout)
                if message is None:
                    raise HandoverError(f"the state has not come within {timeout:g} s")
                fds += message.fds
                if message.kind is Kind.STATE:
                    return fds, message.data
                if message.kind is not Kind.DESCRIPTORS or len(fds) > _MAX_ALL_FDS:
                    raise HandoverError(f"{message.kind.name} has come instead of the state")
        except HandoverError:
            _close_all(fds)
            raise


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        socket.close(fd)
