# SPDX-License-Identifier: Apache-2.0
"""Threads for what may have to wait for a disk or a network, so that other requests are served
meanwhile.

All else is faster without: a thread that takes over and gives back costs more than most requests.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple

from farwatchd.fuse.filesystem import Job
from farwatchd.fuse.reply import EMPTY, Done, Reply
from farwatchd.fuse.request import Request
from farwatchd.fuse.tickets import Tickets

_log = logging.getLogger(__name__)

#: What the reply of a job's request is, from the number that the job gave.
Encode = Callable[[int], Done]


def _call(callback: Callable[[], None]) -> None:
    callback()


class _Running(NamedTuple):
    future: Future[int]
    nodeid: int
    encode: Encode


class Workers:
    """At most ``threads`` jobs at a time, others wait for their turn; without threads each is done
    at once.

    All methods are for the loop's thread, which ``call_from_thread`` leads back to. The requests
    that wait are bounded by the queues that they came by.
    """

    def __init__(
        self,
        threads: int = 0,
        tickets: Tickets | None = None,
        call_from_thread: Callable[[Callable[[], None]], None] = _call,
    ) -> None:
        """No thread is made before ``start``, or the first job: it may do what its maker may do
        then."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "worker") if threads else None
        self._tickets = tickets if tickets is not None else Tickets()
        self._call_from_thread = call_from_thread
        self._running: dict[int, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self) -> None:
        """Make all threads now; ``RuntimeError`` when the system does not let them be made."""
        if self._pool is None:
            return
        # None of them is free for another's job before all are there.
        barrier = threading.Barrier(self._threads)
        try:
            started = [self._pool.submit(barrier.wait) for _ in range(self._threads)]
        except RuntimeError:
            barrier.abort()
            raise
        wait(started)

    def do(self, request: Request, job: Job, encode: Encode) -> Reply:
        """The reply that ``encode`` makes of what ``job`` gives, or Late. A job's ``OSError`` is
        its errno's reply."""
        if self._pool is None:
            return encode(job())
        future = self._pool.submit(job)
        late = self._tickets.issue(request.unique, lambda: self._finish(late.ticket))
        self._running[late.ticket] = _Running(future, request.nodeid, encode)
        future.add_done_callback(
            lambda _: self._call_from_thread(partial(self._finish, late.ticket))
        )
        return late

    def finish(self) -> None:
        """Wait for all jobs, and answer their requests."""
        for ticket in list(self._running):
            self._finish(ticket)

    def close(self) -> None:
        """Wait for all jobs and end the threads."""
        self.finish()
        if self._pool is not None:
            self._pool.shutdown()

    def _finish(self, ticket: int) -> None:
        """Answer a request, after waiting for its job if that still runs."""
        running = self._running.pop(ticket, None)
        if running is None:
            return
        try:
            reply = running.encode(running.future.result())
        except OSError as error:
            _log.debug("a job on node %d: %s", running.nodeid, error.strerror or error)
            self._tickets.answer(ticket, error.errno or errno.EIO)
        except Exception:
            _log.exception("bug: a job failed")
            self._tickets.answer(ticket, errno.EIO)
        else:
            self._tickets.answer(ticket, 0, reply)


def nothing(_: int) -> bytes:
    """``Encode`` for a reply that says only that it is done."""
    return EMPTY
