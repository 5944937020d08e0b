# SPDX-License-Identifier: Apache-2.0
"""The contents of open files. Data moves between the file and the guest's memory without a copy here."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence

from farwatchd.capabilities import Capability, without
from farwatchd.passthrough.base import Operations
from farwatchd.passthrough.syscalls import fallocate, signed

#: Segments that one system call takes (UIO_MAXIOV).
_IOV_MAX = 1024
#: The most bytes that one system call moves (MAX_RW_COUNT).
_RW_MAX = 0x7FFFF000

_Transfer = Callable[[int, Sequence[memoryview], int], int]


class DataOperations(Operations):
    """Operations on an open file's contents."""

    def read(self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview]) -> int:
        """Fill ``views``; returns bytes read, fewer than asked only at the end of the file."""
        return _transfer(os.preadv, self._handles.fd(nodeid, fh), views, signed(offset))

    def write(
        self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview], kill_suidgid: bool, cached: bool
    ) -> int:
        """Write ``views``; returns bytes written. ``kill_suidgid``: takes the file's set-id bits away.

        ``cached``: from the guest's page cache, so of any size, though the handle may be one with O_DIRECT.
        """
        fd = self._handles.fd(nodeid, fh)
        if cached and self._options.allow_direct_io:
            with _through_cache(fd):
                return _transfer(os.pwritev, fd, views, signed(offset))
        if not kill_suidgid:
            return _transfer(os.pwritev, fd, views, signed(offset))
        with without(Capability.FSETID):
            return _transfer(os.pwritev, fd, views, signed(offset))

    def fsync(self, nodeid: int, fh: int, datasync: bool) -> None:
        """Bring a file to its disk; ``datasync``: without metadata that is not needed to read it."""
        fd = self._handles.fd(nodeid, fh)
        if datasync:
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def fallocate(self, nodeid: int, fh: int, mode: int, offset: int, length: int, kill_suidgid: bool) -> None:
        """fallocate(2) with its modes. ``kill_suidgid``: takes the file's set-id bits away."""
        self._refuse_if_readonly()
        fd = self._handles.fd(nodeid, fh)
        with without(Capability.FSETID) if kill_suidgid else contextlib.nullcontext():
            fallocate(fd, mode, offset, length)

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """Where data or a hole begins, or the file ends; ENXIO beyond the end."""
        return os.lseek(self._handles.fd(nodeid, fh), signed(offset), whence)

    def copy_file_range(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        kill_suidgid: bool,
    ) -> int:
        """Copy on the host; returns bytes copied. ``kill_suidgid``: takes the target's set-id bits away."""
        self._refuse_if_readonly()
        source, target = self._handles.fd(nodeid, fh), self._handles.fd(nodeid_out, fh_out)
        with without(Capability.FSETID) if kill_suidgid else contextlib.nullcontext():
            return os.copy_file_range(source, target, min(length, _RW_MAX), signed(offset), signed(offset_out))


@contextlib.contextmanager
def _through_cache(fd: int) -> Iterator[None]:
    """Without O_DIRECT for a while, if the file was opened with it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & os.O_DIRECT:
        yield
        return
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _transfer(transfer: _Transfer, fd: int, views: Sequence[memoryview], offset: int) -> int:
    if len(views) <= _IOV_MAX:
        return transfer(fd, views, offset)
    total = 0
    for start in range(0, len(views), _IOV_MAX):
        part = views[start : start + _IOV_MAX]
        try:
            moved = transfer(fd, part, offset + total)
        except OSError:
            if total:
                break
            raise
        total += moved
        if moved < sum(view.nbytes for view in part):
            break
    return total
