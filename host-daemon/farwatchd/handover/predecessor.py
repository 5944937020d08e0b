# SPDX-License-Identifier: Apache-2.0
"""The running daemon's side: hands its session over to a successor that connects."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from functools import partial

from farwatchd.acceptor import Acceptor
from farwatchd.event_loop import Loop
from farwatchd.handover.channel import (
    HandoverChannel,
    HandoverError,
    HandoverMessage,
    Kind,
    decode_hello,
)
from farwatchd.handover.parts import Parts
from farwatchd.socket_cleanup import Cleanup
from farwatchd.wire.state import VERSION, StateError
from farwatchd.wire.state_codec import encode

_log = logging.getLogger(__name__)

#: Seconds that a successor has to enter its sandbox, and then to restore the state. The guest waits
#: for the latter only.
_READY_LIMIT = 60.0
_TAKEN_LIMIT = 30.0
#: Seconds between two looks at whether this daemon is to end.
_SLICE = 0.1
#: How often, and after how many seconds, to retry while a front-end's message has come in part.
_RETRIES = 100
_RETRY_DELAY = 0.01
_PEER = struct.Struct("=iII")


class Predecessor:
    """Serves one successor at a time; for the event loop's thread.

    ``handed_over``: the session belongs to another process now, and must not be touched.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        metrics: socket.socket | None,
        parts: Parts,
        options: Mapping[str, str],
        namespaces: Sequence[int],
        cleanup: Cleanup,
        check_user: bool,
    ) -> None:
        """Wait for successors on ``listener``, which stays the caller's.

        ``options``: those that a successor must have, too. ``namespaces``: what it enters.
        ``check_user``: refuse another user's process; False where ids are mapped, and the socket's
        mode alone decides.
        """
        self._loop = loop
        self._listener = listener
        self._metrics = metrics
        self._parts = parts
        self._options = dict(options)
        self._namespaces = namespaces
        self._cleanup = cleanup
        self._check_user = check_user
        self._channel: HandoverChannel | None = None
        self._welcomed = False
        self.handed_over = False
        self._acceptor = Acceptor(loop, listener, self._accepted, "a successor")
        self._acceptor.start()

    def _accepted(self, sock: socket.socket) -> None:
        channel = HandoverChannel(sock)
        try:
            if self._check_user:
                _check_peer(sock)
            if self._channel is not None:
                raise HandoverError("another successor is replacing the daemon")
            self._loop.add(channel.fileno(), self._readable)
        except (HandoverError, OSError) as error:
            _refuse(channel, str(error))
            return
        self._channel = channel
        self._welcomed = False
        self._loop.call_later(_READY_LIMIT, partial(self._end_silent, channel))

    def _end_silent(self, channel: HandoverChannel) -> None:
        if self._channel is channel:
            self._end(f"it was not ready within {_READY_LIMIT:g} s")

    def _end(self, reason: str) -> None:
        """End the connection to a successor that does not replace this daemon."""
        channel, self._channel = self._channel, None
        assert channel is not None
        self._loop.remove(channel.fileno())
        _refuse(channel, reason)

    def _readable(self) -> None:
        assert self._channel is not None
        try:
            message = self._channel.receive(0)
            if message is not None:
                self._handle(self._channel, message)
        except (HandoverError, OSError, ValueError) as error:
            self._end(str(error))

    def _handle(self, channel: HandoverChannel, message: HandoverMessage) -> None:
        try:
            if message.kind is Kind.HELLO and not self._welcomed:
                self._check_hello(message.data)
                channel.send(Kind.WELCOME, b"", self._namespaces)
                self._welcomed = True
            elif message.kind is Kind.READY and self._welcomed and len(message.fds) == 1:
                self._begin(channel, message.fds.pop(), _RETRIES)
            else:
                raise HandoverError(f"{message.kind.name} is not expected")
        finally:
            for fd in message.fds:
                os.close(fd)

    def _check_hello(self, data: bytes) -> None:
        version, options = decode_hello(data)
        if version != str(VERSION):
            raise HandoverError(
                f"the running daemon hands over version {VERSION} of its state, the new one takes"
                f" {version}; restart the daemon instead"
            )
        for name, own in self._options.items():
            if options.get(name) != own:
                raise HandoverError(
                    f"--{name} is {own} in the running daemon, and {options.get(name)} in the new"
                    " one; it cannot change while a guest uses the share"
                )

    def _begin(self, channel: HandoverChannel, file: int, retries: int) -> None:
        """Hand over when no message of the front-end has come in part."""
        if self._channel is not channel:
            os.close(file)
            return
        if self._parts.server.within_message and retries:
            again = partial(self._begin, channel, file, retries - 1)
            self._loop.call_later(_RETRY_DELAY, again)
            return
        try:
            if self._parts.server.within_message:
                raise HandoverError("the front-end does not finish a message; try again")
            self._parts.settle()
            self._hand_over(channel, file)
        except (HandoverError, StateError, OSError) as error:
            _log.warning("the successor does not replace this daemon: %s; serving on", error)
            self._end(str(error))
            return
        finally:
            os.close(file)
        _log.info("a successor has replaced this daemon")
        self.handed_over = True
        channel.close()
        # Nothing may touch what is the successor's now: no event, no lock.
        self._loop.abandon()

    def _hand_over(self, channel: HandoverChannel, file: int) -> None:
        """Pass on the session; on ``HandoverError`` and ``StateError`` serve on."""
        began = time.monotonic()
        try:
            self._parts.pause()
            metrics = None if self._metrics is None else self._metrics.fileno()
            state, fds = self._parts.export_state(self._listener.fileno(), metrics)
            data = encode(state)
            try:
                _write(file, data)
            except OSError as error:
                raise HandoverError(f"the state cannot be written: {error.strerror}") from error
            channel.send_all_fds(fds)
            channel.send(Kind.STATE, str(len(data)).encode())
            self._wait_for(channel, Kind.TAKEN, time.monotonic() + _TAKEN_LIMIT)
            # The files belong to the successor from GO on.
            self._cleanup.disarm()
            channel.send(Kind.GO)
            self._wait_for(channel, Kind.ACK, None)
        except BaseException:
            self._cleanup.arm()
            self._parts.resume()
            raise
        _log.debug(
            "%d bytes and %d descriptors were handed over in %.1f ms",
            len(data),
            len(fds),
            (time.monotonic() - began) * 1000,
        )

    def _wait_for(self, channel: HandoverChannel, kind: Kind, deadline: float | None) -> None:
        """Wait for a message; ``HandoverError`` at the deadline, and if this daemon is to end.

        Without a deadline it waits for the message or the end of the connection.
        """
        while True:
            if deadline is not None and (self._loop.is_stopping or time.monotonic() > deadline):
                raise HandoverError(
                    "the running daemon ends"
                    if self._loop.is_stopping
                    else f"the new daemon has not taken the state within {_TAKEN_LIMIT:g} s"
                )
            message = channel.receive(_SLICE)
            if message is None:
                continue
            for fd in message.fds:
                os.close(fd)
            if message.kind is not kind:
                raise HandoverError(f"{message.kind.name} has come instead of {kind.name}")
            return


def _check_peer(sock: socket.socket) -> None:
    """Refuse another user's process; ``HandoverError``, ``OSError``."""
    _pid, uid, _gid = _PEER.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    )
    if uid != os.geteuid():
        raise HandoverError(
            f"the running daemon is user {os.geteuid()}'s, and the new one another user's"
        )


def _refuse(channel: HandoverChannel, reason: str) -> None:
    try:
        channel.send(Kind.REFUSED, reason.encode()[:4096], timeout=0)
    except HandoverError as error:
        _log.debug("a successor gets no answer: %s", error)
    channel.close()


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    position = 0
    while position < len(view):
        position += os.pwrite(file, view[position:], position)
