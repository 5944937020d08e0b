# SPDX-License-Identifier: Apache-2.0
"""Decodes and encodes vhost-user messages, without I/O.

Bytes and descriptors become messages, and replies become bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from farwatchd.wire.vhost_user import (
    MAX_PAYLOAD,
    MAX_TABLE_REGIONS,
    VERSION,
    VERSION_MASK,
    FrontEndRequest,
    HeaderFlag,
    header,
)

#: Descriptors that one message may carry.
MAX_FDS = MAX_TABLE_REGIONS


class ProtocolError(Exception):
    """The front-end broke the protocol: the connection ends. The text is for the log."""


@dataclass(slots=True)
class Message:
    """One message. It owns its descriptors until they are taken; ``close_fds`` closes the rest."""

    request: FrontEndRequest
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)
    #: Descriptors are missing: the process or the host had none free.
    truncated: bool = False

    @property
    def need_reply(self) -> bool:
        """Whether the front-end asks for an acknowledgement."""
        return bool(self.flags & HeaderFlag.NEED_REPLY)

    def take_fd(self) -> int | None:
        """Return the first descriptor, which the caller owns from then on; ``None`` without one."""
        return self.fds.pop(0) if self.fds else None

    def close_fds(self) -> None:
        """Close the descriptors that were not taken."""
        close_all(self.fds)
        self.fds.clear()


class MessageDecoder:
    """Assembles messages.

    Feed it at most ``wanted`` bytes at a time: descriptors then stay with their message.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[FrontEndRequest, int, int] | None = None
        self._fds: list[int] = []
        self._truncated = False

    @property
    def wanted(self) -> int:
        """Bytes missing to the end of the present header or payload, always above 0."""
        end = header.size if self._head is None else self._head[2]
        return end - len(self._buffer)

    @property
    def within_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._buffer) or self._head is not None

    def feed(self, data: bytes, fds: Sequence[int] = (), truncated: bool = False) -> Message | None:
        """Take bytes and the descriptors that came with them, at most ``MAX_FDS``.

        Return the message that they complete, if any.
        """
        self._fds.extend(fds)
        self._truncated |= truncated
        if fds and self.within_message:
            raise ProtocolError("descriptors came in the middle of a message")
        self._buffer += data
        if self.wanted > 0:
            return None
        if self._head is None:
            self._head = self._decode_header()
            self._buffer.clear()
            if self.wanted > 0:
                return None
        request, flags, _ = self._head
        message = Message(request, flags, bytes(self._buffer), self._fds, self._truncated)
        self._buffer.clear()
        self._head, self._fds, self._truncated = None, [], False
        return message

    def close(self) -> None:
        """Close the descriptors of an unfinished message."""
        close_all(self._fds)
        self._fds.clear()

    def _decode_header(self) -> tuple[FrontEndRequest, int, int]:
        head = header.unpack_from(self._buffer)
        if head.flags & VERSION_MASK != VERSION:
            raise ProtocolError(
                f"message of protocol version {head.flags & VERSION_MASK}, {VERSION} is supported"
            )
        if head.flags & HeaderFlag.REPLY:
            raise ProtocolError(f"message {head.request} is marked as a reply")
        if head.size > MAX_PAYLOAD:
            raise ProtocolError(
                f"message {head.request} announces {head.size} bytes, at most {MAX_PAYLOAD} are"
                " allowed"
            )
        try:
            return FrontEndRequest(head.request), head.flags, head.size
        except ValueError:
            raise ProtocolError(f"message of unknown type {head.request}") from None


def encode_reply(request: FrontEndRequest, payload: bytes) -> bytes:
    """Return the reply to ``request``."""
    return header.pack_values(request, VERSION | HeaderFlag.REPLY, len(payload)) + payload


def close_all(fds: Sequence[int]) -> None:
    """Close every descriptor of ``fds``."""
    for fd in fds:
        os.close(fd)
