# SPDX-License-Identifier: Apache-2.0
"""How the set-user-id and set-group-id bits of a file go when its contents change.

fuse.h (FUSE_HANDLE_KILLPRIV_V2): the guest says that its process lacks CAP_FSETID; then the
set-user-id bit goes, and the set-group-id bit if the group may execute. The host's kernel asks more
of the process that writes: whether it is in the file's group. It would ask that of the daemon,
which is not, and not of the guest's process.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from farwatchd.linux.capabilities import Capability, effective, without

_SET_ID = stat.S_ISUID | stat.S_ISGID


@contextlib.contextmanager
def cleared(fd: int, path: str) -> Iterator[None]:
    """Change a regular file's contents so that its set-id bits go, in any thread.

    ``fd``: a descriptor of it, O_PATH or not; ``path`` leads to it. If the change fails, the bits
    may stay.
    """
    mode = os.fstat(fd).st_mode
    if not mode & _SET_ID:
        yield
    elif _group_bit_stays(mode) and effective() & Capability.FSETID:
        yield
        mode = os.fstat(fd).st_mode
        if mode & stat.S_ISUID:
            Path(path).chmod(stat.S_IMODE(mode) & ~stat.S_ISUID)
    else:
        with without(Capability.FSETID):
            yield


def _group_bit_stays(mode: int) -> bool:
    return mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
