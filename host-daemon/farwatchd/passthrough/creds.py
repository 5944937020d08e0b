# SPDX-License-Identifier: Apache-2.0
"""Creates new files as the requester, so that they get its uid and gid as on a local disk.

Only for root; otherwise all new files are the daemon's. The ids are the calling thread's, and so is
the umask of a thread of the pool.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from farwatchd.fuse.filesystem import Requester
from farwatchd.linux.capabilities import Capability, effective, raise_permitted
from farwatchd.linux.credentials import KNOWN, set_effective_gid, set_effective_uid, set_groups
from farwatchd.linux.libc import NO_ID, failure
from farwatchd.passthrough.id_map import IdTranslation


class _Umask:
    """A context manager that sets the umask(2)."""

    __slots__ = ("_other",)

    def __init__(self, umask: int) -> None:
        self._other = umask & 0o777

    def __enter__(self) -> None:
        self._other = os.umask(self._other)

    def __exit__(self, *_: object) -> None:
        os.umask(self._other)


class Credentials:
    """The daemon's own ids, as they are when this is made, and how to change them temporarily."""

    def __init__(self, id_translation: IdTranslation | None = None) -> None:
        """``id_translation``: the requesters' ids on the host; unchanged without."""
        self._id_translation = id_translation
        self._uid, self._gid, self._groups = os.geteuid(), os.getegid(), os.getgroups()
        needed = Capability.SETUID | Capability.SETGID
        self._able = KNOWN and self._uid == 0 and effective() & needed == needed

    def of(self, requester: Requester, umask: int) -> contextlib.AbstractContextManager[None]:
        """Act as ``requester`` with its ``umask``.

        The umask counts only where there is no default ACL. ``OSError``: EPERM for an id that the
        translation forbids. The guest has checked the permission, and knows all groups of the
        requester; hence DAC_OVERRIDE stays.
        """
        if self._id_translation is not None:
            requester = self._id_translation.requester_on_host(requester)
        if self._able and (requester.uid != self._uid or requester.gid != self._gid):
            return self._as(requester, umask)
        return _Umask(umask)

    @contextlib.contextmanager
    def _as(self, requester: Requester, umask: int) -> Iterator[None]:
        if NO_ID in (requester.uid, requester.gid):
            raise failure(errno.EINVAL)
        with _Umask(umask), contextlib.ExitStack() as undo:
            set_groups([requester.group] if requester.group >= 0 else [])
            undo.callback(set_groups, self._groups)
            set_effective_gid(requester.gid)
            undo.callback(set_effective_gid, self._gid)
            set_effective_uid(requester.uid)
            undo.callback(set_effective_uid, self._uid)
            if requester.uid != self._uid:
                raise_permitted(Capability.DAC_OVERRIDE)
            yield
