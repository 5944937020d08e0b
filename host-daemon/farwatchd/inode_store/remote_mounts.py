# SPDX-License-Identifier: Apache-2.0
"""Which mounts are of a remote file system."""

from __future__ import annotations

from farwatchd.linux.remote_file_systems import is_remote

_MAX_KNOWN = 1024


class RemoteMounts:
    """The mounts that were asked about, by their ids.

    An id that the host gives to another mount may be answered wrongly. Nothing depends on it but
    which thread waits.
    """

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}
        #: Whether any mount was of a remote file system.
        self.any = False

    def known(self, mount_id: int) -> bool | None:
        """Return whether a mount is of a remote file system; None if it is unknown."""
        return self._known.get(mount_id)

    def learn(self, mount_id: int, remote: bool) -> None:
        """Record what a thread has found out."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[mount_id] = remote
        self.any = self.any or remote

    def has(self, mount_id: int, fd: int) -> bool:
        """Return whether the file ``fd``, on this mount, is on a remote file system.

        If the mount is unknown, this asks the file system, and so may wait for its server.
        """
        known = self._known.get(mount_id)
        if known is None:
            known = is_remote(fd)
            self.learn(mount_id, known)
        return known
