# SPDX-License-Identifier: Apache-2.0
"""Pending blocking locks: SETLKW requests that wait for another owner, while others are served.

Each is retried whenever the guest releases something. Linux does not notify the daemon when another
process releases a lock, so pending locks are also retried at intervals.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any

from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.wire.state import InterruptState

#: More requests get ENOLCK: each pending one occupies its queue, which must not fill up.
MAX_PENDING = 64
#: Seconds between attempts.
RETRY_INTERVAL = 0.05
#: Interrupts of requests that have not arrived yet: they come by another queue.
_MAX_EARLY_INTERRUPTS = 16

CallLater = Callable[[float, Callable[[], None]], Any]


class BlockingLocks:
    """The pending requests, in the order in which they arrived."""

    def __init__(self, call_later: CallLater) -> None:
        """``call_later(seconds, callback)`` calls back in the event loop's thread."""
        self._call_later = call_later
        self._pending: dict[DeferredReply, Callable[[], None]] = {}
        self._early: deque[int] = deque(maxlen=_MAX_EARLY_INTERRUPTS)
        self._retry_timer = False
        self._retry_soon = False

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, unique: int, attempt: Callable[[], None]) -> DeferredReply:
        """Defer the reply to the request ``unique`` until ``attempt`` succeeds.

        ``attempt`` raises ``BlockingIOError`` while another owner has the lock; any other result is
        the reply. ``OSError``: ENOLCK when too many are pending, EINTR when the request has been
        interrupted already.
        """
        if unique in self._early:
            self._early.remove(unique)
            raise OSError(errno.EINTR, "was interrupted")
        if len(self._pending) >= MAX_PENDING:
            raise OSError(errno.ENOLCK, f"{MAX_PENDING} requests are pending already")
        reply = DeferredReply(unique)
        self._pending[reply] = attempt
        self._set_timer()
        return reply

    def released(self) -> None:
        """Retry soon: a lock may have been released."""
        if self._pending and not self._retry_soon:
            self._retry_soon = True
            self._call_later(0, self._retry)

    def interrupt(self, unique: int) -> None:
        """Complete a request with EINTR, also one that has not arrived yet."""
        for reply in self._pending:
            if reply.unique == unique:
                self._complete(reply, errno.EINTR)
                return
        self._early.append(unique)

    def export_state(self) -> list[InterruptState]:
        """Return the early interrupts. Pending requests are handled again where they go."""
        return [InterruptState(unique) for unique in self._early]

    def restore_state(self, records: list[InterruptState]) -> None:
        """Add the early interrupts."""
        self._early.extend(each.unique for each in records)

    def clear(self) -> None:
        """Complete all requests with EINTR: the session ends."""
        self._early.clear()
        for reply in list(self._pending):
            self._complete(reply, errno.EINTR)

    def _retry(self) -> None:
        self._retry_soon = False
        for reply, attempt in list(self._pending.items()):
            try:
                attempt()
            except BlockingIOError:
                continue
            except OSError as error:
                self._complete(reply, error.errno or errno.EIO)
            else:
                self._complete(reply, 0)

    def _retry_in_time(self) -> None:
        self._retry_timer = False
        self._retry()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._pending and not self._retry_timer:
            self._retry_timer = True
            self._call_later(RETRY_INTERVAL, self._retry_in_time)

    def _complete(self, reply: DeferredReply, error: int) -> None:
        del self._pending[reply]
        reply.complete(error)
