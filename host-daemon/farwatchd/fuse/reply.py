# SPDX-License-Identifier: Apache-2.0
"""The reply types of a request handler, and how a handler is registered with the session."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from farwatchd.fuse.request import Request
from farwatchd.virtio_fs.interfaces import DeferredReply


class ErrorReply(NamedTuple):
    """A reply with this errno, where errors are too frequent for an exception."""

    errno: int


#: A reply's payload: bytes, or the length of what the writable memory already holds.
Payload = bytes | int
#: None is for requests that have no reply.
Reply = Payload | DeferredReply | ErrorReply | None
NOT_FOUND = ErrorReply(errno.ENOENT)
EMPTY = b""


@dataclass(slots=True)
class Handler:
    """How the requests of one opcode are handled, and how many there were.

    The sizes are checked before ``handle`` is called, so that it has no effects whose result does
    not fit the reply.
    """

    handle: Callable[[Request], Reply]
    #: Bytes of arguments needed.
    args_size: int = 0
    #: Bytes that the payload of a reply without error needs at least.
    reply_size: int = 0
    #: False for requests that have no reply, not even an error.
    has_reply: bool = True
    #: Counted by the session, and by the native part.
    requests: int = 0
    errors: int = 0
