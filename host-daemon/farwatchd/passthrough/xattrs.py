# SPDX-License-Identifier: Apache-2.0
"""Extended attributes (xattr(7)), and through two of them POSIX ACLs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from farwatchd.linux.libc import failure
from farwatchd.passthrough.share import Operations, check_name_left

T = TypeVar("T")
_ACCESS_ACL = b"system.posix_acl_access"
_ACLS = frozenset({_ACCESS_ACL, b"system.posix_acl_default"})


class XattrOperations(Operations):
    """Operations on extended attributes.

    ENOSYS: they are off. EOPNOTSUPP: an ACL, and ACLs are off.
    """

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set one; ``flags`` are XATTR_CREATE and XATTR_REPLACE.

        ``kill_sgid``: the requester sets an access ACL and is not in the file's group, so clear the
        set-group-id bit.
        """
        self._check(name)
        self._share.refuse_if_readonly()
        host_name = self._host_name(name)

        def call(fd: int) -> None:
            path = self._proc.path(fd)
            os.setxattr(path, host_name, value, flags)
            if kill_sgid and name == _ACCESS_ACL:
                mode = os.fstat(fd).st_mode
                if mode & stat.S_ISGID:
                    Path(path).chmod(stat.S_IMODE(mode) & ~stat.S_ISGID)

        self._on_existing(nodeid, call)

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """Return the value; ENODATA if the attribute is not set."""
        self._check(name)
        try:
            host_name = self._host_name(name)
        except PermissionError:
            # A name that cannot be set is not set: programs that back up or copy files go on.
            raise failure(errno.ENODATA) from None
        return self._on_existing(nodeid, lambda fd: os.getxattr(self._proc.path(fd), host_name))

    def listxattr(self, nodeid: int) -> Iterable[bytes]:
        """Return the names of all attributes that the guest may see."""
        self._check(b"")

        def call(fd: int) -> list[bytes]:
            listed = map(os.fsencode, os.listxattr(self._proc.path(fd)))
            found = (name for name in listed if not self._is_hidden(name))
            names = map(self._options.xattrmap.to_guest, found) if self._options.xattrmap else found
            return [name for name in names if name and not self._is_hidden(name)]

        return self._on_existing(nodeid, call)

    def removexattr(self, nodeid: int, name: bytes) -> None:
        """Remove one; ENODATA if the attribute is not set."""
        self._check(name)
        self._share.refuse_if_readonly()
        host_name = self._host_name(name)
        self._on_existing(nodeid, lambda fd: os.removexattr(self._proc.path(fd), host_name))

    def _check(self, name: bytes) -> None:
        if not self._options.xattr:
            raise failure(errno.ENOSYS)
        if self._is_hidden(name):
            raise failure(errno.EOPNOTSUPP)

    def _on_existing(self, nodeid: int, call: Callable[[int], T]) -> T:
        """Return the result of ``call`` with the descriptor of an inode that has a name."""
        inode = self._inodes.get(nodeid)
        if not self._share.is_stale_without_name(inode):
            return self._share.waiting_where_remote(inode, call)

        def checked(fd: int) -> T:
            check_name_left(fd)
            return call(fd)

        return self._share.waiting_where_remote(inode, checked)

    def _host_name(self, name: bytes) -> bytes:
        """Return the host's name of an attribute, which must not be hidden either."""
        host_name = self._share.host_xattr(name)
        if self._is_hidden(host_name):
            raise failure(errno.EOPNOTSUPP)
        return host_name

    def _is_hidden(self, name: bytes) -> bool:
        return name in _ACLS and not self._share.posix_acls
