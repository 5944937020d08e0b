# SPDX-License-Identifier: Apache-2.0
"""The part of an operation that runs in any thread: system calls on descriptors of its own."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from farwatchd.fuse.filesystem import DataTask, OperationDeferred, RemoteTask, Task
from farwatchd.linux.libc import failure
from farwatchd.passthrough.procfd import own_limit_as_systems

T = TypeVar("T")


def on_files(call: Callable[..., T], *fds: int) -> Callable[[], T]:
    """Return a task that calls ``call`` with duplicates of ``fds``, and has its result.

    ``fds`` may be closed before the task runs. The duplicates are closed when the task has run, or
    is dropped before. ENFILE: no descriptor is left.
    """
    duplicates = _duplicates(fds)

    def task() -> T:
        try:
            return call(*duplicates)
        finally:
            close()

    close = _closing(task, duplicates)
    return task


def on_files_with_data(call: Callable[..., int], *fds: int) -> DataTask:
    """Return a task as ``on_files`` does, which passes its argument to ``call`` before ``fds``."""
    duplicates = _duplicates(fds)

    def task(data: Sequence[memoryview]) -> int:
        try:
            return call(data, *duplicates)
        finally:
            close()

    close = _closing(task, duplicates)
    return task


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


def _duplicates(fds: Sequence[int]) -> list[int]:
    duplicates: list[int] = []
    try:
        with own_limit_as_systems():
            for fd in fds:
                duplicates.append(os.dup(fd))
    except OSError:
        _close(duplicates)
        raise
    return duplicates


def _closing(task: object, fds: list[int]) -> weakref.finalize[..., object]:
    """Return what closes ``fds``: at a call, or when ``task`` is dropped."""
    close = weakref.finalize(task, _close, fds)
    close.atexit = False
    return close


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
