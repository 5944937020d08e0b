# SPDX-License-Identifier: Apache-2.0
"""File systems of a server, whose system calls do not return while it does not answer."""

from __future__ import annotations

from farwatchd.linux.syscalls import file_system_type

#: By statfs(2): FUSE, NFS, SMB (three drivers), 9P, Ceph, AFS (two), Coda, Lustre, GPFS, BeeGFS,
#: VirtualBox, VMware; and those of a cluster: OCFS2, GFS2.
_REMOTE = frozenset(
    (
        0x65735546, 0x6969, 0x517B, 0xFE534D42, 0xFF534D42, 0x01021997, 0x00C36400, 0x5346414F,
        0x6B414653, 0x73757245, 0x0BD00BD0, 0x47504653, 0x19830326, 0x786F4256, 0xBACBACBC,
        0x7461636F, 0x01161970,
    )
)  # fmt: skip


def is_remote(fd: int) -> bool:
    """Return whether a file is on a remote file system."""
    return file_system_type(fd) in _REMOTE
