# SPDX-License-Identifier: Apache-2.0
"""The FUSE session: dispatches requests by opcode to a file system, and writes replies (7.42)."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.filesystem import FileSystem, WatchTarget
from farwatchd.fuse.handlers.attributes import AttributeHandlers
from farwatchd.fuse.handlers.io import IoHandlers
from farwatchd.fuse.handlers.locks import LockHandlers
from farwatchd.fuse.handlers.namespace import NamespaceHandlers
from farwatchd.fuse.init import Negotiated, negotiate, restored
from farwatchd.fuse.killpriv import KillPriv
from farwatchd.fuse.metrics import SAMPLED_MASK, RequestMetrics
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.reply import EMPTY, ErrorReply, Handler, Reply
from farwatchd.fuse.request import Request, decode, invalid
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.fuse.wait_requests import WaitRequests
from farwatchd.fuse.watches import GuestWatches
from farwatchd.iovec import gather, scatter
from farwatchd.virtio_fs.interfaces import DeferredReply, NotificationSource
from farwatchd.virtqueue import Chain
from farwatchd.watch.event_record import RECORD_MAX
from farwatchd.wire.fsnotify import Event, fsnotify_in, fsnotify_out, fsnotify_wait_in
from farwatchd.wire.fuse import (
    InHeader,
    Opcode,
    batch_forget_in,
    forget_in,
    forget_one,
    in_header,
    init_out,
    interrupt_in,
    out_header,
)
from farwatchd.wire.state import NONE, SessionState, State

if TYPE_CHECKING:
    from farwatchd._native import PlainRequests

    #: Makes what serves plain requests, of the handlers that count and what counts durations.
    PlainMaker = Callable[[Mapping[int, Handler], Callable[[int, int], None]], PlainRequests | None]

__all__ = ["Session", "SessionOptions"]

_log = logging.getLogger(__name__)
_HEADER_SIZE = in_header.size
_REPLY_HEADER_SIZE = out_header.size
_pack_header = out_header.pack_into
#: The events that FUSE_FSNOTIFY may request.
_REQUESTABLE = sum(
    event
    for event in Event
    if event not in (Event.ISDIR, Event.OVERFLOW, Event.WATCH_ENDED, Event.WATCHES_LOST)
)
#: The client takes errors from -511 to -1.
_ERRNO_MAX = 511
#: Seconds that the end of a session waits for tasks that wait for a disk or a network.
CANCEL_LIMIT = 1.0


class Session:
    """Serves one guest after the other; implements the device's ``RequestHandler``.

    An error of a request becomes the errno of its reply, and a line in the debug log. An exception
    of the file system other than ``OSError`` is a bug, and the device handles it.
    """

    def __init__(
        self,
        fs: FileSystem,
        watches: GuestWatches | None,
        options: SessionOptions,
        locks: BlockingLocks | None = None,
        pool: ThreadPool | None = None,
        source: NotificationSource | None = None,
        make_plain: PlainMaker | None = None,
    ) -> None:
        """Serve ``fs``.

        ``watches``: None disables events. ``locks``: the pending blocking locks; without it the
        guest's locks do not reach the host. ``pool``: runs tasks that may take long; without it
        they run immediately. ``source``: the events for WAIT requests.
        ``make_plain``: makes what serves plain requests, as ``plain_requests`` does.
        """
        self._fs = fs
        self._watches = watches
        self._options = (
            options
            if locks is not None
            else dataclasses.replace(options, posix_lock=False, flock=False)
        )
        self._locks = locks
        self._pool = pool if pool is not None else ThreadPool()
        self._waits = WaitRequests(source)
        self._negotiated: Negotiated | None = None
        self._refusal_level = logging.WARNING
        self._attribute_handlers = AttributeHandlers(fs, self._pool)
        self._killpriv = KillPriv()
        io_handlers = IoHandlers(
            fs, self._killpriv, self._pool, locks.released if locks is not None else _no_locks
        )
        self._lock_handlers = LockHandlers(fs, locks, self._pool) if locks is not None else None
        self._handlers: dict[int, Handler] = {
            **NamespaceHandlers(fs, self._killpriv, self._pool).table(),
            **io_handlers.table(),
            **self._attribute_handlers.table(),
            **(self._lock_handlers.table() if self._lock_handlers is not None else {}),
            Opcode.INIT: Handler(self._init),
            Opcode.DESTROY: Handler(self._destroy),
            Opcode.FORGET: Handler(self._forget, forget_in.size, has_reply=False),
            Opcode.BATCH_FORGET: Handler(self._batch_forget, batch_forget_in.size, has_reply=False),
            Opcode.INTERRUPT: Handler(self._interrupt, interrupt_in.size, has_reply=False),
            Opcode.NOTIFY_REPLY: Handler(_notify_reply, has_reply=False),
            Opcode.IOCTL: Handler(_no_ioctl),
            Opcode.FSNOTIFY: Handler(self._fsnotify, fsnotify_in.size, fsnotify_out.size),
            Opcode.FSNOTIFY_WAIT: Handler(self._wait, fsnotify_wait_in.size),
        }
        #: The requests that are served before INIT has succeeded.
        self._first_handlers: dict[int, Handler] = {
            opcode: self._handlers[opcode] for opcode in (Opcode.INIT, Opcode.DESTROY)
        }
        self._served = self._first_handlers
        self.metrics = RequestMetrics(self._handlers)
        self.plain = None if make_plain is None else make_plain(self._handlers, self.metrics.add)
        if self.plain is not None:
            io_handlers.known_entry = self.plain.known_entry
        #: Called when a session has ended.
        self.on_reset: Callable[[], None] = _nothing

    @property
    def negotiated(self) -> SessionState | None:
        """What INIT has negotiated; None before it."""
        if self._negotiated is None or self._negotiated.flags is None:
            return None
        return SessionState(self._negotiated.flags, self._negotiated.minor, 0)

    @property
    def has_events(self) -> bool:
        """Whether the guest gets events of the host."""
        return self._negotiated is not None and self._negotiated.fsnotify

    def intercept(
        self,
        opcode: int,
        around: Callable[[Callable[[Request], Reply]], Callable[[Request], Reply]],
    ) -> None:
        """Handle the requests of an opcode by what ``around`` makes of their handler.

        The native part serves the plain ones still. It keeps the journal itself.
        """
        handler = self._handlers.get(opcode)
        if handler is not None:
            handler.handle = around(handler.handle)

    def handle(self, chain: Chain) -> int | DeferredReply:
        """Serve one request; see ``RequestHandler``."""
        readable, writable = chain.readable, chain.writable
        header: InHeader
        if readable and len(readable[0]) >= _HEADER_SIZE:
            header = in_header.values(readable[0])
        else:
            header = _scattered_header(readable)
        room = chain.writable_size - _REPLY_HEADER_SIZE
        opcode = header[1]
        handler = self._served.get(opcode)
        if handler is None:
            return self._refuse(header, writable, room, self._unserved(opcode))
        handle = handler.handle
        handler.requests += 1
        if not handler.requests & SAMPLED_MASK:
            handle = self.metrics.timed(opcode, handle)
        try:
            if room < handler.reply_size and handler.has_reply:
                raise invalid(f"room for a reply of {room} bytes, {handler.reply_size} are needed")
            request = decode(header, chain, room)
            if len(request.args) < handler.args_size:
                raise invalid(
                    f"{len(request.args)} bytes of arguments, {handler.args_size} are needed"
                )
            reply = handle(request)
        except OSError as error:
            return self._refuse(header, writable, room, error)
        if isinstance(reply, bytes):
            length = _REPLY_HEADER_SIZE + len(reply)
            if len(writable) == 2 and len(writable[0]) == _REPLY_HEADER_SIZE:
                # The layout of most replies to Linux.
                writable[1][: len(reply)] = reply
                _pack_header(writable[0], 0, length, 0, header[2])
                return length
            if reply:
                scatter(writable, _REPLY_HEADER_SIZE, reply)
        elif isinstance(reply, int):
            length = _REPLY_HEADER_SIZE + reply
        elif reply is None:
            return 0
        elif isinstance(reply, ErrorReply):
            handler.errors += 1
            return _write_header(writable, _REPLY_HEADER_SIZE, -reply.errno, header[2])
        else:
            return reply
        return _write_header(writable, length, 0, header[2])

    def events_available(self) -> None:
        """Complete pending WAIT requests; see ``RequestHandler``."""
        self._waits.events_available()

    def drain(self, timeout: float) -> bool:
        """Complete the tasks of the thread pool, within a limit; see ``RequestHandler``."""
        return self._pool.drain(timeout)

    def detach_memory(self) -> None:
        """Copy what pending tasks need of the guest's memory; see ``RequestHandler``."""
        self._pool.detach_memory()

    def reset(self) -> None:
        """End the session: release the guest's inodes, files, locks and watches.

        The next session begins with INIT.
        """
        self._negotiated = None
        self._served = self._first_handlers
        if self.plain is not None:
            self.plain.opcodes = 0
        self._waits.end()
        if self._locks is not None:
            self._locks.clear()
        self._pool.cancel(CANCEL_LIMIT)
        self._fs.reset()
        if self._watches is not None:
            self._watches.reset()
        self.on_reset()

    def export_state(self, state: State, dropped_records: int) -> None:
        """Add what was negotiated to a state; no task may be pending.

        Pending WAIT requests and locks are not part of it: they are handled again where they go.
        """
        negotiated = self._negotiated
        if negotiated is None or negotiated.flags is None:
            state.session.append(SessionState(NONE, 0, dropped_records))
        else:
            flags, minor = negotiated.flags, negotiated.minor
            state.session.append(SessionState(flags, minor, dropped_records))
        if self._locks is not None:
            state.interrupts += self._locks.export_state()

    def restore_state(self, state: State) -> None:
        """Serve by what a state says was negotiated; ``StateError``."""
        (session,) = state.session
        if session.flags != NONE:
            watchable = Event(0) if self._watches is None else self._watches.supported
            self._use(restored(session.flags, session.minor, self._options, watchable))
        if self._locks is not None:
            self._locks.restore_state(state.interrupts)

    def _unserved(self, opcode: int) -> OSError:
        """Return the error for a request that has no handler now."""
        if opcode in self._handlers:
            return OSError(errno.EIO, "comes before INIT")
        return OSError(errno.EIO if self._negotiated is None else errno.ENOSYS, "not served")

    def _refuse(
        self, header: InHeader, writable: Sequence[memoryview], room: int, error: OSError
    ) -> int:
        """Reply with an error, if the request has a reply and room for it."""
        _, opcode, unique, nodeid, *_ = header
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s of node %d: %s", _OpcodeName(opcode), nodeid, error.strerror or error)
        handler = self._handlers.get(opcode)
        if handler is not None:
            handler.errors += 1
        else:
            self.metrics.unknown += 1
        if room < 0 or (handler is not None and not handler.has_reply):
            return 0
        number = (
            error.errno if error.errno is not None and 0 < error.errno <= _ERRNO_MAX else errno.EIO
        )
        return _write_header(writable, _REPLY_HEADER_SIZE, -number, unique)

    def _init(self, request: Request) -> Reply:
        watchable = Event(0) if self._watches is None else self._watches.supported
        try:
            negotiated = negotiate(request.args, self._options, watchable)
        except OSError as error:
            # Once: a guest that retries must not fill the log.
            _log.log(self._refusal_level, "the guest cannot mount the share: %s", error.strerror)
            self._refusal_level = logging.DEBUG
            raise
        if len(negotiated.reply) > request.room:
            raise invalid(
                f"room for {request.room} bytes of INIT's reply, {init_out.size} are needed"
            )
        if negotiated.flags is None:
            return negotiated.reply
        if self._negotiated is not None:
            _log.info("the guest initializes the session again")
        self.reset()
        self._use(negotiated)
        _log.info(
            "the guest speaks FUSE 7.%d, events of the host: mode %s",
            negotiated.minor,
            negotiated.mode,
        )
        return negotiated.reply

    def _use(self, negotiated: Negotiated) -> None:
        """Serve by what was negotiated."""
        self._negotiated = negotiated
        self._served = self._handlers
        if negotiated.wait_requests:
            self._waits.start()
        self._attribute_handlers.use_setxattr_ext(negotiated.setxattr_ext)
        self._fs.set_negotiated(posix_acls=negotiated.posix_acl, writeback=negotiated.writeback)
        self._killpriv.set_negotiated(negotiated.killpriv_v2)
        if self._lock_handlers is not None:
            self._lock_handlers.use(negotiated.posix_lock, negotiated.flock)
        if self._watches is not None:
            self._watches.report_own(not negotiated.others_only)
        if self.plain is not None:
            plain = self._plain(self.plain.known, negotiated)
            self.plain.opcodes = sum(1 << opcode for opcode in plain)

    def _plain(self, known: int, negotiated: Negotiated) -> set[int]:
        """Return the requests that the native part may serve by what was negotiated.

        ``known``: those that it can serve, a bit each.
        """
        opcodes = {opcode for opcode in self._handlers if known >> opcode & 1}
        if negotiated.posix_lock or negotiated.flock:
            # They release locks.
            opcodes -= {Opcode.FLUSH, Opcode.RELEASE}
        if negotiated.writeback:
            # The flags of open(2) are others then.
            opcodes.discard(Opcode.OPEN)
        return opcodes

    def _interrupt(self, request: Request) -> Reply:
        if self._locks is not None:
            self._locks.interrupt(interrupt_in.unpack_from(request.args).unique)
        return None

    def _destroy(self, request: Request) -> Reply:
        self.reset()
        return EMPTY

    def _forget(self, request: Request) -> Reply:
        (nlookup,) = forget_in.values(request.args)
        self._forget_one(request.nodeid, nlookup)
        return None

    def _batch_forget(self, request: Request) -> Reply:
        count = batch_forget_in.unpack_from(request.args).count
        position = batch_forget_in.size
        if position + count * forget_one.size > len(request.args):
            raise invalid(f"{count} inodes to forget in {len(request.args)} bytes")
        for _ in range(count):
            self._forget_one(*forget_one.values(request.args, position))
            position += forget_one.size
        return None

    def _forget_one(self, nodeid: int, nlookup: int) -> None:
        if self._fs.forget(nodeid, nlookup) and self._watches is not None:
            self._watches.forget(nodeid)

    def _fsnotify(self, request: Request) -> Reply:
        if self._watches is None or self._negotiated is None or not self._negotiated.fsnotify:
            raise OSError(errno.ENOSYS, "was not negotiated")
        args = fsnotify_in.unpack_from(request.args)
        if args.flags or args.mask & ~_REQUESTABLE:
            raise invalid("reserved fields or unknown events")
        set_mask = partial(self._set_mask, self._watches, request.nodeid, args)
        find = partial(self._fs.watch_target, answering=bool(args.mask))
        return self._pool.run(request, set_mask, find, request.nodeid)

    def _set_mask(
        self, watches: GuestWatches, nodeid: int, args: Any, watched: WatchTarget
    ) -> bytes:
        """Set the mask of a watch; return the reply."""
        if args.generation != watched.generation:
            raise OSError(errno.ESTALE, "the node has another generation")
        mask = watches.set_mask(
            nodeid, watched.generation, watched.fd, watched.is_dir, Event(args.mask)
        )
        return fsnotify_out.pack_values(int(mask), 0, 0)

    def _wait(self, request: Request) -> Reply:
        if self._negotiated is None or not self._negotiated.wait_requests:
            raise OSError(errno.ENOSYS, "was not negotiated")
        args = fsnotify_wait_in.unpack_from(request.args)
        if args.flags or args.reserved:
            raise invalid("reserved fields or unknown flags")
        size = min(args.size, request.room)
        if size < RECORD_MAX:
            raise invalid(f"room for {size} bytes of events, a record may have {RECORD_MAX}")
        return self._waits.add(request.unique, size)


def _scattered_header(readable: Sequence[memoryview]) -> InHeader:
    """Return the fields of a request's header that is not in one view.

    Without a whole header the length is 0, which is refused.
    """
    start = gather(readable, 0, _HEADER_SIZE)
    header: InHeader = in_header.values(start.ljust(_HEADER_SIZE, b"\0"))
    return header if len(start) == _HEADER_SIZE else (0, *header[1:])


def _write_header(writable: Sequence[memoryview], length: int, error: int, unique: int) -> int:
    """Write the reply's header; return ``length``."""
    if len(writable[0]) >= _REPLY_HEADER_SIZE:
        _pack_header(writable[0], 0, length, error, unique)
    else:
        scatter(writable, 0, out_header.pack_values(length, error, unique))
    return length


class _OpcodeName:
    """An opcode's name, which is made only if it is logged."""

    def __init__(self, opcode: int) -> None:
        self._opcode = opcode

    def __str__(self) -> str:
        try:
            return Opcode(self._opcode).name
        except ValueError:
            return f"opcode {self._opcode}"


def _nothing() -> None:
    pass


def _no_locks() -> None:
    """Ignore released locks: the guest has none on the host."""


def _notify_reply(request: Request) -> Reply:
    """Ignore the reply to a notification: no notification of this daemon asks for one."""
    return None


def _no_ioctl(request: Request) -> Reply:
    raise OSError(errno.ENOTTY, "no device")
