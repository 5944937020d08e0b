# SPDX-License-Identifier: Apache-2.0
"""Opens a watch back end that works here: it is tried with one watch of the share's root."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from enum import Enum

from farwatchd.inode_store.store import InodeStore
from farwatchd.linux.fanotify import Fanotify
from farwatchd.linux.inotify import Inotify
from farwatchd.watch.backend_base import proc_path
from farwatchd.watch.fanotify_backend import NO_PID, FanotifyBackend, UnwatchableError
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.options import DEFAULT_EVENT_QUEUE, BackendName
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.state import ReceivedDescriptors, State, StateError

_log = logging.getLogger(__name__)
#: Events that the host's queue has room for, by default (fs.fanotify.max_queued_events).
_HOST_QUEUE = 16384


class WatchMode(Enum):
    """Whether the guest's own operations are reported (docs/protocol.md, "Negotiation")."""

    REMOTE = "remote"
    OTHERS = "others"


class BackendUnavailableError(Exception):
    """No watch back end works. The message is one line for the user: the cause and the remedy."""


#: The back ends that can serve a mode, best first. inotify coalesces adjacent equal events only;
#: fanotify alone knows who caused an event.
_CANDIDATES = {
    WatchMode.REMOTE: (BackendName.INOTIFY, BackendName.FANOTIFY),
    WatchMode.OTHERS: (BackendName.FANOTIFY,),
}

_ADVICE = {
    errno.ENOENT: "the share cannot be reached through /proc/self/fd; is /proc mounted?",
    errno.EACCES: "the share's root cannot be read; watching needs read permission",
    errno.EPERM: "it is not permitted here; it needs CAP_SYS_ADMIN or a newer kernel",
    errno.ENOSYS: "the kernel does not have it",
    errno.EINVAL: "the kernel is too old for it",
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
    inodes: InodeStore,
    path_of: Callable[[int], str] = proc_path,
    mode: WatchMode = WatchMode.REMOTE,
    event_queue: int = DEFAULT_EVENT_QUEUE,
) -> WatchBackend:
    """Open the chosen watch back end, or the best one that works, and return it.

    ``root_fd`` is the share's root directory and stays the caller's. ``inodes`` keeps the watched
    inodes. ``path_of`` returns a path to a descriptor's inode. Mode ``others`` leaves out the
    events of the process that calls this. ``event_queue``: how many events the daemon's own queue
    has room for; where the host's would be shorter, it is made longer if that is possible. Raises
    ``BackendUnavailableError``.
    """
    usable = _CANDIDATES[mode]
    candidates = usable if choice is BackendName.AUTO else (choice,)
    problems = []
    for name in candidates:
        if name not in usable:
            problems.append(
                f"{name.value}: it does not know who caused an event, mode {mode.value} needs"
                f" {usable[0].value}"
            )
            continue
        try:
            backend = _try(name, root_fd, inodes, path_of, mode, event_queue)
        except OSError as error:
            problems.append(f"{name.value}: {_explain(name, error)}")
        else:
            _log.info("host changes are watched with %s, mode %s", backend.name, mode.value)
            return backend
    raise BackendUnavailableError(f"cannot watch the share with {'; nor with '.join(problems)}")


def restore_backend(
    state: State,
    fds: ReceivedDescriptors,
    root_fd: int,
    inodes: InodeStore,
    path_of: Callable[[int], str] = proc_path,
) -> WatchBackend | None:
    """Open the watch back end whose groups are in a state, without watches yet.

    Arguments as of ``open_backend``. None: there was none. ``StateError``, ``OSError``.
    """
    if not state.backend:
        return None
    (record,) = state.backend
    groups = [fds.take(each.fd) for each in state.groups]
    if record.name == BackendName.INOTIFY.value.encode() and len(groups) == 1:
        return InotifyBackend(root_fd, inodes, path_of, instance=Inotify(groups[0]))
    if record.name == BackendName.FANOTIFY.value.encode() and groups:
        return FanotifyBackend(
            root_fd,
            inodes,
            path_of,
            own_pid=os.getpid() if record.others_only else NO_PID,
            groups=[Fanotify(fd=fd) for fd in groups],
        )
    raise StateError("its watch back end is unknown")


def _try(
    name: BackendName,
    root_fd: int,
    inodes: InodeStore,
    path_of: Callable[[int], str],
    mode: WatchMode,
    event_queue: int,
) -> WatchBackend:
    backend: WatchBackend
    if name is BackendName.INOTIFY:
        backend = InotifyBackend(root_fd, inodes, path_of)
    else:
        own_pid = os.getpid() if mode is WatchMode.OTHERS else NO_PID
        unlimited = event_queue > _HOST_QUEUE
        backend = FanotifyBackend(root_fd, inodes, path_of, own_pid, unlimited)
    try:
        every = backend.supported & (Event.CREATE | Event.RENAME | Event.OPEN_EXEC | Event.ON_CHILD)
        backend.unwatch(backend.watch(root_fd, every, is_dir=True))
    except OSError:
        backend.close()
        raise
    return backend


def _explain(name: BackendName, error: OSError) -> str:
    if isinstance(error, UnwatchableError):
        return str(error.strerror)
    number = error.errno or 0
    return _LIMITS.get((name, number)) or _ADVICE.get(number) or os.strerror(number)
