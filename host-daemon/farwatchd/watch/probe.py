# SPDX-License-Identifier: Apache-2.0
"""Finds out which watch back end works here, by opening it and placing one watch on the share's
root."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from enum import Enum

from farwatchd.inode_store.store import ObjectTable
from farwatchd.watch.backend import Backend
from farwatchd.watch.backend_base import proc_path
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)


class BackendName(Enum):
    """What the user may choose (``--fsnotify-backend``)."""

    AUTO = "auto"
    INOTIFY = "inotify"
    FANOTIFY = "fanotify"


class Mode(Enum):
    """Whether the guest hears of its own operations from here (docs/protocol.md, "negotiation")."""

    REMOTE = "remote"
    OTHERS = "others"


class BackendUnavailableError(Exception):
    """No back end works; the message is one line for the user: what is wrong and what to do."""


#: Which back ends serve a mode, best first. inotify tells every event, where fanotify merges what
#: repeats; only fanotify knows whose event it is.
_CANDIDATES = {
    Mode.REMOTE: (BackendName.INOTIFY, BackendName.FANOTIFY),
    Mode.OTHERS: (BackendName.FANOTIFY,),
}

_ADVICE = {
    errno.ENOENT: "the share cannot be reached through /proc/self/fd; is /proc mounted?",
    errno.EACCES: "the share's root cannot be read; watching needs read permission",
    errno.EPERM: "it is not permitted here; it needs CAP_SYS_ADMIN or a newer kernel",
    errno.ENOSYS: "the kernel does not have it",
    errno.EINVAL: "the kernel is too old for it",
    errno.EOPNOTSUPP: "the share's file system has no file handles",
}
_LIMITS = {
    (BackendName.INOTIFY, errno.EMFILE): "raise fs.inotify.max_user_instances",
    (BackendName.INOTIFY, errno.ENOSPC): "raise fs.inotify.max_user_watches",
    (BackendName.FANOTIFY, errno.EMFILE): "raise fs.fanotify.max_user_groups",
    (BackendName.FANOTIFY, errno.ENOSPC): "raise fs.fanotify.max_user_marks",
}


def open_backend(
    choice: BackendName,
    root_fd: int,
    objects: ObjectTable,
    path_of: Callable[[int], str] = proc_path,
    mode: Mode = Mode.REMOTE,
) -> Backend:
    """Open the chosen back end, or the best that works, for the share whose root directory is
    ``root_fd``.

    ``objects`` hold the watched ones. ``path_of`` gives a path that leads to the object of a
    descriptor. To be called by the process that serves the guest, as mode others leaves out what
    the caller does. Raises ``BackendUnavailableError``.
    """
    serve = _CANDIDATES[mode]
    candidates = serve if choice is BackendName.AUTO else (choice,)
    problems = []
    for name in candidates:
        if name not in serve:
            problems.append(
                f"{name.value}: it does not know whose event it is, mode {mode.value} needs"
                f" {serve[0].value}"
            )
            continue
        try:
            backend = _try(name, root_fd, objects, path_of, mode)
        except OSError as error:
            problems.append(f"{name.value}: {_say(name, error)}")
        else:
            _log.info("host changes are watched with %s, mode %s", backend.name, mode.value)
            return backend
    raise BackendUnavailableError(f"cannot watch the share with {'; nor with '.join(problems)}")


def _try(
    name: BackendName, root_fd: int, objects: ObjectTable, path_of: Callable[[int], str], mode: Mode
) -> Backend:
    backend: Backend
    if name is BackendName.INOTIFY:
        backend = InotifyBackend(root_fd, objects, path_of)
    elif mode is Mode.OTHERS:
        backend = FanotifyBackend(root_fd, objects, path_of, own_pid=os.getpid())
    else:
        backend = FanotifyBackend(root_fd, objects, path_of)
    try:
        every = backend.supported & (Event.CREATE | Event.RENAME | Event.OPEN_EXEC | Event.ON_CHILD)
        backend.unwatch(backend.watch(root_fd, every, is_dir=True))
    except OSError:
        backend.close()
        raise
    return backend


def _say(name: BackendName, error: OSError) -> str:
    number = error.errno or 0
    return _LIMITS.get((name, number)) or _ADVICE.get(number) or os.strerror(number)
