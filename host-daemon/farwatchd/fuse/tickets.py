# SPDX-License-Identifier: Apache-2.0
"""Requests whose replies come later: each has a ticket, by which the transport knows where its
reply goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from farwatchd.fuse.reply import Done, Late
from farwatchd.wire.fuse import out_header

_log = logging.getLogger(__name__)

_REPLY_SIZE = out_header.size


class _Open(NamedTuple):
    unique: int
    give_up: Callable[[], None]


class Tickets:
    """The tickets given out and not used yet. Implements the transport's ``LateReplies``. For the
    loop's thread."""

    def __init__(self) -> None:
        self._answer: Callable[[int, bytes, int], None] | None = None
        self._open: dict[int, _Open] = {}
        self._last = 0

    def set_answer(self, answer: Callable[[int, bytes, int], None]) -> None:
        """Where replies go; see ``LateReplies``."""
        self._answer = answer

    def issue(self, unique: int, give_up: Callable[[], None]) -> Late:
        """A ticket for the request ``unique``; ``give_up`` has it answered at once, when it cannot
        be later."""
        self._last += 1
        self._open[self._last] = _Open(unique, give_up)
        return Late(self._last)

    def answer(self, ticket: int, error: int = 0, reply: Done = b"") -> None:
        """Reply with an errno, or with what a handler would return."""
        unique = self._open.pop(ticket).unique
        if self._answer is None:
            _log.error("bug: a request that waited cannot be answered")
            return
        payload, placed = (b"", reply) if isinstance(reply, int) else (reply, 0)
        length = _REPLY_SIZE + len(payload) + placed
        self._answer(ticket, out_header.pack_values(length, -error, unique) + payload, length)

    def abandon(self, ticket: int) -> None:
        """Answer now, if that has not been done: afterwards there is no way to do it."""
        held = self._open.get(ticket)
        if held is not None:
            held.give_up()
