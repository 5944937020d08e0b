# SPDX-License-Identifier: Apache-2.0
"""The daemon's event loop, for one thread.

It calls back for readable descriptors, for timers, and at the next turn.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable

from farwatchd.linux.libc import NANOSECONDS
from farwatchd.linux.timerfd import TimerFd

_log = logging.getLogger(__name__)

Callback = Callable[[], None]

#: A descriptor whose callback fails this often in a row would spin forever: the failure then ends
#: ``run``.
MAX_FAILURES_IN_A_ROW = 10
#: Descriptors served in one turn; a larger array takes longer to allocate.
MAX_READY = 16


class Loop:
    """Calls back when descriptors are readable (or hung up) and when timers are due.

    All methods but ``stop`` and ``call_from_thread`` belong to the loop's thread. Readiness is
    level-triggered but for ``add_eventfd``, and a callback may be called with nothing to read (its
    descriptor's number was closed and reused in the same turn): it must not block.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readiness = select.poll()
        self._readiness.register(self._epoll.fileno(), select.POLLIN)
        self._callbacks: dict[int, Callback] = {}
        self._failures: dict[int, int] = {}
        #: When (ns), in which order, what.
        self._timers: list[tuple[int, int, Callback]] = []
        # Not a limit of each wait: that would cost every turn, and timers are rare.
        self._timer = TimerFd()
        self._serial = itertools.count()
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        #: Whether the loop has a wakeup to read for ``_from_threads``.
        self._wakeup_pending = False
        self._stopping = False
        self._wakeup_fd, self._wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.add(self._wakeup_fd, self._drain_wake)
        self.add(self._timer.fileno(), self._call_due)

    def add(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``fd`` is readable or hung up.

        ``OSError`` when ``fd`` cannot be waited for.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def add_writable(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``fd`` is writable, or nobody reads at its other end.

        ``OSError`` when ``fd`` cannot be waited for.
        """
        self._epoll.register(fd, select.EPOLLOUT)
        self._callbacks[fd] = callback

    def add_eventfd(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` when the eventfd ``fd`` is written, and at first if it has been.

        The eventfd need not be read.

        A write while the callback runs calls it again. ``OSError`` when ``fd`` cannot be waited
        for.
        """
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``, which must still be open; ``KeyError`` when it is not watched."""
        del self._callbacks[fd]
        self._failures.pop(fd, None)
        self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callback) -> None:
        """Call ``callback`` once, ``seconds`` from now at the earliest."""
        due = time.monotonic_ns() + int(seconds * NANOSECONDS)
        entry = (due, next(self._serial), callback)
        heapq.heappush(self._timers, entry)
        if self._timers[0] is entry:
            self._timer.set(due)

    def call_soon(self, callback: Callback) -> None:
        """Call ``callback`` once, at the next turn of the loop, after the ready descriptors."""
        self._soon.append(callback)

    def stop(self) -> None:
        """Make ``run`` return after the current turn; may be called from other threads."""
        self._stopping = True
        self._wake_up()

    def abandon(self) -> None:
        """Make ``run`` return, and call nothing any more, in this turn either.

        Call it from a descriptor's callback or a timer.
        """
        self._callbacks.clear()
        self._timers.clear()
        self._soon.clear()
        self.stop()

    def call_from_thread(self, callback: Callback) -> None:
        """Call ``callback`` once, soon, in the loop's thread."""
        self._from_threads.append(callback)
        # One wakeup serves all callbacks that are there when it is read.
        if not self._wakeup_pending:
            self._wakeup_pending = True
            self._wake_up()

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` was called, and ``run`` has not returned yet."""
        return self._stopping

    def has_work(self) -> bool:
        """Return whether a turn would find something to do now, without doing it."""
        return bool(self._soon or self._readiness.poll(0))

    def run(self) -> None:
        """Serve until ``stop``, which may have been called before."""
        while not self._stopping:
            self.run_once(None)
        self._stopping = False

    def run_once(self, timeout: float | None) -> bool:
        """Do one turn, waiting at most ``timeout`` seconds (``None``: no limit).

        Return whether anything was called.
        """
        ready = self._epoll.poll(0 if self._soon else timeout, MAX_READY)
        for fd, _ in ready:
            callback = self._callbacks.get(fd)
            if callback is None:
                continue
            try:
                callback()
            except Exception:
                self._count_failure(fd)
            else:
                if self._failures:
                    self._failures.pop(fd, None)
        # Only the present ones: a callback that defers itself again must not starve the
        # descriptors.
        deferred = len(self._soon)
        for _ in range(deferred):
            self._call(self._soon.popleft())
        return bool(ready or deferred)

    def close(self) -> None:
        """Release the loop's own descriptors; those that were added stay open."""
        self._callbacks.clear()
        self._epoll.close()
        self._timer.close()
        os.close(self._wake_fd)
        os.close(self._wakeup_fd)

    def _call_due(self) -> None:
        """Call what is due by now, and set the timer for the next call."""
        now = time.monotonic_ns()
        while self._timers and self._timers[0][0] <= now:
            self._call(heapq.heappop(self._timers)[2])
        self._timer.set(self._timers[0][0] if self._timers else None)

    def _count_failure(self, fd: int) -> None:
        """Log the exception that is being handled, or raise it again if it repeats."""
        failures = self._failures.get(fd, 0) + 1
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise
        self._failures[fd] = failures
        _log.exception("bug: the callback of descriptor %d failed", fd)

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception:
            _log.exception("bug: a deferred callback failed")

    def _wake_up(self) -> None:
        # A full pipe ends the wait as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_fd, b"\0")

    def _drain_wake(self) -> None:
        try:
            os.read(self._wakeup_fd, 4096)
        except BlockingIOError:
            _log.debug("a wakeup without a byte to read")
        # Before the callbacks are counted: what comes later wakes the loop again.
        self._wakeup_pending = False
        for _ in range(len(self._from_threads)):
            self._call(self._from_threads.popleft())
