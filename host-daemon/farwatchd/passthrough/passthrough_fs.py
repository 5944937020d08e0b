# SPDX-License-Identifier: Apache-2.0
"""Implements the FUSE server's interface (``farwatchd.fuse.filesystem.FileSystem``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from farwatchd.inode_store.store import ExportedInodes, HostInode, InodeStore
from farwatchd.passthrough.attributes import AttributeOperations
from farwatchd.passthrough.data import DataOperations
from farwatchd.passthrough.directories import DirectoryOperations
from farwatchd.passthrough.locks import LockOperations
from farwatchd.passthrough.namespace import NamespaceOperations
from farwatchd.passthrough.open import OpenOperations
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.share import ShareState
from farwatchd.passthrough.xattrs import XattrOperations
from farwatchd.wire.state import Descriptors, ReceivedDescriptors, State


class PassthroughFs:
    """A directory of the host.

    Most errors have the errno of the host's kernel. The groups of operations have their ``share``
    in common; an operation is the method of its group, without a call in between.
    """

    def __init__(
        self, root: Path | int, options: ShareOptions, store: InodeStore | None = None
    ) -> None:
        """Open the share; arguments as of ``ShareState``."""
        self.share = share = ShareState(root, options, store)
        self.timeout = options.cache.seconds
        self.set_negotiated = share.set_negotiated
        self.reset = share.reset
        self.close = share.close

        namespace = NamespaceOperations(share)
        self.lookup = namespace.lookup
        self.symlink = namespace.symlink
        self.mknod = namespace.mknod
        self.mkdir = namespace.mkdir
        self.unlink = namespace.unlink
        self.rmdir = namespace.rmdir
        self.rename = namespace.rename
        self.link = namespace.link

        attributes = AttributeOperations(share)
        self.getattr = attributes.getattr
        self.statx = attributes.statx
        self.setattr = attributes.setattr
        self.readlink = attributes.readlink
        self.statfs = attributes.statfs
        self.syncfs = attributes.syncfs
        self.watch_target = attributes.watch_target

        xattrs = XattrOperations(share)
        self.setxattr = xattrs.setxattr
        self.getxattr = xattrs.getxattr
        self.listxattr = xattrs.listxattr
        self.removexattr = xattrs.removexattr

        files = OpenOperations(share)
        self.open = files.open
        self.create = files.create
        self.tmpfile = files.tmpfile
        self.flush = files.flush

        data = DataOperations(share)
        self.read = data.read
        self.write = data.write
        self.fsync = data.fsync
        self.fallocate = data.fallocate
        self.lseek = data.lseek
        self.copy_file_range = data.copy_file_range

        directories = DirectoryOperations(share)
        self.opendir = directories.opendir
        self.readdir = directories.readdir
        self.releasedir = directories.releasedir
        self.fsyncdir = directories.fsyncdir

        locks = LockOperations(share)
        self.getlk = locks.getlk
        self.setlk = locks.setlk
        self.flock = locks.flock
        self.unlock_owner = locks.unlock_owner

    def export_state(self, state: State, fds: Descriptors, host_inodes: ExportedInodes) -> None:
        """Add what the guest knows, has open and has locked to a state."""
        share = self.share
        share.inodes.export_state(state, host_inodes)
        share.open_files.export_state(state, fds)
        share.locks.export_state(state, fds)

    def restore_state(
        self, state: State, fds: ReceivedDescriptors, host_inodes: list[HostInode]
    ) -> None:
        """Add what the guest knows, has open and has locked; ``StateError``, ``OSError``."""
        share = self.share
        (numbers,) = state.numbers
        share.inodes.restore_state(state.inodes, host_inodes, numbers.nodeid)
        share.open_files.restore_state(state.open_files, state.flocks, fds, numbers.fh)
        share.locks.restore_state(state, fds, share.open_files)

    def use_threads(
        self, run_aside: Callable[[Callable[[], None]], None], own_umask: Callable[[], bool]
    ) -> None:
        """Have ``run_aside`` run what may wait for a server, in any thread.

        ``own_umask``: whether a task may set the umask(2).
        """
        self.share.run_aside = run_aside
        self.share.own_umask = own_umask

    def forget(self, nodeid: int, nlookup: int) -> bool:
        """Reduce a lookup count; at 0 release the locks on the inode, and return True."""
        gone = self.share.inodes.forget(nodeid, nlookup)
        if gone:
            self.share.locks.drop(nodeid)
        return gone

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file, and release the locks that were taken through it."""
        self.share.locks.release(nodeid, fh)
        self.share.open_files.release(nodeid, fh)
