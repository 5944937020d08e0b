# SPDX-License-Identifier: Apache-2.0
"""Threads for tasks that may wait for a disk or a network while other requests are served.

Everything else is faster without: to pass a task to a thread and back costs more than most
requests.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from farwatchd.fuse.filesystem import DataTask, OperationDeferred, RemoteTask, Task
from farwatchd.fuse.metrics import Durations
from farwatchd.fuse.reply import EMPTY, Reply
from farwatchd.fuse.request import Request
from farwatchd.linux.syscalls import unshare_fs
from farwatchd.virtio_fs.interfaces import DeferredReply

_log = logging.getLogger(__name__)

#: Makes the payload of a task's reply from the task's result.
Encode = Callable[[Any], bytes]
#: Reads and writes that each thread gets: one that runs, and the next one. Only these have memory
#: of the daemon for their data, until the loop has sent their replies.
_TRANSFERS_PER_THREAD = 2
#: How often threads that wait are replaced by others: so often may a guest leave while its share
#: hangs.
_MAX_REPLACED = 16
#: Seconds that the end waits for what has no reply.
_ASIDE_LIMIT = 0.5
#: As large as most requests of Linux: larger data gets memory of its own.
_BUFFER_SIZE = 1 << 20


def _call(callback: Callable[[], None]) -> None:
    callback()


def _unchanged(result: Any) -> Any:
    return result


class _Buffers:
    """Memory for the data of tasks, which is the daemon's alone; for any thread.

    It is used again: to get a new page from the kernel takes longer than to read one.
    """

    def __init__(self, count: int) -> None:
        """Keep at most ``count`` buffers that are not used."""
        self._free: deque[memoryview] = deque(maxlen=count)

    def get(self, size: int) -> memoryview:
        """Return ``size`` bytes or more, aligned for O_DIRECT."""
        if size <= _BUFFER_SIZE:
            with contextlib.suppress(IndexError):
                return self._free.pop()
        return memoryview(mmap.mmap(-1, max(size, _BUFFER_SIZE)))

    def put(self, buffer: memoryview) -> None:
        """Take back a buffer that nothing uses any more."""
        if len(buffer) == _BUFFER_SIZE:
            self._free.append(buffer)


class _Read:
    """A read into memory of the daemon."""

    def __init__(self, task: DataTask, size: int, buffers: _Buffers) -> None:
        self._task = task
        self._size = size
        self._buffers = buffers
        self.buffer: memoryview | None = None

    def __call__(self) -> memoryview:
        """Read, in any thread."""
        self.buffer = self._buffers.get(self._size)
        return self.buffer[: self._task([self.buffer[: self._size]])]


class _Write:
    """A write of the guest's memory, until that is copied."""

    def __init__(self, task: DataTask, views: Sequence[memoryview], buffers: _Buffers) -> None:
        self._task = task
        self._views = views
        self._buffers = buffers
        self.buffer: memoryview | None = None

    def detach(self) -> None:
        """Copy the data, so that the guest's memory is not used any more."""
        if self.buffer is not None:
            return
        size = sum(map(len, self._views))
        self.buffer = self._buffers.get(size)
        position = 0
        for view in self._views:
            self.buffer[position : position + len(view)] = view
            position += len(view)
        self._views = [self.buffer[:size]]

    def __call__(self) -> int:
        """Write, in any thread."""
        assert self.buffer is not None
        return self._task(self._views)


class _Executor:
    """Threads, and the reads and writes for them."""

    def __init__(self, threads: int) -> None:
        self._most = _TRANSFERS_PER_THREAD * threads
        self.pool = ThreadPoolExecutor(threads, "worker")
        #: Those that have no memory for their data yet, and those that a thread gets next.
        self.queued: deque[DeferredReply] = deque()
        self.begun: set[DeferredReply] = set()

    @property
    def may_begin(self) -> bool:
        """Return whether one more read or write may have memory for its data."""
        return len(self.begun) < self._most


@dataclass(slots=True, eq=False)
class _PendingTask:
    executor: _Executor
    #: What a thread calls.
    call: Callable[[], Any]
    nodeid: int
    #: Makes the payload of what ``complete`` returns.
    encode: Callable[[Any], bytes | memoryview]
    #: By the monotonic clock.
    began_ns: int
    #: Called with the result of ``call``, by the loop.
    complete: Callable[[Any], Any]
    #: The same where it has data.
    data: _Read | _Write | None = None
    #: None until a thread is free.
    future: Future[Any] | None = None

    def drop(self) -> None:
        """Release what the task has."""
        self.call = _nothing
        self.complete = _unchanged
        self.data = None


class ThreadPool:
    """Runs at most ``threads`` tasks concurrently; without threads each task runs immediately.

    As many more threads run what waits for another process: for a file server, or the holder of a
    lease. So what hangs there does not keep tasks of local disks waiting.

    All methods are for the event loop's thread, to which ``call_from_thread`` passes callbacks. The
    queues of the requests bound the number of pending tasks.

    No thread has a reference to the guest's memory: a task that the host does not finish outlives
    the guest, and its memory has another use then. What a task reads is copied into the guest's
    memory with the reply, what it writes is copied before a thread has it.
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
        self._local = _Executor(threads) if threads else None
        self._remote = _Executor(threads) if threads else None
        self._call_from_thread = call_from_thread
        self._tasks: dict[DeferredReply, _PendingTask] = {}
        self._buffers = _Buffers(2 * _TRANSFERS_PER_THREAD * threads)
        #: What runs without a reply.
        self._aside: set[Future[Any]] = set()
        self._replaced = 0
        #: Whether a task may set the umask(2): each thread has one of its own.
        self.own_umask = True
        self.durations = Durations()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self) -> None:
        """Create all threads now; ``RuntimeError`` when the system refuses one."""
        if self._local is not None and self._remote is not None:
            _start(self._local, self._threads)
            self.own_umask = _start(self._remote, self._threads)

    def run_aside(self, call: Callable[[], None]) -> None:
        """Run ``call``, which may wait for a server, without a reply; now if there is no thread."""
        if self._remote is None:
            call()
            return
        future = self._remote.pool.submit(_run_aside, call)
        self._aside.add(future)
        future.add_done_callback(
            lambda done: self._call_from_thread(partial(self._aside.discard, done))
        )

    def run_then(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run ``call``, which may wait for a server and raises nothing.

        The loop calls ``then`` with its result. Without threads both run now.
        """
        if self._remote is None:
            then(call())
            return
        future = self._remote.pool.submit(call)
        self._aside.add(future)

        def finish() -> None:
            self._aside.discard(future)
            then(future.result())

        future.add_done_callback(lambda _: self._call_from_thread(finish))

    def submit(self, request: Request, task: Task, encode: Encode) -> Reply:
        """Run ``task``; return the reply that ``encode`` makes of its result, now or deferred.

        A task's ``OSError`` becomes a reply with its errno. ``start`` has created the threads: a
        pool without them may find no resources, which is a ``RuntimeError``.
        """
        executor = self._executor(task)
        return encode(task()) if executor is None else self._submit(executor, request, task, encode)

    def submit_read(self, request: Request, task: DataTask, size: int) -> Reply:
        """Run a task that reads ``size`` bytes for ``request``, as ``submit`` does."""
        executor = self._executor(task)
        if executor is None:
            return task(request.target(size))
        read = _Read(task, size, self._buffers)
        return self._submit(executor, request, read, _unchanged, read)

    def submit_write(
        self, request: Request, task: DataTask, views: Sequence[memoryview], encode: Encode
    ) -> Reply:
        """Run a task that writes ``views`` of the guest's memory, as ``submit`` does."""
        executor = self._executor(task)
        if executor is None:
            return encode(task(views))
        write = _Write(task, views, self._buffers)
        return self._submit(executor, request, write, encode, write)

    def submit_deferred(
        self, request: Request, deferred: OperationDeferred, encode: Callable[[Any], bytes]
    ) -> Reply:
        """Run the task of a deferred operation as ``submit`` does, and those that follow it.

        ``encode`` gets the operation's result.
        """
        if self._remote is None:
            return encode(deferred.wait())
        return self._submit(
            self._remote, request, deferred.task, encode, complete=deferred.complete
        )

    def run(
        self, request: Request, encode: Callable[[Any], bytes], operation: Any, *args: Any
    ) -> Reply:
        """Perform ``operation(*args)``; return the reply that ``encode`` makes of its result.

        If it is deferred, as ``submit_deferred`` does.
        """
        try:
            return encode(operation(*args))
        except OperationDeferred as deferred:
            return self.submit_deferred(request, deferred, encode)

    def detach_memory(self) -> None:
        """Copy what pending tasks need of the guest's memory.

        Nothing uses that memory afterwards but the replies, by the rings that run then.
        """
        for executor in self._executors():
            for reply in executor.queued:
                data = self._tasks[reply].data
                if isinstance(data, _Write):
                    data.detach()

    def drain(self, timeout: float) -> bool:
        """Wait for all tasks, at most ``timeout`` seconds, and reply to their requests.

        Return false if some have not finished: no thread uses the guest's memory, and the tasks
        that wait for a thread do not from now on.
        """
        deadline = time.monotonic() + timeout
        while self._tasks:
            futures = [task.future for task in self._tasks.values() if task.future is not None]
            left = max(0.0, deadline - time.monotonic())
            if not wait(futures, left, FIRST_COMPLETED).done:
                break
            for reply, task in list(self._tasks.items()):
                if task.future is not None and task.future.done():
                    self._finish(reply)
        self.detach_memory()
        return not self._tasks

    def settle(self, timeout: float) -> bool:
        """Wait for all tasks as ``drain`` does, and for what has no reply.

        Return false if something has not finished.
        """
        deadline = time.monotonic() + timeout
        drained = self.drain(timeout)
        left = max(0.0, deadline - time.monotonic())
        return drained and not wait(self._aside, left).not_done

    def cancel(self, timeout: float) -> None:
        """Cancel the tasks that have not begun, with EINTR, and wait for the others.

        A task that takes longer than ``timeout`` seconds keeps its reply pending.
        """
        for executor in self._executors():
            executor.queued.clear()
        for reply, task in list(self._tasks.items()):
            if task.future is None or task.future.cancel():
                del self._tasks[reply]
                task.executor.begun.discard(reply)
                self._complete(reply, task, errno.EINTR)
                # To drop it closes descriptors, which may wait for a server.
                self.run_aside(task.drop)
        if not self.drain(timeout):
            _log.warning(
                "%d requests still wait for a disk or a network; they go on without their guest",
                len(self._tasks),
            )
            self._replace_threads()

    def _replace_threads(self) -> None:
        """Leave the threads that wait to their tasks, and create others for the next guest."""
        if self._replaced >= _MAX_REPLACED:
            return
        executors = {task.executor for task in self._tasks.values()}
        try:
            if self._local in executors:
                self._local = self._replacement(self._local)
            if self._remote in executors:
                self._remote = self._replacement(self._remote)
        except RuntimeError as error:
            _log.warning("threads that wait cannot be replaced: %s", error)
            return
        self._replaced += 1

    def _replacement(self, executor: _Executor) -> _Executor:
        new = _Executor(self._threads)
        _start(new, self._threads)
        # Its threads end when they have done what is queued for them.
        executor.pool.shutdown(wait=False)
        return new

    def close(self, timeout: float) -> bool:
        """Cancel tasks as ``cancel`` does and end the threads.

        Return false if some tasks still run: then only ``os._exit`` ends the process.
        """
        self._replaced = _MAX_REPLACED
        self.cancel(timeout)
        wait(self._aside, max(timeout, _ASIDE_LIMIT))
        ended = not self._tasks and all(future.done() for future in self._aside)
        for executor in self._executors():
            executor.pool.shutdown(wait=ended)
        return ended

    def _executors(self) -> list[_Executor]:
        return [executor for executor in (self._local, self._remote) if executor is not None]

    def _executor(self, task: object) -> _Executor | None:
        return self._remote if isinstance(task, RemoteTask) else self._local

    def _submit(
        self,
        executor: _Executor,
        request: Request,
        call: Callable[[], Any],
        encode: Callable[[Any], bytes | memoryview],
        data: _Read | _Write | None = None,
        complete: Callable[[Any], Any] = _unchanged,
    ) -> Reply:
        reply = DeferredReply(request.unique, in_thread=True)
        task = _PendingTask(
            executor, call, request.nodeid, encode, time.monotonic_ns(), complete, data
        )
        if data is None or executor.may_begin:
            self._start(reply, task)
        else:
            self._tasks[reply] = task
            executor.queued.append(reply)
        return reply

    def _start(self, reply: DeferredReply, task: _PendingTask) -> None:
        """Have a thread run a task; ``OSError`` when there is no memory for its data."""
        if isinstance(task.data, _Write):
            task.data.detach()
        if task.data is not None:
            task.executor.begun.add(reply)
        task.future = task.executor.pool.submit(task.call)
        # Before the callback, which may come immediately.
        self._tasks[reply] = task
        task.future.add_done_callback(
            lambda _: self._call_from_thread(partial(self._finish, reply))
        )

    def _start_next(self, executor: _Executor) -> None:
        """Have threads run the reads and writes that have waited longest."""
        while executor.queued and executor.may_begin:
            reply = executor.queued.popleft()
            task = self._tasks.pop(reply)
            try:
                self._start(reply, task)
            except OSError as error:
                self._complete(reply, task, error.errno or errno.EIO)

    def _finish(self, reply: DeferredReply) -> None:
        """Reply to a request whose task is done."""
        task = self._tasks.pop(reply, None)
        if task is None:
            return
        task.executor.begun.discard(reply)
        self._start_next(task.executor)
        assert task.future is not None
        try:
            payload = task.encode(task.complete(task.future.result()))
        except OperationDeferred as following:
            if task.executor not in self._executors():
                # Its guest has left, and others have replaced its threads.
                self._complete(reply, task, errno.EINTR)
                return
            task.call, task.complete, task.future = following.task, following.complete, None
            self._start(reply, task)
        except OSError as error:
            _log.debug("a task on node %d: %s", task.nodeid, error.strerror or error)
            self._complete(reply, task, error.errno or errno.EIO)
        except Exception:
            _log.exception("bug: a task failed")
            self._complete(reply, task, errno.EIO)
        else:
            self._complete(reply, task, 0, payload)

    def _complete(
        self,
        reply: DeferredReply,
        task: _PendingTask,
        error: int,
        payload: bytes | memoryview = EMPTY,
    ) -> None:
        self.durations.add(time.monotonic_ns() - task.began_ns)
        reply.complete(error, payload)
        if task.data is not None and task.data.buffer is not None:
            self._buffers.put(task.data.buffer)


def _start(executor: _Executor, threads: int) -> bool:
    """Create all threads of an executor; ``RuntimeError`` when the system refuses one.

    Return whether each has a umask of its own. Some containers refuse that.
    """
    # No thread is free for another's task before all have started.
    barrier = threading.Barrier(threads)

    def enter() -> bool:
        try:
            unshare_fs()
        except OSError:
            return False
        finally:
            barrier.wait()
        return True

    try:
        started = [executor.pool.submit(enter) for _ in range(threads)]
    except RuntimeError:
        barrier.abort()
        executor.pool.shutdown(wait=False)
        raise
    return all([future.result() for future in started])


def _run_aside(call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        _log.debug("a task without a reply: %s", error.strerror)


def _nothing() -> None:
    """Do nothing: the task was dropped."""


def nothing(_: object) -> bytes:
    """Encode the reply of a task that has no result."""
    return EMPTY
