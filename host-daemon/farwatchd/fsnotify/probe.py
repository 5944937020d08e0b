# SPDX-License-Identifier: Apache-2.0
"""Finds out which watch back end works here, by opening it and placing one watch on the share's root."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from enum import Enum

from farwatchd.fsnotify.backend import Backend
from farwatchd.fsnotify.inotify import InotifyBackend, proc_path
from farwatchd.wire.fsnotify import Event

_log = logging.getLogger(__name__)

_ADVICE = {
    errno.EMFILE: "all inotify instances or descriptors are in use; raise fs.inotify.max_user_instances",
    errno.ENOSPC: "all inotify watches of this user are in use; raise fs.inotify.max_user_watches",
    errno.ENOSYS: "the kernel has no inotify",
    errno.ENOENT: "the share cannot be reached through /proc/self/fd; is /proc mounted?",
    errno.EACCES: "the share's root cannot be read; watching needs read permission",
}


class BackendName(Enum):
    """What the user may choose (``--fsnotify-backend``)."""

    AUTO = "auto"
    INOTIFY = "inotify"


class BackendUnavailableError(Exception):
    """No back end works; the message is one line for the user: what is wrong and what to do."""


def open_backend(choice: BackendName, root_fd: int, path_of: Callable[[int], str] = proc_path) -> Backend:
    """Open the chosen back end, or the best that works, for the share whose root directory is ``root_fd``.

    ``path_of`` gives a path that leads to the object of a descriptor. Raises ``BackendUnavailableError``.
    """
    try:
        backend = InotifyBackend(root_fd, path_of)
    except OSError as error:
        raise BackendUnavailableError(_say(error)) from error
    try:
        backend.unwatch(backend.watch(root_fd, Event.CREATE, is_dir=True))
    except OSError as error:
        backend.close()
        raise BackendUnavailableError(_say(error)) from error
    _log.info("host changes are watched with %s (asked for: %s)", backend.name, choice.value)
    return backend


def _say(error: OSError) -> str:
    number = error.errno or 0
    return f"cannot watch the share with inotify: {_ADVICE.get(number, os.strerror(number))}"
