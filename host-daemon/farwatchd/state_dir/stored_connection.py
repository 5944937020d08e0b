# SPDX-License-Identifier: Apache-2.0
"""Keeps the VMM's connection in the descriptor store: ``ConnectionRecord``."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

from farwatchd.handover.channel import HandoverError
from farwatchd.state_dir.descriptor_store import DescriptorStore
from farwatchd.state_dir.in_flight import InFlight
from farwatchd.vhost_user.server import Server
from farwatchd.wire.state import (
    NONE,
    Descriptors,
    ReceivedDescriptors,
    ServerState,
    State,
    StateError,
)
from farwatchd.wire.state_codec import decode, encode

_log = logging.getLogger(__name__)


class StoredConnection:
    """The copy of the connection. ``in_flight``: says whether a message was being handled."""

    def __init__(self, store: DescriptorStore, in_flight: InFlight) -> None:
        self._store: DescriptorStore | None = store
        self._ended_ns = 0
        self._in_flight = in_flight

    def begin(self) -> None:
        """Record that a message may be read; see ``ConnectionRecord``."""
        self._in_flight.within_message = True

    def update(self, state: State, fds: Descriptors) -> None:
        """Record what the connection has led to; see ``ConnectionRecord``."""
        self._keep(encode(state), fds.fds)

    def end(self) -> None:
        """Record that no message is half read; see ``ConnectionRecord``."""
        self._in_flight.within_message = False

    def forget(self) -> None:
        """Record that there is no connection; see ``ConnectionRecord``."""
        self._keep(b"", [])
        self._in_flight.within_message = False
        self._in_flight.clear()

    def leave_alone(self) -> None:
        """Leave what is stored: this daemon has it from the one that it replaces."""
        for fd in self._take()[1]:
            os.close(fd)

    @property
    def ended_ns(self) -> int:
        """When the former daemon had ended at the latest, since the epoch; 0 if that is unknown."""
        return self._ended_ns

    def restore(self, server: Server) -> bool:
        """Have the paused ``server`` serve the connection of a former daemon; return if it does."""
        data, fds = self._take()
        if not fds:
            return False
        if server.connected:
            # By a socket that was inherited: another VMM's.
            for fd in fds:
                os.close(fd)
            return False
        received = ReceivedDescriptors(fds)
        with socket.socket(fileno=os.dup(fds[0])) as connection:
            try:
                if self._in_flight.damaged:
                    raise StateError("the table of its requests is damaged, or of another version")
                if self._in_flight.within_message:
                    raise StateError("that one was killed while it handled a message")
                state = decode(data)
                state.server.append(ServerState(NONE, NONE, NONE, NONE, NONE))
                server.restore_state(state, received)
            except (StateError, OSError, ValueError) as error:
                _log.error(
                    "the connection of a former daemon to the VMM is of no use: %s; the VMM has to"
                    " connect again",
                    error,
                )
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                received.close()
                self._keep(b"", [])
                self.end()
                return False
        received.close()
        return True

    def _take(self) -> tuple[bytes, list[int]]:
        assert self._store is not None
        try:
            stored = self._store.take()
        except HandoverError as error:
            self._fail(error)
            return b"", []
        self._ended_ns = stored.ended_ns
        return stored.data, stored.fds

    def _keep(self, data: bytes, fds: list[int]) -> None:
        if self._store is None:
            return
        try:
            self._store.keep(data, fds)
        except HandoverError as error:
            self._fail(error)

    def _fail(self, error: HandoverError) -> None:
        _log.error(
            "the VMM's connection cannot be kept any more: %s; if this daemon is killed, the VMM"
            " has to connect again",
            error,
        )
        self._store = None
