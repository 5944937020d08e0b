# SPDX-License-Identifier: Apache-2.0
"""How an operation is described to the session: one entry an opcode."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from farwatchd.fuse.request import Request


class Late(NamedTuple):
    """The reply comes later, by this ticket (``farwatchd.vhost_user.interfaces.LateReplies``)."""

    ticket: int


#: The reply after its header; as a number, how much of it already is in the writable segments, or PARK.
Done = bytes | bytearray | int
Reply = Done | Late
EMPTY = b""
#: The reply comes later, from the notification source.
PARK = -1


class Operation(NamedTuple):
    """``args``: bytes of arguments that there must be; ``reply``: bytes that a reply without error needs at least.

    Both are checked before ``handler`` is called, so nothing is done whose result could not be told.
    """

    handler: Callable[[Request], Reply]
    args: int = 0
    reply: int = 0
