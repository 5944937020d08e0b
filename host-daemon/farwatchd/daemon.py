# SPDX-License-Identifier: Apache-2.0
"""Put the parts together: sandbox, file system, watches, session, device, event loop."""

from __future__ import annotations

import dataclasses
import linecache
import logging
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from farwatchd.config import UserError
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.handover.channel import HandoverError
from farwatchd.handover.parts import Parts
from farwatchd.handover.predecessor import Predecessor
from farwatchd.handover.successor import Successor
from farwatchd.inode_store.handle_probe import HandlesUnavailableError, open_store
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.linux import libc
from farwatchd.linux.capabilities import Capability
from farwatchd.listener import Sockets
from farwatchd.metrics_server import MetricsServer
from farwatchd.migration.migrated_session import MigratedSession
from farwatchd.native import NativePart, load
from farwatchd.options import Config
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.passthrough.procfd import ProcFd
from farwatchd.sandbox.enter import Namespaces, SandboxError, enter
from farwatchd.sandbox.limits import raise_nofile, usable_cpus
from farwatchd.sandbox.options import Seccomp
from farwatchd.sandbox.privileges import FILE_HANDLES, FILE_SERVER, drop, forbid_core_dumps
from farwatchd.sandbox.seccomp import SeccompError, import_library, restrict
from farwatchd.sandbox.supervisor import go_on_in_child
from farwatchd.service_manager import ServiceManager
from farwatchd.state_dir.directory import StateFiles, open_state_dir
from farwatchd.state_dir.journal_files import boot_id
from farwatchd.state_dir.saved_session import SavedSession
from farwatchd.status import DaemonStatus, Gauge
from farwatchd.termination import SignalThread, block_signals
from farwatchd.vhost_user.device_state import StateTransfer
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import Device
from farwatchd.virtqueue import SplitRing, unsupported_machine
from farwatchd.watch.backend_probe import (
    BackendUnavailableError,
    WatchMode,
    open_backend,
    restore_backend,
)
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_trace import EventTrace
from farwatchd.watch.options import BackendName, FsnotifyMode, WatchOptions
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.state import ReceivedDescriptors, State, StateError

_log = logging.getLogger(__name__)

#: Used by logging when something fails, and not to be found any more once the sandbox is entered.
_NEEDED_LATER = (traceback, linecache)


def run(
    config: Config, sockets: Sockets, manager: ServiceManager, ready: Callable[[], None]
) -> None:
    """Serve on ``sockets`` until a signal, or until the front-end leaves; ``UserError``.

    ``ready`` is called, and ``manager`` gets a report, when requests can be served.
    """
    os.umask(0)
    if (problem := unsupported_machine(os.uname().machine)) is not None:
        raise UserError(problem)
    if libc.missing:
        names = ", ".join(f"{name}()" for name in libc.missing)
        raise UserError(f"the C library has no {names}; glibc 2.30 or later is needed")
    try:
        limit = raise_nofile(config.sandbox.rlimit_nofile)
    except ValueError as error:
        raise UserError(str(error)) from error
    _log.debug("%d files may be open", limit)
    cpus = usable_cpus()
    native = load(config.process.native)
    _log.info("serving by %s", "the interpreter's code" if native is None else "the native part")

    def supervise() -> None:
        nonlocal manager
        manager = go_on_in_child(manager)

    lasting = _lasting(config)
    state_files, boot = _open_state(config, lock=sockets.predecessor is None)
    successor = None if sockets.predecessor is None else Successor(sockets.predecessor)
    namespaces = Namespaces(() if successor is None else successor.greet(lasting))
    try:
        # While modules can still be found.
        seccomp = None if config.sandbox.seccomp is Seccomp.NONE else import_library()
        root_fd = enter(
            config.sandbox.sandbox,
            config.shared_dir.absolute(),
            config.sandbox.id_maps,
            supervise,
            namespaces,
        )
    except (SandboxError, SeccompError) as error:
        raise UserError(str(error)) from error
    store = _open_store(config, root_fd, limit)
    try:
        _serve(
            config,
            sockets,
            root_fd,
            store,
            seccomp,
            cpus,
            manager,
            ready,
            lasting,
            namespaces,
            successor,
            state_files,
            boot,
            native,
        )
    except (UserError, StateError) as error:
        if successor is None:
            raise
        successor.refuse(f"the new daemon cannot serve: {error}")
        raise UserError(f"--replace: {error}") from error


def _open_state(config: Config, lock: bool) -> tuple[StateFiles | None, bytes]:
    """Return the files of the state directory, if there is one, and the id of the host's boot."""
    if config.process.state_dir is None:
        return None, b""
    return open_state_dir(config.process.state_dir, config.shared_dir, lock=lock), boot_id()


def _lasting(config: Config) -> dict[str, str]:
    """Return the options that a successor must have, too, as text.

    Call it before the sandbox is entered.
    """
    return {
        "shared-dir": str(config.shared_dir.resolve()),
        "tag": str(config.device.tag),
        "num-request-queues": str(config.device.num_request_queues),
        "sandbox": config.sandbox.sandbox.value,
        "uid-map and --gid-map": str(config.sandbox.id_maps),
        "inode-file-handles": config.share.inode_file_handles.value,
        "fsnotify": config.watch.fsnotify.value,
        "fsnotify-backend": config.watch.fsnotify_backend.value,
        "metrics-socket": str(config.socket.metrics_socket),
        "state-dir": str(config.process.state_dir),
    }


def _serve(
    config: Config,
    sockets: Sockets,
    root_fd: int,
    store: InodeStore,
    seccomp: Any,
    cpus: float,
    manager: ServiceManager,
    ready: Callable[[], None],
    lasting: dict[str, str],
    namespaces: Namespaces,
    successor: Successor | None,
    state_files: StateFiles | None,
    boot: bytes,
    native: NativePart | None,
) -> None:
    taken = None if successor is None else successor.take()
    if taken is not None:
        sockets = _taken_sockets(*taken, sockets)
    assert sockets.front_end is not None
    loop = Loop()
    store.use_loop(loop.call_later, loop.call_soon)
    queue: EventQueue | None = None
    watches: WatchTable | None = None
    backend: WatchBackend | None = None
    if config.watch.fsnotify is not FsnotifyMode.OFF:
        trace = EventTrace() if config.watch.trace_events else None
        queue = EventQueue(config.watch.event_queue, trace)
        if taken is None:
            backend = _backend(config.watch, root_fd, store)
        else:
            backend = restore_backend(*taken, root_fd, store, ProcFd().path)
        if backend is not None:
            watches = WatchTable(backend, queue, config.watch.max_watches, loop.call_later, trace)
            loop.add(backend.fileno(), watches.process)
    locks = BlockingLocks(loop.call_later)
    pool = ThreadPool(config.process.thread_pool_size, loop.call_from_thread)
    # Before the file system, which asks what it may do.
    capabilities = _drop(config, backend, store)
    others_only = backend is not None and backend.others_only
    fs = PassthroughFs(root_fd, config.share, store)
    fs.use_threads(pool.run_aside, lambda: pool.own_umask)
    session = Session(
        fs,
        watches,
        dataclasses.replace(config.session, others_only=others_only),
        locks,
        pool,
        queue,
        None if native is None else partial(native.plain_requests, fs),
    )
    # With one CPU the guest could not run while the daemon polls.
    busy_poll = config.device.busy_poll if cpus > 1 else 0
    busy = BusyPoll(busy_poll * 1000, loop.has_work)
    make_ring = SplitRing if native is None else native.make_ring
    device = Device(loop, session, config.device, queue, busy, make_ring)
    states = {False: f"waiting for a VMM on {config.socket.name}", True: "serving a VMM"}

    def report(connected: bool) -> None:
        manager.status(states[connected])

    saved = lock = None
    if state_files is not None:
        lock = state_files.in_flight if taken is None else _taken_lock(*taken)
        saved = SavedSession(
            state_files, boot, lasting, fs, store, session, queue, device, loop.call_soon
        )
    device.state_transfer = StateTransfer(
        loop,
        MigratedSession(
            config.migration,
            fs,
            store,
            session,
            pool,
            locks,
            queue,
            device,
            (lambda: None) if saved is None else saved.restart,
        ),
    )
    server = Server(
        loop,
        sockets.front_end,
        device,
        loop.stop,
        not config.socket.keep_serving,
        report,
        None if saved is None else saved.connection,
    )
    parts = Parts(store, fs, pool, session, queue, watches, device, server, lock)
    if taken is not None:
        parts.restore_state(*taken)
        taken[1].close()
    block_signals()
    status = DaemonStatus(
        str(config.shared_dir),
        config.device.tag,
        session.metrics,
        pool.durations,
        _gauges(fs, watches, queue, device, pool),
    )
    if sockets.metrics is not None:
        MetricsServer(loop, sockets.metrics, status.text)
    signals = SignalThread(loop.stop, lambda: loop.call_from_thread(status.log))
    _restrict(config, capabilities, seccomp)
    try:
        pool.start()
        signals.start()
    except RuntimeError as error:
        raise UserError(
            f"--thread-pool-size={config.process.thread_pool_size}: {error}; use"
            " --thread-pool-size=0 to serve without threads"
        ) from error
    predecessor = _wait_for_successors(loop, config, sockets, parts, lasting, namespaces)
    if successor is not None:
        if loop.is_stopping:
            raise UserError("ended by a signal")
        successor.commit()
        sockets.cleanup.arm()
        if saved is not None:
            saved.go_on()
        parts.resume()
        _log.info("replaced the daemon that served before")
    elif saved is not None:
        saved.begin(server)
    _log.info("listening on %s", config.socket.name)
    manager.ready(states[server.connected])
    manager.start_watchdog(loop.call_later)
    ready()
    loop.run()
    manager.stopping()
    if predecessor is None or not predecessor.handed_over:
        if saved is not None and server.connected:
            _leave_to_next(parts)
        else:
            server.close()
            session.reset()
    if not pool.close(0):
        _log.warning("ended; the host still works on requests of the guest")
        logging.shutdown()
        # A thread in a system call that does not return would keep the interpreter.
        os._exit(0)
    signals.close()
    _log.info("ended")


def _taken_sockets(state: State, fds: ReceivedDescriptors, sockets: Sockets) -> Sockets:
    """Return the sockets of the daemon that served before."""
    (server,) = state.server
    metrics = fds.take_any(server.metrics)
    return sockets._replace(
        front_end=socket.socket(fileno=fds.take(server.listener)),
        handover=socket.socket(fileno=fds.take(server.handover)),
        metrics=None if metrics is None else socket.socket(fileno=metrics),
    )


def _taken_lock(state: State, fds: ReceivedDescriptors) -> int | None:
    """Return the descriptor with the lock of the daemon that served before."""
    (server,) = state.server
    return fds.take_any(server.lock)


def _leave_to_next(parts: Parts) -> None:
    """Stop serving a guest that goes on with the next daemon on this socket."""
    try:
        parts.settle()
    except HandoverError as error:
        _log.warning("%s", error)
    parts.server.pause()


def _wait_for_successors(
    loop: Loop,
    config: Config,
    sockets: Sockets,
    parts: Parts,
    lasting: dict[str, str],
    namespaces: Namespaces,
) -> Predecessor | None:
    if sockets.handover is None:
        return None
    return Predecessor(
        loop,
        sockets.handover,
        sockets.metrics,
        parts,
        lasting,
        namespaces.fds,
        sockets.cleanup,
        check_user=config.sandbox.id_maps is None,
    )


def _gauges(
    fs: PassthroughFs,
    watches: WatchTable | None,
    queue: EventQueue | None,
    device: Device,
    pool: ThreadPool,
) -> tuple[Gauge, ...]:
    """Return what the parts of the daemon count."""
    share = fs.share
    gauges = [
        Gauge("inodes", "Inodes that the guest knows", lambda: len(share.inodes)),
        Gauge(
            "open_files", "Files and directories the guest has open", lambda: len(share.open_files)
        ),
        Gauge("locks", "POSIX locks of the guest on the host", lambda: len(share.locks)),
        Gauge(
            "replies_deferred", "Requests whose reply is deferred", lambda: device.pending_replies
        ),
        Gauge("tasks_pending", "Tasks of the thread pool that are not done", lambda: len(pool)),
    ]
    if watches is not None:
        gauges.append(Gauge("watches", "Watches of the guest", lambda: len(watches)))
    if queue is not None:
        gauges += [
            Gauge("events_pending", "Events that wait for the guest", lambda: len(queue)),
            Gauge(
                "events_queued_total",
                "Events of the host for the guest",
                lambda: queue.queued_total,
                "counter",
            ),
            Gauge(
                "events_dropped_total",
                "Events that were lost: a queue was full",
                lambda: queue.dropped_total,
                "counter",
            ),
            Gauge(
                "event_overflows_total",
                "Overflows that were reported to the guest",
                lambda: queue.overflows_total,
                "counter",
            ),
        ]
    return tuple(gauges)


def _open_store(config: Config, root_fd: int, limit: int) -> InodeStore:
    """Return the inode store; ``limit`` is how many files may be open."""
    capable = not FILE_HANDLES & config.sandbox.modcaps.drop
    try:
        return open_store(
            config.share.inode_file_handles,
            root_fd,
            limit,
            capable,
            config.share.inode_descriptors,
        )
    except HandlesUnavailableError as error:
        raise UserError(f"--inode-file-handles=mandatory: {error}") from error


def _drop(config: Config, backend: WatchBackend | None, store: InodeStore) -> Capability:
    """Give up the capabilities that only the set-up needed; return those that are left."""
    changes = config.sandbox.modcaps
    kept = FILE_SERVER | changes.add
    by_handle = store.keep is not InodeFileHandles.NEVER
    if by_handle or (backend is not None and backend.name == BackendName.FANOTIFY.value):
        kept |= FILE_HANDLES
    return drop(kept & ~changes.drop)


def _restrict(config: Config, capabilities: Capability, seccomp: Any) -> None:
    """Load the system call filter. From here on the guest may be served."""
    forbid_core_dumps()
    try:
        if seccomp is not None:
            restrict(seccomp, config.sandbox.seccomp)
    except SeccompError as error:
        raise UserError(str(error)) from error
    names = " ".join(str(capability.name).lower() for capability in capabilities) or "none"
    _log.info(
        "sandbox %s; capabilities: %s; system calls: %s",
        config.sandbox.sandbox.value,
        names,
        "restricted" if seccomp is not None else "not restricted",
    )


#: The modes to try, best first.
_MODES = {
    FsnotifyMode.AUTO: (WatchMode.OTHERS, WatchMode.REMOTE),
    FsnotifyMode.OTHERS: (WatchMode.OTHERS,),
    FsnotifyMode.REMOTE: (WatchMode.REMOTE,),
}


def _backend(options: WatchOptions, root_fd: int, store: InodeStore) -> WatchBackend | None:
    """Return the watch back end for the best mode that works here.

    None: no back end works, and the user did not ask for one.
    """
    problems = []
    for mode in _MODES[options.fsnotify]:
        try:
            return open_backend(
                options.fsnotify_backend,
                root_fd,
                store,
                ProcFd().path,
                mode,
                options.event_queue,
            )
        except BackendUnavailableError as error:
            problems.append(f"mode {mode.value}: {error}")
            _log.info("no %s", problems[-1])
    if options.fsnotify is FsnotifyMode.AUTO and options.fsnotify_backend is BackendName.AUTO:
        _log.warning("the guest gets no events: %s", problems[-1])
        return None
    raise UserError(f"{problems[-1]}; use --fsnotify=off to start without events")
