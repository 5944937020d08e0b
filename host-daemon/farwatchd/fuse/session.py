# SPDX-License-Identifier: Apache-2.0
"""The FUSE session: takes requests, dispatches them by opcode to a file system, writes replies
(FUSE 7.41)."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Sequence
from typing import Any

from farwatchd.fuse.blocking_locks import Waits
from farwatchd.fuse.filesystem import FileSystem
from farwatchd.fuse.handlers.attributes import InodeOperations
from farwatchd.fuse.handlers.io import FileOperations
from farwatchd.fuse.handlers.locks import LockOperations
from farwatchd.fuse.handlers.namespace import NameOperations
from farwatchd.fuse.init import Negotiated, negotiate
from farwatchd.fuse.killpriv import SetIdBits
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.reply import EMPTY, PARK, SILENT, Failed, Operation, Reply
from farwatchd.fuse.request import Request, decode, invalid
from farwatchd.fuse.thread_pool import Workers
from farwatchd.fuse.watches import GuestWatches
from farwatchd.iovec import gather, scatter
from farwatchd.virtio_fs.interfaces import PARKED, late
from farwatchd.virtqueue import Chain
from farwatchd.watch.event_record import RECORD_MAX
from farwatchd.wire.fsnotify import Event, WaitFlag, fsnotify_in, fsnotify_out, fsnotify_wait_in
from farwatchd.wire.fuse import (
    Opcode,
    batch_forget_in,
    forget_in,
    forget_one,
    in_header,
    init_out,
    interrupt_in,
    out_header,
)

__all__ = ["Session", "SessionOptions"]

_log = logging.getLogger(__name__)
_HEADER_SIZE = in_header.size
_REPLY_HEADER_SIZE = out_header.size
_pack_header = out_header.pack_into
#: What FUSE_FSNOTIFY may ask for.
_REQUESTABLE = sum(event for event in Event if event not in (Event.ISDIR, Event.OVERFLOW))
#: The client takes errors from -511 to -1.
_ERRNO_MAX = 511


class Session:
    """Serves one guest after the other; implements the transport's ``RequestHandler``.

    What is wrong with a request is the guest's to know: an error reply and a line in the debug log.
    An exception of the file system other than ``OSError`` is a bug and goes to the transport.
    """

    def __init__(
        self,
        fs: FileSystem,
        watches: GuestWatches | None,
        options: SessionOptions,
        waits: Waits | None = None,
        workers: Workers | None = None,
    ) -> None:
        """``waits``: where requests wait for locks; without it the guest's locks are its own
        matter.

        ``workers``: who does what takes long; without them it is done at once.
        """
        self._fs = fs
        self._watches = watches
        self._options = (
            options
            if waits is not None
            else dataclasses.replace(options, posix_lock=False, flock=False)
        )
        self._waits = waits
        self._workers = workers if workers is not None else Workers()
        self._agreed: Negotiated | None = None
        self._parks = False
        self._refusal_level = logging.WARNING
        self._inodes = InodeOperations(fs, self._workers)
        self._setid = SetIdBits()
        files = FileOperations(
            fs, self._setid, self._workers, waits.poke if waits is not None else _nobody_waits
        )
        self._locks = LockOperations(fs, waits) if waits is not None else None
        self._operations: dict[int, Operation] = {
            **NameOperations(fs, self._setid).table(),
            **files.table(),
            **self._inodes.table(),
            **(self._locks.table() if self._locks is not None else {}),
            Opcode.INIT: Operation(self._init),
            Opcode.DESTROY: Operation(self._destroy),
            Opcode.FORGET: Operation(self._forget, forget_in.size, SILENT),
            Opcode.BATCH_FORGET: Operation(self._batch_forget, batch_forget_in.size, SILENT),
            Opcode.INTERRUPT: Operation(self._interrupt, interrupt_in.size, SILENT),
            Opcode.NOTIFY_REPLY: Operation(_nothing, 0, SILENT),
            Opcode.IOCTL: Operation(_no_ioctl),
            Opcode.FSNOTIFY: Operation(self._fsnotify, fsnotify_in.size, fsnotify_out.size),
            Opcode.FSNOTIFY_WAIT: Operation(self._wait, fsnotify_wait_in.size),
        }
        #: Those that may come before the two sides have agreed on anything.
        self._first_operations: dict[int, Operation] = {
            opcode: self._operations[opcode] for opcode in (Opcode.INIT, Opcode.DESTROY)
        }
        self._served = self._first_operations

    @property
    def parks(self) -> bool:
        """Whether requests may wait for events; see ``RequestHandler``."""
        return self._parks

    def handle(self, chain: Chain) -> int:
        """Serve one request and return the bytes of its reply, 0 for none; see
        ``RequestHandler``."""
        readable, writable = chain.readable, chain.writable
        if readable and len(readable[0]) >= _HEADER_SIZE:
            header = in_header.values(readable[0])
        else:
            header = _scattered_header(readable)
        room = chain.writable_size - _REPLY_HEADER_SIZE
        operation = self._served.get(header[1])
        if operation is None:
            return self._refuse(header, writable, room, self._unserved(header[1]))
        handler, args, needed = operation
        try:
            if room < needed:
                raise invalid(f"room for a reply of {room} bytes, {needed} are needed")
            request = decode(header, chain, room)
            if len(request.args) < args:
                raise invalid(f"{len(request.args)} bytes of arguments, {args} are needed")
            reply = handler(request)
        except OSError as error:
            return self._refuse(header, writable, room, error)
        if needed == SILENT:
            return 0
        if isinstance(reply, bytes):
            length = _REPLY_HEADER_SIZE + len(reply)
            if len(writable) == 2 and len(writable[0]) == _REPLY_HEADER_SIZE:
                # As Linux has room for most.
                writable[1][: len(reply)] = reply
            elif reply:
                scatter(writable, _REPLY_HEADER_SIZE, reply)
        elif isinstance(reply, int):
            if reply == PARK:
                return PARKED
            length = _REPLY_HEADER_SIZE + reply
        elif isinstance(reply, Failed):
            return _write_header(writable, _REPLY_HEADER_SIZE, -reply.errno, header[2])
        else:
            return late(reply.ticket)
        return _write_header(writable, length, 0, header[2])

    def reset(self) -> None:
        """Forget the guest: its inodes, handles and watches. The next one begins with INIT."""
        self._agreed = None
        self._served = self._first_operations
        self._parks = False
        if self._waits is not None:
            self._waits.clear()
        self._workers.finish()
        self._fs.reset()
        if self._watches is not None:
            self._watches.reset()

    def _unserved(self, opcode: int) -> OSError:
        """The error for what is not in the table of operations now."""
        if opcode in self._operations:
            return OSError(errno.EIO, "comes before INIT")
        return OSError(errno.EIO if self._agreed is None else errno.ENOSYS, "not served")

    def _refuse(
        self, header: tuple[Any, ...], writable: Sequence[memoryview], room: int, error: OSError
    ) -> int:
        """Reply with an error, where the request has a reply and room for it."""
        _, opcode, unique, nodeid, *_ = header
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s of node %d: %s", _Name(opcode), nodeid, error.strerror or error)
        operation = self._operations.get(opcode)
        if room < 0 or (operation is not None and operation.reply == SILENT):
            return 0
        number = (
            error.errno if error.errno is not None and 0 < error.errno <= _ERRNO_MAX else errno.EIO
        )
        return _write_header(writable, _REPLY_HEADER_SIZE, -number, unique)

    def _init(self, request: Request) -> Reply:
        watchable = Event(0) if self._watches is None else self._watches.supported
        try:
            agreed = negotiate(request.args, self._options, watchable)
        except OSError as error:
            # Once: a guest that tries again and again shall not fill the log.
            _log.log(self._refusal_level, "the guest cannot mount the share: %s", error.strerror)
            self._refusal_level = logging.DEBUG
            raise
        if len(agreed.reply) > request.room:
            raise invalid(
                f"room for {request.room} bytes of INIT's reply, {init_out.size} are needed"
            )
        if agreed.flags is None:
            return agreed.reply
        if self._agreed is not None:
            _log.info("the guest begins anew")
        self.reset()
        self._agreed = agreed
        self._served = self._operations
        self._parks = agreed.parked
        self._inodes.use_setxattr_ext(agreed.setxattr_ext)
        self._fs.agree(posix_acls=agreed.posix_acl, writeback=agreed.writeback)
        self._setid.agree(agreed.killpriv_v2)
        if self._locks is not None:
            self._locks.use(agreed.posix_lock, agreed.flock)
        if self._watches is not None:
            self._watches.report_own(not agreed.others_only)
        _log.info(
            "the guest speaks FUSE 7.%d, events of the host: mode %s", agreed.minor, agreed.mode
        )
        return agreed.reply

    def _interrupt(self, request: Request) -> Reply:
        if self._waits is not None:
            self._waits.interrupt(interrupt_in.unpack_from(request.args).unique)
        return EMPTY

    def _destroy(self, request: Request) -> Reply:
        self.reset()
        return EMPTY

    def _forget(self, request: Request) -> Reply:
        (nlookup,) = forget_in.values(request.args)
        self._forget_one(request.nodeid, nlookup)
        return EMPTY

    def _batch_forget(self, request: Request) -> Reply:
        count = batch_forget_in.unpack_from(request.args).count
        position = batch_forget_in.size
        if position + count * forget_one.size > len(request.args):
            raise invalid(f"{count} inodes to forget in {len(request.args)} bytes")
        for _ in range(count):
            self._forget_one(*forget_one.values(request.args, position))
            position += forget_one.size
        return EMPTY

    def _forget_one(self, nodeid: int, nlookup: int) -> None:
        if self._fs.forget(nodeid, nlookup) and self._watches is not None:
            self._watches.forget(nodeid)

    def _fsnotify(self, request: Request) -> Reply:
        if self._watches is None or self._agreed is None or not self._agreed.fsnotify:
            raise OSError(errno.ENOSYS, "was not agreed on")
        args = fsnotify_in.unpack_from(request.args)
        if args.flags or args.reserved or args.mask & ~_REQUESTABLE:
            raise invalid("reserved fields or unknown events")
        watched = self._fs.watched(request.nodeid)
        mask = self._watches.set_mask(
            request.nodeid, watched.generation, watched.fd, watched.is_dir, Event(args.mask)
        )
        return fsnotify_out.pack_values(int(mask), 0, 0)

    def _wait(self, request: Request) -> Reply:
        if self._agreed is None or not self._agreed.parked:
            raise OSError(errno.ENOSYS, "was not agreed on")
        args = fsnotify_wait_in.unpack_from(request.args)
        if args.flags & ~int(WaitFlag.END) or args.reserved:
            raise invalid("reserved fields or unknown flags")
        if args.flags & WaitFlag.END:
            self._parks = False
        elif self._parks and min(args.size, request.room) < RECORD_MAX:
            raise invalid(
                f"room for {min(args.size, request.room)} bytes of events, a record may have"
                f" {RECORD_MAX}"
            )
        return PARK if self._parks else EMPTY


def _scattered_header(readable: Sequence[memoryview]) -> tuple[Any, ...]:
    """The values of a request's header that is not in one segment; a length of 0, which is refused,
    without one."""
    start = gather(readable, 0, _HEADER_SIZE)
    if len(start) < _HEADER_SIZE:
        return (0, *in_header.values(start.ljust(_HEADER_SIZE, b"\0"))[1:])
    return in_header.values(start)


def _write_header(writable: Sequence[memoryview], length: int, error: int, unique: int) -> int:
    """Write the reply's header; returns ``length``."""
    if len(writable[0]) >= _REPLY_HEADER_SIZE:
        _pack_header(writable[0], 0, length, error, unique)
    else:
        scatter(writable, 0, out_header.pack_values(length, error, unique))
    return length


class _Name:
    """An opcode's name, made only where it is logged."""

    def __init__(self, opcode: int) -> None:
        self._opcode = opcode

    def __str__(self) -> str:
        try:
            return Opcode(self._opcode).name
        except ValueError:
            return f"opcode {self._opcode}"


def _nobody_waits() -> None:
    pass


def _nothing(request: Request) -> Reply:
    return EMPTY


def _no_ioctl(request: Request) -> Reply:
    raise OSError(errno.ENOTTY, "no device")
