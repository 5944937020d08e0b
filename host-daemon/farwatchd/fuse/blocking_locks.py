# SPDX-License-Identifier: Apache-2.0
"""Pending blocking locks: SETLKW requests that wait for another owner, while others are served.

Each is retried whenever the guest releases something. Linux does not notify the daemon when another
process releases a lock, so pending locks are also retried at intervals. On a remote file system an
attempt is deferred until the server answers, and there is no other one meanwhile.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from farwatchd.fuse.filesystem import OperationDeferred
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.wire.state import InterruptState

#: More requests get ENOLCK: each pending one occupies its queue, which must not fill up. A server
#: that does not answer is asked as often: each question has descriptors.
MAX_PENDING = 64
#: Seconds between attempts.
RETRY_INTERVAL = 0.05
#: Interrupts of requests that have not arrived yet: they come by another queue.
_MAX_EARLY_INTERRUPTS = 16

CallLater = Callable[[float, Callable[[], None]], Any]
#: Runs a call in any thread, then another one in the loop, with its result.
RunThen = Callable[[Callable[[], Any], Callable[[Any], None]], None]


def _run_now(call: Callable[[], Any], then: Callable[[Any], None]) -> None:
    then(call())


@dataclass(eq=False)
class _PendingLock:
    """A request: ``attempt`` takes the lock. ``asking``: until a server answers."""

    attempt: Callable[[], None]
    run_then: RunThen
    asking: bool = False


class BlockingLocks:
    """The pending requests, in the order in which they arrived."""

    def __init__(self, call_later: CallLater) -> None:
        """``call_later(seconds, callback)`` calls back in the event loop's thread."""
        self._call_later = call_later
        self._pending: dict[DeferredReply, _PendingLock] = {}
        #: Questions that servers have not answered, those of interrupted requests too.
        self._asked = 0
        self._early: deque[int] = deque(maxlen=_MAX_EARLY_INTERRUPTS)
        self._retry_timer = False
        self._retry_soon = False
        #: Whether no lock may be taken: another daemon may have the session.
        self.suspended = False

    def __len__(self) -> int:
        return len(self._pending)

    def add(
        self,
        unique: int,
        attempt: Callable[[], None],
        deferred: OperationDeferred | None = None,
        run_then: RunThen = _run_now,
    ) -> DeferredReply:
        """Defer the reply to the request ``unique`` until ``attempt`` succeeds.

        ``attempt`` raises ``BlockingIOError`` while another owner has the lock; any other result is
        the reply, unless it is ``OperationDeferred``, as the first one was with ``deferred``:
        ``run_then`` runs that. ``OSError``: ENOLCK when too many are pending, EINTR when the
        request has been interrupted already.
        """
        if unique in self._early:
            self._early.remove(unique)
            raise OSError(errno.EINTR, "was interrupted")
        if len(self._pending) >= MAX_PENDING:
            raise OSError(errno.ENOLCK, f"{MAX_PENDING} requests are pending already")
        if deferred is not None and self._asked >= MAX_PENDING:
            raise OSError(errno.ENOLCK, f"{MAX_PENDING} requests wait for a server already")
        reply = DeferredReply(unique)
        pending = self._pending[reply] = _PendingLock(attempt, run_then, deferred is not None)
        if deferred is not None:
            self._asked += 1
            # After this request is known to be deferred: without threads the answer comes now.
            self._call_later(0, partial(self._ask, reply, pending, deferred))
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
        for reply, pending in list(self._pending.items()):
            if not pending.asking:
                self._try(reply, pending, pending.attempt)

    def _try(self, reply: DeferredReply, pending: _PendingLock, attempt: Callable[[], Any]) -> None:
        if self.suspended:
            return
        try:
            attempt()
        except BlockingIOError:
            return
        except OperationDeferred as deferred:
            self._asked += 1
            self._ask(reply, pending, deferred)
        except OSError as error:
            self._complete(reply, error.errno or errno.EIO)
        else:
            self._complete(reply, 0)

    def _ask(
        self, reply: DeferredReply, pending: _PendingLock, deferred: OperationDeferred
    ) -> None:
        pending.asking = True
        pending.run_then(deferred.task, partial(self._answered, reply, pending, deferred.complete))

    def _answered(
        self,
        reply: DeferredReply,
        pending: _PendingLock,
        complete: Callable[[Any], Any],
        result: Any,
    ) -> None:
        """Take the lock, unless the request was interrupted or the session has ended."""
        pending.asking = False
        self._asked -= 1
        if reply in self._pending:
            self._try(reply, pending, partial(complete, result))

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
