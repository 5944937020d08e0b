# SPDX-License-Identifier: Apache-2.0
"""The new daemon's side: takes the session of a running daemon."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from farwatchd.config import UserError
from farwatchd.handover.channel import HandoverChannel, HandoverError, Kind, encode_hello
from farwatchd.wire.state import VERSION, ReceivedDescriptors, State, StateError
from farwatchd.wire.state_codec import MAX_SIZE, decode

#: Seconds that the running daemon has for an answer: it may be busy with a request.
_LIMIT = 60.0


class Successor:
    """Replaces the daemon at the other end of a connected socket, which is owned."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = HandoverChannel(sock)

    def greet(self, options: Mapping[str, str]) -> list[int]:
        """Return descriptors of the running daemon's namespaces, which the caller owns.

        ``options`` must be those of the running daemon. ``UserError``: it does not hand over.
        """
        try:
            self._channel.send(Kind.HELLO, encode_hello(VERSION, options))
            return self._channel.expect(Kind.WELCOME, _LIMIT).fds
        except HandoverError as error:
            raise _not_replaced(error) from error

    def take(self) -> tuple[State, ReceivedDescriptors]:
        """Return the session's state; the guest waits from now on. ``UserError``."""
        try:
            file = os.memfd_create("state", os.MFD_CLOEXEC)
            try:
                self._channel.send(Kind.READY, b"", [file])
                fds, size = self._channel.receive_all_fds(_LIMIT)
                return decode(_read(file, size)), ReceivedDescriptors(fds)
            finally:
                os.close(file)
        except (HandoverError, StateError, OSError) as error:
            self.refuse(f"the new daemon cannot use the state: {error}")
            raise _not_replaced(error) from error

    def refuse(self, reason: str) -> None:
        """Leave the session to the running daemon."""
        try:
            self._channel.send(Kind.REFUSED, reason.encode()[:4096])
        except HandoverError:
            # The end of the connection says it as well.
            return
        finally:
            self._channel.close()

    def commit(self) -> None:
        """Say that the session was taken; after that it is this process's. ``UserError``."""
        try:
            self._channel.send(Kind.TAKEN)
            self._channel.expect(Kind.GO, _LIMIT)
        except HandoverError as error:
            self._channel.close()
            raise _not_replaced(error) from error
        # If that fails the other daemon was killed; it serves only after it sees this end closed.
        with contextlib.suppress(HandoverError):
            self._channel.send(Kind.ACK)
        self._channel.close()


def _read(file: int, size: bytes) -> bytes:
    if not size.isdigit() or len(size) > len(str(MAX_SIZE)) or int(size) > MAX_SIZE:
        raise StateError("its size is impossible")
    parts = []
    position = 0
    while position < int(size) and (part := os.pread(file, int(size) - position, position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def _not_replaced(error: Exception) -> UserError:
    return UserError(f"--replace: {error}")
