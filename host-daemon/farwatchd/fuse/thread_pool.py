# SPDX-License-Identifier: Apache-2.0
"""Threads for tasks that may wait for a disk or a network while other requests are served.

Everything else is faster without: to pass a task to a thread and back costs more than most
requests.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple

from farwatchd.fuse.filesystem import OperationDeferred, Task
from farwatchd.fuse.metrics import Durations
from farwatchd.fuse.reply import EMPTY, Payload, Reply
from farwatchd.fuse.request import Request
from farwatchd.virtio_fs.interfaces import DeferredReply

_log = logging.getLogger(__name__)

#: Makes the payload of a task's reply from the task's result.
Encode = Callable[[int], Payload]


def _call(callback: Callable[[], None]) -> None:
    callback()


class _PendingTask(NamedTuple):
    future: Future[int]
    nodeid: int
    encode: Encode
    #: By the monotonic clock.
    began_ns: int


class ThreadPool:
    """Runs at most ``threads`` tasks concurrently; without threads each task runs immediately.

    All methods are for the event loop's thread, to which ``call_from_thread`` passes callbacks. The
    queues of the requests bound the number of pending tasks.
    """

    def __init__(
        self,
        threads: int = 0,
        call_from_thread: Callable[[Callable[[], None]], None] = _call,
    ) -> None:
        """Create a pool.

        No thread is created before ``start``, or the first task: a thread has the privileges that
        its creator has at that moment.
        """
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "worker") if threads else None
        self._call_from_thread = call_from_thread
        self._tasks: dict[DeferredReply, _PendingTask] = {}
        self.durations = Durations()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self) -> None:
        """Create all threads now; ``RuntimeError`` when the system refuses one."""
        if self._pool is None:
            return
        # No thread is free for another's task before all have started.
        barrier = threading.Barrier(self._threads)
        try:
            started = [self._pool.submit(barrier.wait) for _ in range(self._threads)]
        except RuntimeError:
            barrier.abort()
            raise
        wait(started)

    def submit(self, request: Request, task: Task, encode: Encode) -> Reply:
        """Run ``task``; return the reply that ``encode`` makes of its result, now or deferred.

        A task's ``OSError`` becomes a reply with its errno.
        """
        if self._pool is None:
            return encode(task())
        try:
            future = self._pool.submit(task)
        except RuntimeError as error:
            raise OSError(errno.EIO, f"no thread for a task: {error}") from error
        reply = DeferredReply(request.unique, in_thread=True)
        self._tasks[reply] = _PendingTask(future, request.nodeid, encode, time.monotonic_ns())
        future.add_done_callback(lambda _: self._call_from_thread(partial(self._finish, reply)))
        return reply

    def submit_deferred(
        self, request: Request, deferred: OperationDeferred, encode: Callable[[Any], Payload]
    ) -> Reply:
        """Run the task of a deferred operation as ``submit`` does.

        ``encode`` gets the operation's result.
        """
        return self.submit(request, deferred.task, lambda number: encode(deferred.complete(number)))

    def drain(self, timeout: float) -> bool:
        """Wait for all tasks, at most ``timeout`` seconds, and reply to their requests.

        Return false if some have not finished.
        """
        deadline = time.monotonic() + timeout
        for reply, task in list(self._tasks.items()):
            done, _ = wait([task.future], max(0.0, deadline - time.monotonic()))
            if done:
                self._finish(reply)
        return not self._tasks

    def cancel(self, timeout: float) -> None:
        """Cancel the tasks that have not begun, with EINTR, and wait for the others.

        A task that takes longer than ``timeout`` seconds keeps its reply pending, since it may use
        the request's memory.
        """
        for reply, task in list(self._tasks.items()):
            if task.future.cancel():
                self._finish(reply)
        if not self.drain(timeout):
            _log.warning(
                "%d requests still wait for a disk or a network; they go on without their guest",
                len(self._tasks),
            )

    def close(self, timeout: float) -> bool:
        """Cancel tasks as ``cancel`` does and end the threads.

        Return false if some tasks still run: then only ``os._exit`` ends the process.
        """
        self.cancel(timeout)
        if self._pool is not None:
            self._pool.shutdown(wait=not self._tasks)
        return not self._tasks

    def _finish(self, reply: DeferredReply) -> None:
        """Reply to a request whose task is done or cancelled."""
        task = self._tasks.pop(reply, None)
        if task is None:
            return
        self.durations.add(time.monotonic_ns() - task.began_ns)
        if task.future.cancelled():
            reply.complete(errno.EINTR)
            return
        try:
            payload = task.encode(task.future.result())
        except OSError as error:
            _log.debug("a task on node %d: %s", task.nodeid, error.strerror or error)
            reply.complete(error.errno or errno.EIO)
        except Exception:
            _log.exception("bug: a task failed")
            reply.complete(errno.EIO)
        else:
            reply.complete(0, payload)


def nothing(_: int) -> bytes:
    """Encode the reply of a task that has no result."""
    return EMPTY
