# SPDX-License-Identifier: Apache-2.0
"""The part of an operation that runs in any thread: system calls on descriptors of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from farwatchd.fuse.filesystem import DataTask, OperationDeferred, RemoteTask, Task
from farwatchd.linux.libc import failure
from farwatchd.passthrough.procfd import as_systems_limit

T = TypeVar("T")


class _OnFiles(Generic[T]):
    """A task with descriptors of its own, which it closes when it has run, or is dropped before."""

    __slots__ = ("_call", "_fds")

    def __init__(self, call: Callable[..., T], fds: Sequence[int]) -> None:
        self._call = call
        self._fds: list[int] = []
        try:
            for fd in fds:
                self._fds.append(os.dup(fd))
        except OSError as error:
            self._close()
            raise as_systems_limit(error) from None

    def __call__(self, *args: Any) -> T:
        try:
            return self._call(*args, *self._fds)
        finally:
            self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def on_files(call: Callable[..., T], *fds: int) -> Callable[[], T]:
    """Return a task that calls ``call`` with duplicates of ``fds``, and has its result.

    ``fds`` may be closed before the task runs. The duplicates are closed when the task has run, or
    is dropped before. ENFILE: no descriptor is left.
    """
    return _OnFiles(call, fds)


def on_files_with_data(call: Callable[..., int], *fds: int) -> DataTask:
    """Return a task as ``on_files`` does, which passes its argument to ``call`` before ``fds``."""
    return _OnFiles(call, fds)


class Owned:
    """A descriptor that a task has opened. It is closed with this, unless it is taken."""

    def __init__(self, fd: int, close: Callable[[int], None] = os.close) -> None:
        """Take ownership of ``fd``; ``close`` closes it."""
        self.fd = fd
        self._close = close

    def take(self) -> int:
        """Return the descriptor, which the caller owns from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def __del__(self) -> None:
        if self.fd >= 0:
            self._close(self.fd)


def deferred(call: Callable[..., T], complete: Callable[[T], Any], *fds: int) -> OperationDeferred:
    """Return what an operation raises that has to wait in ``call``, with duplicates of ``fds``.

    ``call`` runs in any thread, ``complete`` gets its result. An ``OSError`` of ``call`` is the
    operation's.
    """

    def caught(*duplicates: int) -> T | OSError:
        try:
            return call(*duplicates)
        except OSError as error:
            # Without the frames that it came through, and what they refer to.
            return failure(error.errno or errno.EIO)

    def completed(result: T | OSError) -> Any:
        if isinstance(result, OSError):
            raise result
        return complete(result)

    return OperationDeferred(on_files(caught, *fds), completed)


def sync(fd: int, remote: bool, datasync: bool) -> Task:
    """Return a task that writes a file or a directory to its disk.

    ``remote``: it is on a remote file system. ``datasync``: without metadata that reading the data
    does not need.
    """

    def call(duplicates: int) -> int:
        if datasync:
            os.fdatasync(duplicates)
        else:
            os.fsync(duplicates)
        return 0

    task = on_files(call, fd)
    return RemoteTask(task) if remote else task
