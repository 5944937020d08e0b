# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together: socket, sandbox, file system, watches, session, device, loop."""

from __future__ import annotations

import contextlib
import grp
import linecache
import logging
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farwatchd.config import Config, FsnotifyMode
from farwatchd.errors import UserError
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import Waits
from farwatchd.fuse.session import Session, SessionOptions
from farwatchd.fuse.thread_pool import Workers
from farwatchd.fuse.tickets import Tickets
from farwatchd.inode_store.probe import HandlesUnavailableError, open_objects
from farwatchd.inode_store.store import InodeFileHandles, ObjectTable
from farwatchd.passthrough.filesystem import PassthroughFs
from farwatchd.passthrough.options import Cache, Options
from farwatchd.passthrough.procfd import ProcFd
from farwatchd.sandbox.enter import SandboxError, enter
from farwatchd.sandbox.limits import raise_nofile
from farwatchd.sandbox.privileges import FILE_HANDLES, FILE_SERVER, drop
from farwatchd.sandbox.seccomp import Seccomp, SeccompError, import_library, restrict
from farwatchd.socket_cleanup import removed_at_end
from farwatchd.vhost_user.server import ListenError, Server, inherit, listen
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import Device, DeviceConfig
from farwatchd.watch.backend import WatchBackend
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.probe import BackendName, BackendUnavailableError, WatchMode, open_backend
from farwatchd.watch.watch_table import WatchTable

_log = logging.getLogger(__name__)

#: Used by logging when something fails, and not to be found any more once the sandbox is entered.
_NEEDED_LATER = (traceback, linecache)


def run(config: Config) -> None:
    """Serve until a signal, or until the front end of an inherited connection leaves; ``UserError``
    if impossible."""
    os.umask(0)
    try:
        limit = raise_nofile(config.rlimit_nofile)
        device_config = DeviceConfig(
            config.tag,
            config.num_request_queues,
            notification=config.fsnotify is not FsnotifyMode.OFF,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    _log.debug("%d files may be open", limit)
    # While modules can still be found.
    seccomp = None if config.seccomp is Seccomp.NONE else import_library()
    with _socket(config) as sock:
        try:
            root_fd = enter(config.sandbox, config.shared_dir.absolute(), config.id_maps)
        except SandboxError as error:
            raise UserError(str(error)) from error
        _serve(config, device_config, sock, root_fd, _objects(config, root_fd, limit), seccomp)


def _serve(
    config: Config,
    device_config: DeviceConfig,
    sock: socket.socket,
    root_fd: int,
    objects: ObjectTable,
    seccomp: Any,
) -> None:
    loop = Loop()
    queue: EventQueue | None = None
    watches: WatchTable | None = None
    backend: WatchBackend | None = None
    if config.fsnotify is not FsnotifyMode.OFF:
        queue = EventQueue(config.event_queue)
        backend = _backend(config, root_fd, objects)
        if backend is not None:
            watches = WatchTable(backend, queue, config.max_watches, loop.call_later)
            loop.add(backend.fileno(), watches.process)
    filesystem = PassthroughFs(
        root_fd,
        Options(
            cache=config.cache,
            writeback=config.writeback,
            readonly=config.readonly,
            xattr=config.xattr,
            allow_direct_io=config.allow_direct_io,
            preserve_noatime=config.preserve_noatime,
            announce_submounts=config.announce_submounts,
            security_label=config.security_label,
            xattrmap=config.xattrmap,
            owners=config.owners,
            max_inodes=config.max_inodes,
        ),
        objects,
    )
    tickets = Tickets()
    waits = Waits(loop.call_later, tickets)
    workers = Workers(config.thread_pool_size, tickets, loop.call_from_thread)
    session = Session(
        filesystem,
        watches,
        SessionOptions(
            writeback=config.writeback,
            posix_acl=config.posix_acl,
            killpriv_v2=config.killpriv_v2,
            readdirplus=config.readdirplus and config.cache is not Cache.NEVER,
            announce_submounts=config.announce_submounts,
            security_label=config.security_label,
            allow_mmap=config.allow_mmap,
            others_only=backend is not None and backend.others_only,
            posix_lock=config.posix_lock,
            flock=config.flock,
        ),
        waits,
        workers,
    )
    # With one processor nobody could send what is looked for.
    busy_poll = config.busy_poll if len(os.sched_getaffinity(0)) > 1 else 0
    busy = BusyPoll(busy_poll * 1000, loop.has_work)
    device = Device(loop, session, device_config, queue, tickets, busy)
    server = Server(loop, sock, device, loop.stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: loop.stop())
    loop.wake_on_signals()
    _confine(config, backend, objects, seccomp)
    try:
        workers.start()
    except RuntimeError as error:
        raise UserError(
            f"--thread-pool-size={config.thread_pool_size}: {error}; 0 does without"
        ) from error
    where = config.socket_path if config.socket_path is not None else f"descriptor {config.fd}"
    _log.info("listening on %s", where)
    loop.run()
    server.close()
    session.reset()
    workers.close()
    _log.info("ended")


def _objects(config: Config, root_fd: int, limit: int) -> ObjectTable:
    """What inodes and watches are kept in; ``limit`` is how many files may be open."""
    capable = not FILE_HANDLES & config.modcaps[1]
    try:
        return open_objects(config.inode_file_handles, root_fd, limit, capable)
    except HandlesUnavailableError as error:
        raise UserError(f"--inode-file-handles=mandatory: {error}") from error


def _confine(
    config: Config, backend: WatchBackend | None, objects: ObjectTable, seccomp: Any
) -> None:
    """Give up what only the set-up needed. From here on the guest may be served."""
    add, remove = config.modcaps
    kept = FILE_SERVER | add
    by_handle = objects.keep is not InodeFileHandles.NEVER
    if by_handle or (backend is not None and backend.name == BackendName.FANOTIFY.value):
        kept |= FILE_HANDLES
    try:
        left = drop(kept & ~remove)
        if seccomp is not None:
            restrict(seccomp, config.seccomp)
    except SeccompError as error:
        raise UserError(str(error)) from error
    names = " ".join(str(capability.name).lower() for capability in left) or "none"
    calls = "restricted" if seccomp is not None else "not restricted"
    _log.info("sandbox %s; capabilities: %s; system calls: %s", config.sandbox.value, names, calls)


#: The modes to try, best first.
_MODES = {
    FsnotifyMode.AUTO: (WatchMode.OTHERS, WatchMode.REMOTE),
    FsnotifyMode.OTHERS: (WatchMode.OTHERS,),
    FsnotifyMode.REMOTE: (WatchMode.REMOTE,),
}


def _backend(config: Config, root_fd: int, objects: ObjectTable) -> WatchBackend | None:
    """The back end for the best mode that works here; None if none does and the user did not ask
    for one."""
    problems = []
    for mode in _MODES[config.fsnotify]:
        try:
            return open_backend(config.fsnotify_backend, root_fd, objects, ProcFd().path, mode)
        except BackendUnavailableError as error:
            problems.append(f"mode {mode.value}: {error}")
            _log.info("no %s", problems[-1])
    if config.fsnotify is FsnotifyMode.AUTO and config.fsnotify_backend is BackendName.AUTO:
        _log.warning("the guest gets no events: %s", problems[-1])
        return None
    raise UserError(f"{problems[-1]}; --fsnotify=off does without")


@contextlib.contextmanager
def _socket(config: Config) -> Iterator[socket.socket]:
    """The socket to serve on. One that is made here is removed at the end, with what was written
    beside it."""
    try:
        if config.socket_path is None:
            assert config.fd is not None
            yield inherit(config.fd)
            return
        mode = 0o600 if config.socket_group is None else 0o660
        path = config.socket_path.absolute()
        sock = listen(path, mode)
    except ListenError as error:
        raise UserError(str(error)) from error
    pid_file = path.with_name(f"{path.name}.pid")
    with contextlib.closing(sock), _tidy(path, pid_file):
        if config.socket_group is not None:
            _give_to_group(path, config.socket_group)
        yield sock


@contextlib.contextmanager
def _tidy(path: Path, pid_file: Path) -> Iterator[None]:
    """Say who serves, where virtiofsd does, for those who wait for it; leave nothing behind."""
    try:
        pid_file.unlink(missing_ok=True)
        with os.fdopen(
            os.open(pid_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w"
        ) as stream:
            stream.write(f"{os.getpid()}\n")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"cannot write {pid_file}: {error.strerror}") from error
    with removed_at_end([path, pid_file]):
        yield


def _give_to_group(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise UserError(f"--socket-group {group}: there is no such group") from None
    except OSError as error:
        raise UserError(f"--socket-group {group}: {error.strerror}") from error
