# SPDX-License-Identifier: Apache-2.0
"""The contents of open files.

Between the file and guest memory there is no copy here, but for what a thread has to wait for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from farwatchd.fuse.filesystem import DataTask, RemoteTask, Task
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import fallocate, file_system_type, signed
from farwatchd.passthrough.open_file_table import OpenFile, Reading
from farwatchd.passthrough.share import Operations
from farwatchd.passthrough.tasks import on_files, on_files_with_data, sync

#: The longest iovec of one system call (UIO_MAXIOV).
_IOV_MAX = 1024
#: Bytes that one copy moves at most. The guest sends another request for the rest; in between the
#: daemon can stop, and other requests are served.
_COPY_MAX = 64 << 20
#: The flags of open(2) with which each write waits for the disk.
_WAITING_WRITES = os.O_DIRECT | os.O_DSYNC
#: ``TMPFS_MAGIC``, ``RAMFS_MAGIC``, ``HUGETLBFS_MAGIC``.
_MEMORY = (0x01021994, 0x858458F6, 0x958458F6)
_IF_IN_MEMORY = Reading.IF_IN_MEMORY
#: Taken to change the flags of an open file: several threads may write pages of one.
_SWITCHING = threading.Lock()

_Transfer = Callable[[int, Sequence[memoryview], int], int]


class DataOperations(Operations):
    """Operations on an open file's contents."""

    def read(
        self, nodeid: int, fh: int, offset: int, views: Sequence[memoryview], size: int
    ) -> int | DataTask:
        """Fill ``views``, of ``size`` bytes; return the bytes read.

        They are fewer than ``size`` only at the end of the file. What the page cache has is read
        immediately; what has to be waited for, by a task.
        """
        handle = self._open_files.get(nodeid, fh)
        fd, start = handle.fd, signed(offset)
        if handle.reading is _IF_IN_MEMORY and len(views) <= _IOV_MAX:
            try:
                done = os.preadv(fd, views, start, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    handle.reading = Reading.IMMEDIATE if _is_memory(fd) else Reading.BY_TASK
                elif error.errno != errno.EAGAIN:
                    raise
            else:
                if done == size or start + done >= os.fstat(fd).st_size:
                    return done
        if handle.reading is Reading.IMMEDIATE:
            return _transfer(os.preadv, fd, views, start)
        return _read_later(handle, start)

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        views: Sequence[memoryview],
        kill_suidgid: bool,
        cached: bool,
    ) -> int | DataTask:
        """Write ``views``; return the bytes written.

        ``kill_suidgid``: clear the file's set-id bits. ``cached``: pages of the guest's cache, of
        any size and with an offset of their own, through whichever handle the guest chose: O_DIRECT
        and O_APPEND do not hold for them. By a task where each write waits for the disk, or may
        wait for a server. EPERM: a page of a file that can only be appended to.
        """
        handle = self._open_files.get(nodeid, fh)
        fd, start = handle.fd, signed(offset)
        if cached:
            if handle.append_only:
                raise failure(errno.EPERM)
            if handle.remote:
                return _write_later(handle, self._write_page, start, kill_suidgid, handle)
            return self._write_page(fd, views, start, kill_suidgid, handle)
        transfer = _append if handle.flags & os.O_APPEND else os.pwritev
        if handle.remote or handle.flags & _WAITING_WRITES:
            return _write_later(handle, self._write, start, kill_suidgid, transfer)
        if not kill_suidgid and len(views) <= _IOV_MAX:
            return transfer(fd, views, start)
        return self._write(fd, views, start, kill_suidgid, transfer)

    def _write_page(
        self, fd: int, views: Sequence[memoryview], offset: int, kill_suidgid: bool, file: OpenFile
    ) -> int:
        """Write pages of the guest's cache, in any thread, by a descriptor of an open file."""
        with _through_cache(fd, file) if file.flags & os.O_DIRECT else nullcontext():
            return self._write(fd, views, offset, kill_suidgid)

    def _write(
        self,
        fd: int,
        views: Sequence[memoryview],
        offset: int,
        kill_suidgid: bool,
        transfer: _Transfer = os.pwritev,
    ) -> int:
        """Write, in any thread."""
        with self._changing(fd, kill_suidgid):
            return _transfer(transfer, fd, views, offset)

    def fsync(self, nodeid: int, fh: int, datasync: bool) -> Task:
        """Return a task that writes a file to its disk.

        ``datasync``: without metadata that reading the data does not need.
        """
        file = self._open_files.get(nodeid, fh)
        return sync(file.fd, file.remote, datasync)

    def fallocate(
        self, nodeid: int, fh: int, mode: int, offset: int, length: int, kill_suidgid: bool
    ) -> Task:
        """Return a task that allocates or frees space; ``mode`` is FALLOC_FL_*.

        ``kill_suidgid``: clear the file's set-id bits.
        """
        self._share.refuse_if_readonly()

        def call(own_fd: int) -> int:
            with self._changing(own_fd, kill_suidgid):
                fallocate(own_fd, mode, offset, length)
            return 0

        file = self._open_files.get(nodeid, fh)
        task = on_files(call, file.fd)
        return RemoteTask(task) if file.remote else task

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """Return where data or a hole begins, or the file ends; ENXIO beyond the end."""
        file = self._open_files.get(nodeid, fh)
        if file.remote:
            raise self._share.later(
                lambda own_fd: os.lseek(own_fd, signed(offset), whence), int, file.fd
            )
        return os.lseek(file.fd, signed(offset), whence)

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
    ) -> Task:
        """Return a task that copies on the host and returns the bytes copied.

        ``kill_suidgid``: clear the target's set-id bits.
        """
        self._share.refuse_if_readonly()
        target_handle = self._open_files.get(nodeid_out, fh_out)
        if target_handle.flags & os.O_APPEND:
            # As copy_file_range(2) has it; the descriptor itself does not append.
            raise failure(errno.EBADF)

        def call(source: int, target: int) -> int:
            with self._changing(target, kill_suidgid):
                return os.copy_file_range(
                    source, target, min(length, _COPY_MAX), signed(offset), signed(offset_out)
                )

        source_handle = self._open_files.get(nodeid, fh)
        task = on_files(call, source_handle.fd, target_handle.fd)
        return RemoteTask(task) if source_handle.remote or target_handle.remote else task


# Functions of their own: a closure's variables would slow down each read and write.


def _read_later(handle: OpenFile, start: int) -> DataTask:
    """Return a task that reads from ``start`` on."""
    task = on_files_with_data(
        lambda data, own_fd: _transfer(os.preadv, own_fd, data, start), handle.fd
    )
    return RemoteTask(task) if handle.remote else task


def _write_later(handle: OpenFile, write: Callable[..., int], *args: object) -> DataTask:
    """Return a task that calls ``write`` with a descriptor of its own, the data, and ``args``."""
    task = on_files_with_data(lambda data, own_fd: write(own_fd, data, *args), handle.fd)
    return RemoteTask(task) if handle.remote else task


@contextlib.contextmanager
def _through_cache(fd: int, file: OpenFile) -> Iterator[None]:
    """Switch off O_DIRECT, with which a file was opened, until no write needs that any more."""
    with _SWITCHING:
        file.cached_writes += 1
        _set_direct(fd, False)
    try:
        yield
    finally:
        with _SWITCHING:
            file.cached_writes -= 1
            if not file.cached_writes:
                _set_direct(fd, True)


def _set_direct(fd: int, direct: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)


def _is_memory(fd: int) -> bool:
    """Return whether the file is on a file system without a disk."""
    return file_system_type(fd) in _MEMORY


def _append(fd: int, views: Sequence[memoryview], _offset: int) -> int:
    """Write to the end of the file, as it is at the time of the write."""
    return os.pwritev(fd, views, 0, os.RWF_APPEND)


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
