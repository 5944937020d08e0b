# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for something to become possible, while others are served: blocking locks.

Each is tried again whenever the guest gives something back, and at intervals, since nobody tells
what other processes of the host give back.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from farwatchd.fuse.reply import Late
from farwatchd.fuse.tickets import Tickets

#: More than wait at once get ENOLCK: each keeps a place in its queue, which must not run out of
#: them.
MAX_WAITING = 64
#: Seconds between attempts.
INTERVAL = 0.05
#: Interrupts kept of requests that have not come yet: they travel on another queue.
_MAX_EARLY = 16

CallLater = Callable[[float, Callable[[], None]], Any]


@dataclass(frozen=True, slots=True)
class _Waiting:
    unique: int
    attempt: Callable[[], None]


class Waits:
    """The requests that wait, in the order in which they came."""

    def __init__(self, call_later: CallLater, tickets: Tickets) -> None:
        self._call_later = call_later
        self._tickets = tickets
        self._waiting: dict[int, _Waiting] = {}
        self._early: deque[int] = deque(maxlen=_MAX_EARLY)
        self._timed = False
        self._poked = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, unique: int, attempt: Callable[[], None]) -> Late:
        """Let the request ``unique`` wait until ``attempt`` does not raise ``BlockingIOError``.

        ``OSError``: ENOLCK when too many wait, EINTR when it has been interrupted already.
        """
        if unique in self._early:
            self._early.remove(unique)
            raise OSError(errno.EINTR, "was interrupted")
        if len(self._waiting) >= MAX_WAITING:
            raise OSError(errno.ENOLCK, f"{MAX_WAITING} requests wait already")
        late = self._tickets.issue(unique, lambda: self._end(late.ticket, errno.EINTR))
        self._waiting[late.ticket] = _Waiting(unique, attempt)
        self._set_timer()
        return late

    def poke(self) -> None:
        """Something was given back: try again soon."""
        if self._waiting and not self._poked:
            self._poked = True
            self._call_later(0, self._try_now)

    def interrupt(self, unique: int) -> None:
        """End the wait of a request with EINTR, or that of one that is still to come."""
        for ticket, waiting in self._waiting.items():
            if waiting.unique == unique:
                self._end(ticket, errno.EINTR)
                return
        self._early.append(unique)

    def clear(self) -> None:
        """End all waits with EINTR: the guest begins anew."""
        self._early.clear()
        for ticket in list(self._waiting):
            self._end(ticket, errno.EINTR)

    def _try_now(self) -> None:
        self._poked = False
        for ticket, waiting in list(self._waiting.items()):
            try:
                waiting.attempt()
            except BlockingIOError:
                continue
            except OSError as error:
                self._end(ticket, error.errno or errno.EIO)
            else:
                self._end(ticket, 0)

    def _try_in_time(self) -> None:
        self._timed = False
        self._try_now()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._waiting and not self._timed:
            self._timed = True
            self._call_later(INTERVAL, self._try_in_time)

    def _end(self, ticket: int, error: int) -> None:
        del self._waiting[ticket]
        self._tickets.answer(ticket, error)
