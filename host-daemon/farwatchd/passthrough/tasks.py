# SPDX-License-Identifier: Apache-2.0
"""What is left of an operation to be done in any thread: system calls on descriptors of its own."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable

from farwatchd.fuse.filesystem import Job
from farwatchd.linux.libc import failure
from farwatchd.passthrough.procfd import own_limit_as_systems


def on_files(call: Callable[..., int], *fds: int) -> Job:
    """A job that calls ``call`` with duplicates of ``fds``, which may be closed before; ENFILE
    without room for them.

    The duplicates are closed when the job has been done, or is dropped without that.
    """
    held: list[int] = []
    try:
        with own_limit_as_systems():
            for fd in fds:
                held.append(os.dup(fd))
    except OSError:
        _close(held)
        raise

    def job() -> int:
        try:
            return call(*held)
        finally:
            close()

    close = weakref.finalize(job, _close, held)
    close.atexit = False
    return job


def on_files_or_errno(call: Callable[..., int], *fds: int) -> Job:
    """Return a job as ``on_files`` does, which returns the negative errno of an error."""

    def caught(*held: int) -> int:
        try:
            return call(*held)
        except OSError as error:
            return -(error.errno or errno.EIO)

    return on_files(caught, *fds)


def descriptor(result: int) -> int:
    """Return what a job of ``on_files_or_errno`` returned; raise its error."""
    if result < 0:
        raise failure(-result)
    return result


def sync(fd: int, datasync: bool) -> Job:
    """Brings a file or a directory to its disk; ``datasync``: without metadata that is not needed
    to read it."""

    def call(held: int) -> int:
        if datasync:
            os.fdatasync(held)
        else:
            os.fsync(held)
        return 0

    return on_files(call, fd)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
