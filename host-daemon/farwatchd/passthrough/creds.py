# SPDX-License-Identifier: Apache-2.0
"""Making new files as the guest's caller, so that they get its owner and group as on a local file
system.

Only for root; otherwise all new files are the daemon's. The umask is the process's: only this
thread makes files.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from farwatchd.fuse.filesystem import Caller
from farwatchd.linux.capabilities import Capability, effective, raise_permitted
from farwatchd.linux.credentials import KNOWN, set_effective_gid, set_effective_uid, set_groups
from farwatchd.linux.libc import NO_ID, failure
from farwatchd.passthrough.id_map import Owners


class _Umask:
    """A umask(2) for a moment."""

    __slots__ = ("_other",)

    def __init__(self, umask: int) -> None:
        self._other = umask & 0o777

    def __enter__(self) -> None:
        self._other = os.umask(self._other)

    def __exit__(self, *_: object) -> None:
        os.umask(self._other)


class Credentials:
    """The daemon's own ids, as they are when this is made, and how to change them for a moment."""

    def __init__(self, owners: Owners | None = None) -> None:
        """``owners``: who the guest's callers are on the host; the same without."""
        self._owners = owners
        self._uid, self._gid, self._groups = os.geteuid(), os.getegid(), os.getgroups()
        needed = Capability.SETUID | Capability.SETGID
        self._able = KNOWN and self._uid == 0 and effective() & needed == needed

    def of(self, caller: Caller, umask: int) -> contextlib.AbstractContextManager[None]:
        """Act as ``caller`` with its ``umask``, which counts only where there is no default ACL.

        ``OSError``: EPERM for one that may own nothing. Permission has been checked in the guest,
        which knows all of the caller's groups; hence DAC_OVERRIDE stays.
        """
        if self._owners is not None:
            caller = self._owners.caller(caller)
        if self._able and (caller.uid != self._uid or caller.gid != self._gid):
            return self._as(caller, umask)
        return _Umask(umask)

    @contextlib.contextmanager
    def _as(self, caller: Caller, umask: int) -> Iterator[None]:
        if NO_ID in (caller.uid, caller.gid):
            raise failure(errno.EINVAL)
        with _Umask(umask), contextlib.ExitStack() as undo:
            set_groups([caller.group] if caller.group >= 0 else [])
            undo.callback(set_groups, self._groups)
            set_effective_gid(caller.gid)
            undo.callback(set_effective_gid, self._gid)
            set_effective_uid(caller.uid)
            undo.callback(set_effective_uid, self._uid)
            if caller.uid != self._uid:
                raise_permitted(Capability.DAC_OVERRIDE)
            yield
