# SPDX-License-Identifier: Apache-2.0
"""The objects that are held, each once however many hold it, and the descriptors of those that were
used last."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

from farwatchd.inode_store.descriptors import DescriptorBudget
from farwatchd.inode_store.mounts import Mount, MountTable
from farwatchd.linux.file_handles import HandleReader, handle_of, mount_of, open_handle
from farwatchd.linux.libc import NANOSECONDS, failure
from farwatchd.linux.syscalls import mount_id

#: mount, type and handle; where there is no handle: device and inode number, which are an object's
#: own while it is held by a descriptor, and the mount's id.
Key = bytes | tuple[int, int, int]
#: The same for the same object seen through another mount.
Identity = tuple[int, bytes | int]

#: Descriptors of objects kept by handle that stay open: at most so many, and this part of what the
#: process may open.
MOST_OPEN = 4096
_SHARE_OF_LIMIT = 8
_LEAST_OPEN = 16
#: The object that was used last stays open when another one is closed to make room: the operation
#: in progress works with its descriptor. No operation opens an object while it needs two others.
_IN_USE = 1
#: What the operation in progress has opened at the least.
_LEAST_OPEN_AT_ALL = 2
#: Seconds between two looks for descriptors that are not needed: an idle one is closed after this
#: time at the least and twice this time at the most.
IDLE_SECONDS = 1.0
#: Objects kept by descriptor that one look asks whether they still have a name, so that the look
#: takes about a millisecond.
_CHECKS_PER_TICK = 1000
#: Mode, inode number, device, links, uid, gid, size, the three times in nanoseconds, device number,
#: blocks, block size.
_STATUS = struct.Struct("=IQQQIIQqqqQQI")
#: What making a descriptor says when there is none left.
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
#: What opening a handle says when the object is no more, and what it means.
GONE = (errno.ESTALE, errno.ENOENT)


class InodeFileHandles(Enum):
    """Whether objects are kept by file handle (``--inode-file-handles``); PREFER: where that
    works."""

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


class HostObject:
    """A file of the host, of any type, on one mount. ``fd`` is its O_PATH descriptor while it is
    open, else -1.

    ``mount`` is None where the object has no handle. ``by_handle`` objects are opened when they are
    used; one that is not, and has no descriptor, was deleted. ``status`` has a directory's
    attributes at the time when its descriptor was closed.
    """

    __slots__ = ("by_handle", "fd", "holders", "key", "mount", "status")

    def __init__(self, key: Key, fd: int, mount: Mount | None) -> None:
        self.key = key
        self.fd = fd
        self.mount = mount
        self.by_handle = mount is not None and mount.fd >= 0
        self.holders = 0
        self.status = b""

    @property
    def mount_id(self) -> int:
        """The id of the mount, as in /proc/self/mountinfo."""
        return mount_of(self.key) if isinstance(self.key, bytes) else self.key[2]

    def identity(self, status: os.stat_result) -> Identity:
        """What tells the object from all others, through whatever mount; ``status`` is its own."""
        return _identity(self.key, status)


class ObjectTable:
    """The table. It owns the descriptors of its objects. For one thread.

    Of the objects kept by handle the ``most_open`` that were used last have a descriptor. A
    descriptor from ``open`` stays open until two other objects have been opened, or the loop has
    called ``close_idle``.

    A descriptor keeps a deleted file's blocks on the disk. So one that is not used is closed, and
    so is that of a file kept by descriptor which has been deleted.
    """

    def __init__(
        self,
        keep: InodeFileHandles = InodeFileHandles.NEVER,
        most_open: int = MOST_OPEN,
        most_for_guest: int = sys.maxsize,
    ) -> None:
        """``most_for_guest``: descriptors that the guest may use, these ``most_open`` included."""
        self.keep = keep
        by_handle = keep is not InodeFileHandles.NEVER
        self.budget = DescriptorBudget(most_for_guest - (most_open if by_handle else 0))
        self._most_open = max(most_open, _LEAST_OPEN_AT_ALL)
        self._reader = HandleReader()
        self._mounts = MountTable(keep is InodeFileHandles.MANDATORY)
        self._by_key: dict[Key, HostObject] = {}
        #: Before the separator: those that were not used since the last ``close_idle``.
        self._separator = HostObject(b"", -1, None)
        self._open: OrderedDict[HostObject, None] = OrderedDict({self._separator: None})
        #: Files kept by descriptor; those that were asked last are at the end.
        self._by_descriptor: OrderedDict[HostObject, None] = OrderedDict()
        self._call_later: Callable[[float, Callable[[], None]], None] | None = None
        self._timer_runs = False
        #: Whether a deleted file kept by descriptor is still needed.
        self.needed: Callable[[HostObject], bool] = lambda _held: True
        #: ``touch(held)``: an object by handle, which is open, is used.
        self.touch: Callable[[HostObject], None] = self._open.move_to_end

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, fd: int, status: os.stat_result) -> HostObject:
        """Hold the object behind an O_PATH descriptor, which is taken over, also on ``OSError``."""
        try:
            key = self._key(fd, status)
            held = self._by_key.get(key)
            if held is None:
                held = self._new(key, fd, status)
            elif held.fd >= 0:
                os.close(fd)
            else:
                held.fd = fd
                self._remember(held)
        except BaseException:
            os.close(fd)
            raise
        held.holders += 1
        return held

    def hold(self, fd: int, status: os.stat_result) -> HostObject:
        """Hold the object behind an O_PATH descriptor, which stays the caller's."""
        held = self._by_key.get(self._key(fd, status))
        if held is None:
            return self.take(self.with_room(lambda: os.dup(fd)), status)
        held.holders += 1
        return held

    def drop(self, held: HostObject) -> None:
        """Hold it no more."""
        held.holders -= 1
        if held.holders:
            return
        if held.by_handle:
            del self._by_key[held.key]
        if held.fd >= 0:
            self._open.pop(held, None)
            if not held.by_handle:
                self._forget_descriptor(held)
            os.close(held.fd)
            held.fd = -1
        if held.mount is not None:
            self._mounts.release(held.mount)

    def open(self, held: HostObject) -> int:
        """The object's descriptor, which is opened if need be; ESTALE when the object is no
        more."""
        fd = held.fd
        if fd >= 0:
            if held.by_handle:
                self.touch(held)
            return fd
        mount, key = held.mount, held.key
        if not held.by_handle:
            raise failure(errno.ESTALE)
        assert mount is not None
        assert isinstance(key, bytes)
        held.fd = fd = self.with_room(lambda: open_handle(mount.fd, handle_of(key)))
        self._remember(held)
        return fd

    def identity(self, fd: int) -> Identity:
        """The identity of the object behind ``fd``, which need not be held."""
        status = os.fstat(fd)
        return _identity(self._key(fd, status), status)

    def with_room(self, call: Callable[[], int]) -> int:
        """Return the descriptor that ``call`` makes; when there is none left, close one first.

        ``OSError``: EMFILE or ENFILE if only objects in use have a descriptor.
        """
        try:
            return call()
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or self._count_open() <= _IN_USE:
                raise
        self._close_oldest()
        return call()

    def use_timer(self, call_later: Callable[[float, Callable[[], None]], None]) -> None:
        """Close descriptors that are not needed, from now on, by ``call_later(seconds, call)``."""
        self._call_later = call_later
        self._set_timer()

    def close_idle(self) -> None:
        """Close the descriptors that were not used since the last call, and some of those of
        deleted files.

        No operation may be in progress. An object by handle is opened again when it is used.
        """
        while (oldest := next(iter(self._open))) is not self._separator:
            self._close(oldest)
        self._open.move_to_end(self._separator)
        for _ in range(min(_CHECKS_PER_TICK, len(self._by_descriptor))):
            held = next(iter(self._by_descriptor))
            self._by_descriptor.move_to_end(held)
            if not os.fstat(held.fd).st_nlink and not self.needed(held):
                self._forget_descriptor(held)
                os.close(held.fd)
                held.fd = -1

    def _timed(self) -> None:
        self._timer_runs = False
        self.close_idle()
        if self._count_open() or self._by_descriptor:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._call_later is not None and not self._timer_runs:
            self._timer_runs = True
            self._call_later(IDLE_SECONDS, self._timed)

    def _count_open(self) -> int:
        return len(self._open) - 1

    def _key(self, fd: int, status: os.stat_result) -> Key:
        if self.keep is not InodeFileHandles.NEVER:
            try:
                return self._reader.read(fd)
            except OSError:
                if self.keep is InodeFileHandles.MANDATORY:
                    raise
        return status.st_dev, status.st_ino, mount_id(fd)

    def _new(self, key: Key, fd: int, status: os.stat_result) -> HostObject:
        mount = self._mounts.hold(key, fd, status.st_mode) if isinstance(key, bytes) else None
        held = HostObject(key, fd, mount)
        if held.by_handle:
            self._remember(held)
        else:
            try:
                self.budget.check(1)
            except OSError:
                if mount is not None:
                    self._mounts.release(mount)
                raise
            self.budget.used += 1
            if not stat.S_ISDIR(status.st_mode):
                self._by_descriptor[held] = None
                self._set_timer()
        self._by_key[key] = held
        return held

    def _remember(self, held: HostObject) -> None:
        self._open[held] = None
        if self._count_open() > self._most_open:
            self._close_oldest()
        if not self._timer_runs:
            self._set_timer()

    def _close_oldest(self) -> None:
        in_order = iter(self._open)
        oldest = next(in_order)
        self._close(oldest if oldest is not self._separator else next(in_order))

    def _close(self, held: HostObject) -> None:
        """Close the descriptor of an object by handle."""
        status = os.fstat(held.fd)
        if stat.S_ISDIR(status.st_mode):
            held.status = _pack(status)
        del self._open[held]
        os.close(held.fd)
        held.fd = -1

    def _forget_descriptor(self, held: HostObject) -> None:
        """An object kept by descriptor is to have none. Another may then get its key."""
        del self._by_key[held.key]
        self._by_descriptor.pop(held, None)
        self.budget.used -= 1


def deleted_directory(held: HostObject) -> os.stat_result | None:
    """Return the attributes of a deleted directory by handle: the last ones that were seen, without
    a link; None if none were, and for what is no directory."""
    if not held.status:
        return None
    mode, ino, dev, _, uid, gid, size, atime, mtime, ctime, rdev, blocks, block_size = (
        _STATUS.unpack(held.status)
    )
    seconds = tuple(time // NANOSECONDS for time in (atime, mtime, ctime))
    return os.stat_result(
        (mode, ino, dev, 0, uid, gid, size, *seconds),
        {
            "st_atime_ns": atime,
            "st_mtime_ns": mtime,
            "st_ctime_ns": ctime,
            "st_rdev": rdev,
            "st_blocks": blocks,
            "st_blksize": block_size,
        },
    )


def _pack(status: os.stat_result) -> bytes:
    return _STATUS.pack(
        *status[:7],
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_rdev,
        status.st_blocks,
        status.st_blksize,
    )


def _identity(key: Key, status: os.stat_result) -> Identity:
    return (status.st_dev, handle_of(key)) if isinstance(key, bytes) else key[:2]


def most_open(open_files: int, wanted: int = MOST_OPEN) -> int:
    """Return how many objects kept by handle may have a descriptor: ``wanted``, or less in a
    process that may open ``open_files``."""
    return min(wanted, max(_LEAST_OPEN, open_files // _SHARE_OF_LIMIT))
