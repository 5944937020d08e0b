# SPDX-License-Identifier: Apache-2.0
"""How an operation is described to the session: one entry an opcode."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from farwatchd.fuse.request import Request
from farwatchd.wire.fuse import out_header


class Late(NamedTuple):
    """The reply comes later, by this ticket (``farwatchd.virtio_fs.interfaces.LateReplies``)."""

    ticket: int


class Failed(NamedTuple):
    """A reply with this errno, where it is too frequent for an exception."""

    errno: int


#: The reply after its header; as a number, how much of it already is in the writable segments, or
#: PARK.
Done = bytes | int
Reply = Done | Late | Failed
NOT_FOUND = Failed(errno.ENOENT)
EMPTY = b""
#: Less than any room.
SILENT = -out_header.size
#: The reply comes later, from the notification source.
PARK = -1


class Operation(NamedTuple):
    """``args``: bytes of arguments that there must be; ``reply``: bytes that a reply without error
    needs at least.

    Both are checked before ``handler`` is called, so nothing is done whose result could not be
    told. ``reply`` is SILENT for what is never answered, and needs no room for that.
    """

    handler: Callable[[Request], Reply]
    args: int = 0
    reply: int = 0
