# SPDX-License-Identifier: Apache-2.0
"""Making new files as the guest's caller, so that they get its owner and group as on a local file system.

Only for root; otherwise all new files are the daemon's. The ids are the process's, which has one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from farwatchd.capabilities import Capability, effective, raise_permitted
from farwatchd.fuse.filesystem import Caller
from farwatchd.passthrough.errors import failure

_NO_ID = 0xFFFFFFFF


class Credentials:
    """The daemon's own ids, as they are when this is made, and how to change them for a moment."""

    def __init__(self) -> None:
        self._uid, self._gid, self._groups = os.geteuid(), os.getegid(), os.getgroups()
        needed = Capability.SETUID | Capability.SETGID
        self._able = self._uid == 0 and effective() & needed == needed

    @contextlib.contextmanager
    def of(self, caller: Caller, umask: int) -> Iterator[None]:
        """Act as ``caller`` with its ``umask``, which counts only where there is no default ACL.

        Permission has been checked in the guest, which knows all of the caller's groups; hence DAC_OVERRIDE stays.
        """
        previous = os.umask(umask & 0o777)
        try:
            if self._able and (caller.uid, caller.gid) != (self._uid, self._gid):
                with self._as(caller):
                    yield
            else:
                yield
        finally:
            os.umask(previous)

    @contextlib.contextmanager
    def _as(self, caller: Caller) -> Iterator[None]:
        if _NO_ID in (caller.uid, caller.gid):
            raise failure(errno.EINVAL)
        with contextlib.ExitStack() as undo:
            os.setgroups([caller.group] if caller.group >= 0 else [])
            undo.callback(os.setgroups, self._groups)
            os.setresgid(-1, caller.gid, -1)
            undo.callback(os.setresgid, -1, self._gid, -1)
            os.setresuid(-1, caller.uid, -1)
            undo.callback(os.setresuid, -1, self._uid, -1)
            if caller.uid != self._uid:
                raise_permitted(Capability.DAC_OVERRIDE)
            yield
