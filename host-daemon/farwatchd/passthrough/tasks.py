# SPDX-License-Identifier: Apache-2.0
"""The part of an operation that runs in any thread: system calls on descriptors of its own."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Sequence

from farwatchd.fuse.filesystem import DataTask, Task
from farwatchd.linux.libc import failure
from farwatchd.passthrough.procfd import own_limit_as_systems


def on_files(call: Callable[..., int], *fds: int) -> Task:
    """Return a task that calls ``call`` with duplicates of ``fds``.

    ``fds`` may be closed before the task runs. The duplicates are closed when the task has run, or
    is dropped before. ENFILE: no descriptor is left.
    """
    duplicates = _duplicates(fds)

    def task() -> int:
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


def on_files_or_errno(call: Callable[..., int], *fds: int) -> Task:
    """Return a task as ``on_files`` does, which returns the negative errno of an error."""

    def caught(*duplicates: int) -> int:
        try:
            return call(*duplicates)
        except OSError as error:
            return -(error.errno or errno.EIO)

    return on_files(caught, *fds)


def descriptor(result: int) -> int:
    """Return the descriptor that a task of ``on_files_or_errno`` returned; raise its error."""
    if result < 0:
        raise failure(-result)
    return result


def sync(fd: int, datasync: bool) -> Task:
    """Return a task that writes a file or a directory to its disk.

    ``datasync``: without metadata that reading the data does not need.
    """

    def call(duplicates: int) -> int:
        if datasync:
            os.fdatasync(duplicates)
        else:
            os.fsync(duplicates)
        return 0

    return on_files(call, fd)


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
