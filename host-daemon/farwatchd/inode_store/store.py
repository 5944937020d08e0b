# SPDX-License-Identifier: Apache-2.0
"""The inode store: each host inode once, with a reference count, and an LRU of descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable

from farwatchd.inode_store.descriptors import OUT_OF_DESCRIPTORS, DescriptorBudget
from farwatchd.inode_store.mount_points import MountPoints
from farwatchd.inode_store.mounts import Mount, MountTable
from farwatchd.inode_store.options import MOST_OPEN, InodeFileHandles
from farwatchd.inode_store.remote_mounts import RemoteMounts
from farwatchd.linux.file_handles import HandleReader, handle_of, key_of, mount_of, with_path
from farwatchd.linux.libc import NANOSECONDS, failure
from farwatchd.linux.syscalls import known_links, known_status, mount_id
from farwatchd.wire.state import (
    NONE,
    Descriptors,
    HostInodeState,
    MountState,
    ReceivedDescriptors,
    State,
    StateError,
)

#: Mount id, handle type and handle. Without a handle: device and inode number, which no other inode
#: has while a descriptor is open, and mount id.
Key = bytes | tuple[int, int, int]
#: The part of a key that is known without asking a server: all of it, or the mount id alone.
Place = bytes | int
#: The same for one inode through all mounts. In one string, as each watch has one.
Identity = bytes

#: Descriptors of inodes by handle that stay open: at most MOST_OPEN, and this part (one of 8) of
#: what the process may open.
_SHARE_OF_LIMIT = 8
_LEAST_OPEN = 16
#: The inode that was used last stays open when another one is closed to make room: the operation in
#: progress works with its descriptor. No operation opens an inode while it needs two others.
_IN_USE = 1
#: The least limit of open descriptors: an operation may need two inodes.
_LEAST_OPEN_AT_ALL = 2
#: Seconds between two searches for idle descriptors: one is closed after this time at the least,
#: and twice this time at the most.
IDLE_SECONDS = 1.0
#: Inodes by descriptor whose link count one search reads, so that it takes about a millisecond.
_CHECKS_PER_TICK = 1000
#: Mode, inode number, device, links, uid, gid, size, the three times in nanoseconds, device number,
#: blocks, block size.
_STATUS = struct.Struct("=IQQQIIQqqqQQI")
#: Errors of opening an inode by handle when it was deleted.
GONE = (errno.ESTALE, errno.ENOENT)


class HostInode:
    """An inode of the host, of any type, on one mount.

    ``fd`` is its O_PATH descriptor while it is open, else -1. ``mount`` is None where the inode has
    no handle. ``by_handle`` inodes are opened when they are used; another one without a descriptor
    was deleted. ``remote``: its file system is that of a server, which may not answer. ``status``
    has a directory's attributes at the time when its descriptor was closed, but on a remote file
    system.
    """

    __slots__ = ("by_handle", "fd", "key", "mount", "references", "remote", "status")

    def __init__(self, key: Key, fd: int, mount: Mount | None, remote: bool = False) -> None:
        self.key = key
        self.fd = fd
        self.mount = mount
        self.remote = remote
        self.by_handle = mount is not None and mount.by_handle
        self.references = 0
        self.status = b""

    @property
    def mount_id(self) -> int:
        """Return the id of the mount, as in /proc/self/mountinfo."""
        return mount_id_of(self.key if isinstance(self.key, bytes) else self.key[2])

    def identity(self, status: os.stat_result) -> Identity:
        """Return what identifies the inode through any mount; ``status`` is its own."""
        return _identity(self.key, status)


class ExportedInodes:
    """Adds the host inodes that other records refer to, each once."""

    def __init__(self, state: State, fds: Descriptors) -> None:
        self._state = state
        self._fds = fds
        self._index: dict[HostInode, int] = {}

    def index(self, inode: HostInode) -> int:
        """Return the index of an inode's record."""
        known = self._index.get(inode)
        if known is not None:
            return known
        key = inode.key
        if inode.by_handle and inode.mount is not None and inode.mount.fd < 0:
            # Its mount is not there any more.
            key = (0, 0, 0)
        by_key = isinstance(key, bytes)
        handle = key if isinstance(key, bytes) else b""
        dev, ino, mount = (0, 0, mount_of(handle)) if isinstance(key, bytes) else key
        fd = NONE if inode.by_handle else self._fds.add(inode.fd)
        assert by_key or inode.mount is None
        self._state.host_inodes.append(
            HostInodeState(handle, dev, ino, mount, inode.by_handle and by_key, fd, inode.status)
        )
        self._index[inode] = len(self._index)
        return self._index[inode]


class InodeStore:
    """The host inodes that are referenced. Owns their descriptors. For one thread.

    Of the inodes by handle, the ``most_open`` that were used last have a descriptor. A descriptor
    from ``open`` stays open until two other inodes have been opened, or the loop has called
    ``close_idle``.

    A descriptor keeps a deleted file's blocks on the disk. So an unused one is closed, and so is
    that of a deleted file by descriptor. A descriptor also keeps the host from unmounting. So those
    of inodes by handle on mounts inside of the share are closed when the loop's turn ends.
    """

    def __init__(
        self,
        keep: InodeFileHandles = InodeFileHandles.NEVER,
        most_open: int = MOST_OPEN,
        most_for_guest: int = sys.maxsize,
    ) -> None:
        """Make an empty store.

        ``keep``: which inodes are referenced by handle. ``most_for_guest``: descriptors that the
        guest may use, these ``most_open`` included.
        """
        self.keep = keep
        by_handle = keep is not InodeFileHandles.NEVER
        self.budget = DescriptorBudget(most_for_guest - (most_open if by_handle else 0))
        self._most_open = max(most_open, _LEAST_OPEN_AT_ALL)
        self._reader = HandleReader()
        self._mounts = MountTable(keep is InodeFileHandles.MANDATORY)
        self.remote_mounts = RemoteMounts()
        self._by_key: dict[Key, HostInode] = {}
        #: Before the separator: those that were not used since the last ``close_idle``.
        self._separator = HostInode(b"", -1, None)
        self._open: OrderedDict[HostInode, None] = OrderedDict({self._separator: None})
        #: Files by descriptor; those whose link count was read last are at the end.
        self._by_descriptor: OrderedDict[HostInode, None] = OrderedDict()
        self._call_later: Callable[[float, Callable[[], None]], None] | None = None
        self._timer_runs = False
        self._mount_points = MountPoints(self, self._mounts)
        #: Whether a deleted file by descriptor is still needed.
        self.needed: Callable[[HostInode], bool] = lambda _inode: True
        #: ``touch(inode)``: make an open inode by handle the one that was used last.
        self.touch: Callable[[HostInode], None] = self._open.move_to_end

    def __len__(self) -> int:
        return len(self._by_key)

    def place(self, fd: int) -> Place:
        """Return where the inode of ``fd`` is, without asking a server.

        ``OSError``: handles are mandatory and do not work here.
        """
        if self.keep is not InodeFileHandles.NEVER:
            try:
                place = self._reader.read(fd)
            except OSError:
                if self.keep is InodeFileHandles.MANDATORY:
                    raise
            else:
                if self._mount_points.released:
                    self._mount_points.check(mount_of(place))
                return place
        return mount_id(fd)

    def adopt(self, fd: int, status: os.stat_result, place: Place | None = None) -> HostInode:
        """Get a reference to the inode of an O_PATH descriptor, whose ownership is taken.

        ``place``: its own, if that is known. ``fd`` is closed if ``OSError`` is raised, too.
        """
        try:
            if place is None:
                place = self.place(fd)
            key = place if isinstance(place, bytes) else (status.st_dev, status.st_ino, place)
            inode = self._by_key.get(key)
            if inode is None:
                inode = self._new(key, fd, status)
            elif inode.fd >= 0:
                os.close(fd)
            else:
                inode.fd = fd
                self._remember(inode)
        except BaseException:
            os.close(fd)
            raise
        inode.references += 1
        return inode

    def get(self, fd: int, status: os.stat_result) -> HostInode:
        """Get a reference to the inode of an O_PATH descriptor, which stays the caller's."""
        inode = self._by_key.get(self._key(fd, status))
        if inode is None:
            return self.adopt(self.with_room(lambda: os.dup(fd)), status)
        inode.references += 1
        return inode

    def entry(self, directory: int, name: bytes) -> HostInode | int:
        """Return the inode by handle of a directory entry if it is stored and open, or an errno.

        It gets no reference. ENOENT: there is no such name. Any other errno: the inode is not
        stored, not open, or has no handle.
        """
        key = self._reader.read_entry(directory, name)
        if isinstance(key, int):
            return key
        inode = self._by_key.get(key)
        return errno.ESTALE if inode is None or inode.fd < 0 else inode

    def tables(self) -> dict[str, object]:
        """Return what the native part finds inodes by their handles with."""
        return {"by_key": self._by_key, "touch": self.touch}

    def put(self, inode: HostInode) -> None:
        """Drop one reference; the last one closes the descriptor."""
        inode.references -= 1
        if inode.references:
            return
        if inode.by_handle and self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]
        if inode.fd >= 0:
            self._open.pop(inode, None)
            if not inode.by_handle:
                self._forget_descriptor(inode)
            os.close(inode.fd)
            inode.fd = -1
        if inode.mount is not None:
            self._put_mount(inode.mount)

    def open(self, inode: HostInode) -> int:
        """Return the inode's descriptor, which the store owns; open it if need be.

        ESTALE: the host has deleted the inode.
        """
        fd = inode.fd
        if fd >= 0:
            if inode.by_handle:
                self.touch(inode)
            return fd
        mount, key = inode.mount, inode.key
        if not inode.by_handle:
            raise failure(errno.ESTALE)
        assert mount is not None
        assert isinstance(key, bytes)
        if mount.fd < 0:
            self._mount_points.find_again(mount)
        inode.fd = fd = self.with_room(lambda: mount.open_inode(key))
        self._remember(inode)
        return fd

    def close(self, inode: HostInode) -> None:
        """Close the descriptor of an inode by handle, if it has one; it is opened when it is used.

        No operation may be in progress.
        """
        if inode.fd >= 0 and inode in self._open:
            self._close(inode)

    def make_stale(self, mount: Mount) -> None:
        """Have nothing lead to the inodes by handle of a mount any more: its id may be reused."""
        # An inode by descriptor keeps the mount, which is detached then.
        stale = [each for each in self._by_key.values() if each.mount is mount and each.by_handle]
        for inode in stale:
            del self._by_key[inode.key]

    def identity(self, fd: int) -> Identity:
        """Return the identity of the inode of ``fd``, which need not be in the store."""
        status = self.status(fd)
        return _identity(self._key(fd, status), status)

    def status(self, fd: int) -> os.stat_result:
        """Return the file type, the numbers and the link count of an inode, without its server.

        The other attributes may be 0.
        """
        return known_status(fd) if self.remote_mounts.any else os.fstat(fd)

    def with_room(self, call: Callable[[], int]) -> int:
        """Return the descriptor that ``call`` makes; when there is none left, close one first.

        ``OSError``: EMFILE or ENFILE if only inodes in use have a descriptor.
        """
        try:
            return call()
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or self._count_open() <= _IN_USE:
                raise
        self._close_oldest()
        return call()

    def use_loop(
        self,
        call_later: Callable[[float, Callable[[], None]], None],
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        """Start to close unused descriptors, by ``call_later(seconds, call)``, ``call_soon(call)``.

        ``call_soon``: when the loop's turn ends, and no operation is in progress.
        """
        self._call_later = call_later
        self._set_timer()
        self._mount_points.use_loop(call_soon)

    def close_idle(self) -> None:
        """Close the descriptors that were not used since the last call, and some deleted files.

        No operation may be in progress. An inode by handle is opened again when it is used.
        """
        while (oldest := next(iter(self._open))) is not self._separator:
            self._close(oldest)
        self._open.move_to_end(self._separator)
        for _ in range(min(_CHECKS_PER_TICK, len(self._by_descriptor))):
            inode = next(iter(self._by_descriptor))
            self._by_descriptor.move_to_end(inode)
            if not known_links(inode.fd) and not self.needed(inode):
                self._forget_descriptor(inode)
                os.close(inode.fd)
                inode.fd = -1

    def mount_descriptor(self, mount: int) -> int | None:
        """Return the descriptor by which inodes of a mount are opened; None if there is none.

        It stays the store's, and open until the loop's turn ends.
        """
        found = self._mounts.find(mount)
        if found is None or not found.by_handle:
            return None
        if found.fd < 0:
            try:
                self._mount_points.find_again(found)
            except OSError:
                return None
        return found.fd

    def by_handle(self, mount: int, handle: bytes) -> HostInode | None:
        """Get a reference to the inode with a ``struct file_handle``, without opening it.

        None: inodes of the mount are not opened by handle.
        """
        if self.mount_descriptor(mount) is None:
            return None
        key = key_of(mount, handle)
        inode = self._by_key.get(key)
        if inode is None:
            inode = HostInode(
                key, -1, self._mounts.count_restored(mount), bool(self.remote_mounts.known(mount))
            )
            self._by_key[key] = inode
        inode.references += 1
        return inode

    def is_below_mount(self, inode: HostInode) -> bool:
        """Return whether the kernel knows a path from its mount's descriptor to an inode by handle.

        If not, there may be one nevertheless.
        """
        mount, key = inode.mount, inode.key
        assert mount is not None
        assert isinstance(key, bytes)
        if self.mount_descriptor(mount.ident) is None:
            return False
        known = key_of(mount.ident, with_path(handle_of(key)))
        try:
            os.close(self.with_room(lambda: mount.open_inode(known)))
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                raise
            return False
        return True

    def stale(self) -> HostInode:
        """Get a reference to an inode that cannot be found."""
        inode = HostInode((0, 0, 0), -1, None)
        inode.references = 1
        return inode

    def export_state(self, state: State, fds: Descriptors) -> ExportedInodes:
        """Add the mounts to a state; return what adds inodes. No operation may be in progress."""
        for mount in list(self._mounts.all()):
            if mount.by_handle and mount.fd < 0:
                with contextlib.suppress(OSError):
                    self._mount_points.find_again(mount)
        while self._count_open():
            self._close_oldest()
        state.mounts += [
            MountState(
                each.ident,
                fds.add(each.fd),
                each.refused,
                bool(self.remote_mounts.known(each.ident)),
            )
            for each in self._mounts.all()
        ]
        return ExportedInodes(state, fds)

    def restore_state(self, state: State, fds: ReceivedDescriptors) -> list[HostInode]:
        """Add the mounts and inodes of a state; return its inodes, without references.

        ``StateError``: the state contradicts itself.
        """
        for mount in state.mounts:
            fd = fds.take_any(mount.fd)
            self._mounts.restore(
                Mount(
                    mount.ident,
                    -1 if fd is None else fd,
                    refused=bool(mount.refused),
                    by_handle=fd is not None,
                )
            )
            self.remote_mounts.learn(mount.ident, bool(mount.remote))
        for restored in self._mounts.all():
            if restored.fd >= 0 and not restored.kept:
                self._mount_points.use(restored)
        return [self._restore(record, fds) for record in state.host_inodes]

    def _restore(self, record: HostInodeState, fds: ReceivedDescriptors) -> HostInode:
        key: Key = record.key or (record.dev, record.ino, record.mount)
        fd = fds.take_any(record.fd)
        known = self._by_key.get(key)
        if known is not None:
            # The root, which is there from the start.
            if fd is not None:
                os.close(fd)
            return known
        try:
            mount = self._mounts.count_restored(mount_of(record.key)) if record.key else None
        except (KeyError, struct.error):
            raise StateError("an inode is on a mount that is not there") from None
        place = key if isinstance(key, bytes) else key[2]
        mount_number = mount_id_of(place)
        remote = (
            bool(self.remote_mounts.known(mount_number))
            if fd is None
            else self.remote_mounts.has(mount_number, fd)
        )
        inode = HostInode(key, -1 if fd is None else fd, mount, remote)
        if record.by_handle and not inode.by_handle:
            raise StateError("an inode's mount has no descriptor")
        # The mount may have got its descriptor after the inode.
        inode.by_handle = bool(record.by_handle)
        inode.status = record.status
        if len(record.status) not in (0, _STATUS.size):
            raise StateError("a directory's attributes are incomplete")
        if inode.by_handle:
            self._by_key[key] = inode
        elif fd is not None:
            self._by_key[key] = inode
            self.budget.used += 1
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                self._by_descriptor[inode] = None
        return inode

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
        place = self.place(fd)
        return place if isinstance(place, bytes) else (status.st_dev, status.st_ino, place)

    def _new(self, key: Key, fd: int, status: os.stat_result) -> HostInode:
        place = key if isinstance(key, bytes) else key[2]
        remote = self.remote_mounts.has(mount_id_of(place), fd)
        mount = (
            self._mounts.get(key, fd, status.st_mode, remote) if isinstance(key, bytes) else None
        )
        inode = HostInode(key, fd, mount, remote)
        if inode.by_handle:
            self._remember(inode)
        else:
            try:
                self.budget.check(1)
            except OSError:
                if mount is not None:
                    self._put_mount(mount)
                raise
            self.budget.used += 1
            if not stat.S_ISDIR(status.st_mode):
                self._by_descriptor[inode] = None
                self._set_timer()
        self._by_key[key] = inode
        return inode

    def _put_mount(self, mount: Mount) -> None:
        self._mounts.put(mount)
        if not mount.inodes:
            self._mount_points.forget(mount)

    def _remember(self, inode: HostInode) -> None:
        if inode.mount is not None and not inode.mount.kept:
            self._mount_points.use(inode.mount, inode)
        self._open[inode] = None
        if self._count_open() > self._most_open:
            self._close_oldest()
        if not self._timer_runs:
            self._set_timer()

    def _close_oldest(self) -> None:
        in_order = iter(self._open)
        oldest = next(in_order)
        self._close(oldest if oldest is not self._separator else next(in_order))

    def _close(self, inode: HostInode) -> None:
        """Close the descriptor of an inode by handle."""
        # Attributes would have to come from a server that may not answer.
        if not inode.remote:
            status = os.fstat(inode.fd)
            if stat.S_ISDIR(status.st_mode):
                inode.status = _pack(status)
        del self._open[inode]
        os.close(inode.fd)
        inode.fd = -1

    def _forget_descriptor(self, inode: HostInode) -> None:
        """Forget an inode by descriptor, before its descriptor is closed: the key may be reused."""
        del self._by_key[inode.key]
        self._by_descriptor.pop(inode, None)
        self.budget.used -= 1


def mount_id_of(place: Place) -> int:
    """Return the id of the mount that a place is on."""
    return mount_of(place) if isinstance(place, bytes) else place


def deleted_directory(inode: HostInode) -> os.stat_result | None:
    """Return the last known attributes of a deleted directory by handle, without a link.

    None: its descriptor was never closed, or the inode is no directory.
    """
    if not inode.status:
        return None
    mode, ino, dev, _, uid, gid, size, atime, mtime, ctime, rdev, blocks, block_size = (
        _STATUS.unpack(inode.status)
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
    device = status.st_dev.to_bytes(8, sys.byteorder)
    if isinstance(key, bytes):
        return device + handle_of(key)
    return device + status.st_ino.to_bytes(8, sys.byteorder)


def most_open(open_files: int, wanted: int = MOST_OPEN) -> int:
    """Return how many inodes by handle may have a descriptor, ``wanted`` at most.

    ``open_files``: how many files the process may have open.
    """
    return min(wanted, max(_LEAST_OPEN, open_files // _SHARE_OF_LIMIT))
