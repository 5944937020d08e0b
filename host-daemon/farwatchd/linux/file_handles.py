# SPDX-License-Identifier: Apache-2.0
"""File handles (name_to_handle_at(2)).

A handle identifies an inode of a mount for good, since its generation is part of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from farwatchd.linux.libc import AT_EMPTY_PATH, AT_FDCWD, check, failure, function, last_errno

_MAX_HANDLE = 128
_MOUNT = struct.Struct("=i")
# struct file_handle: bytes of the handle, its type; then the handle.
_HEADER = struct.Struct("=Ii")
_START = _MOUNT.size + _HEADER.size

#: ``FILEID_IS_CONNECTABLE``, in a handle's type.
_CONNECTABLE = 0x10000

#: While the inode's number is being reused for a new inode, ext4 and others return ENOMEM for a
#: handle with the old generation (iget_locked() finds I_CREATING), until the process that makes the
#: new inode has run.
_TRIES = 1000

# Without types: this is called for every lookup.
_name_to_handle_at = function("name_to_handle_at")
_open_by_handle_at = function("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


class HandleReader:
    """Reads file handles, with one buffer for all calls: for one thread."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_START + _MAX_HANDLE)
        self._view = memoryview(self._buffer).cast("B")
        address = ctypes.addressof(self._buffer)
        # Made once, so that ctypes has nothing to convert.
        where = ctypes.c_void_p(address + _MOUNT.size), ctypes.c_void_p(address)
        self._of_descriptor = (ctypes.c_char_p(b""), *where, ctypes.c_int(AT_EMPTY_PATH))
        self._of_entry = (*where, ctypes.c_int(0))

    def read(self, fd: int) -> bytes:
        """Return the mount's id and the file handle of the inode of ``fd``, which may be O_PATH.

        ``mount_of`` and ``handle_of`` split the result. ``OSError``: EOPNOTSUPP where the file
        system has no handles.
        """
        _HEADER.pack_into(self._buffer, _MOUNT.size, _MAX_HANDLE, 0)
        check(_name_to_handle_at(fd, *self._of_descriptor))
        (size,) = _MOUNT.unpack_from(self._buffer, _MOUNT.size)
        return self._view[: _START + size].tobytes()

    def read_entry(self, directory: int, name: bytes) -> bytes | int:
        """Return what ``read`` returns for an entry of a directory, or the errno of the failure.

        A symbolic link is not followed. Most names that are looked up do not exist, and an
        exception takes longer than the call.
        """
        _HEADER.pack_into(self._buffer, _MOUNT.size, _MAX_HANDLE, 0)
        if _name_to_handle_at(directory, name, *self._of_entry) < 0:
            return last_errno()
        (size,) = _MOUNT.unpack_from(self._buffer, _MOUNT.size)
        return self._view[: _START + size].tobytes()


def mount_of(key: bytes) -> int:
    """Return the mount's id from the result of ``HandleReader.read``."""
    return int(_MOUNT.unpack_from(key)[0])


def handle_of(key: bytes) -> bytes:
    """Return the ``struct file_handle`` from the result of ``HandleReader.read``."""
    return key[_MOUNT.size :]


def key_of(mount: int, handle: bytes) -> bytes:
    """Return what ``HandleReader.read`` would for an inode of another mount."""
    return _MOUNT.pack(mount) + handle


def with_path(handle: bytes) -> bytes:
    """Return a handle that is opened only if a path leads from the mount's descriptor to its inode.

    Since Linux 6.13. Before that, and where the kernel has forgotten the names of a file, opening
    it fails.
    """
    size, kind = _HEADER.unpack_from(handle)
    return _HEADER.pack(size, kind | _CONNECTABLE) + handle[_HEADER.size :]


def is_complete(handle: bytes) -> bool:
    """Return whether a ``struct file_handle`` has as many bytes as it says."""
    if len(handle) < _HEADER.size:
        return False
    size, _ = _HEADER.unpack_from(handle)
    return len(handle) == _HEADER.size + int(size)


def open_handle(mount_fd: int, handle: bytes) -> int:
    """Open the inode of a ``struct file_handle`` with O_PATH; the caller owns the descriptor.

    ``mount_fd`` is a descriptor, not O_PATH, of any inode on its mount. ``OSError``: ESTALE the
    inode was deleted, EPERM without CAP_DAC_READ_SEARCH.
    """
    for _ in range(_TRIES):
        fd = _open_by_handle_at(mount_fd, handle, os.O_PATH | os.O_CLOEXEC)
        if fd >= 0:
            return int(fd)
        if last_errno() != errno.ENOMEM:
            break
        os.sched_yield()
    raise failure(last_errno())


def open_handle_in(directory: int, handle: bytes) -> int:
    """Do what ``open_handle`` does, by a descriptor of a directory that may be O_PATH.

    To open a directory in another way is an event for who watches it. The calling thread must have
    a current directory of its own (unshare(2)): it is the directory meanwhile.
    """
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(directory)
        try:
            return open_handle(AT_FDCWD, handle)
        finally:
            os.fchdir(before)
    finally:
        os.close(before)
