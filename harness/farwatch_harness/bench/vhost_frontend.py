# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front-end without a guest: gives a daemon memory and rings, and sends requests.

Requests that are sent many times are laid out here once. synthetic.c sends them, so that sending
costs little.
"""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from farwatchd.wire import vhost_user as wire
from farwatchd.wire.fuse import Opcode, in_header, out_header
from farwatchd.wire.vhost_user import HeaderFlag, ProtocolFeature
from farwatchd.wire.virtio import VirtioFeature

from farwatch_harness.util import compiler
from farwatch_harness.util.errors import HarnessError

SOURCE = Path(__file__).with_name("synthetic.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
#: Seconds to wait for a reply to a vhost-user message.
REPLY_LIMIT = 10.0
PAGE = 4096
MEMORY = 160 << 20
#: The guest's and the front-end's address of the memory's first byte.
BASE, USER_BASE = 1 << 30, 0x7F00_0000_0000
#: The largest size that QEMU permits, so that 1 MiB in single pages is one request.
RING = 1024
HIPRIO, REQUESTS = range(2)
DESC_NEXT, DESC_WRITE = 1, 2
FEATURES = int(VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC)
MAX_DEPTH = 64
FAILURES = (
    "",
    "another error than expected",
    "malformed reply",
    "no reply",
    "cannot wait for the device",
)

_DESCRIPTOR = struct.Struct("<QIHH")


@dataclass(frozen=True)
class Copy:
    """Eight bytes of a reply that a later request of the same slot needs.

    start: their offset after the reply's header.
    step: the number of requests from the answered request to the later one.
    target: the offset in the later request's arguments, or in its header if `header` is set.
    """

    start: int
    step: int
    target: int
    header: bool = False


@dataclass(frozen=True)
class PreparedRequest:
    """A FUSE request.

    room: bytes for the reply after its header.
    data, data_room: bytes of data of the request and of the reply, in single pages.
    error: the errno that the reply must have.
    """

    opcode: Opcode
    nodeid: int
    args: bytes = b""
    room: int = 0
    data: int = 0
    data_room: int = 0
    error: int = 0
    copies: tuple[Copy, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether there is no reply; such requests use the hiprio queue."""
        return self.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET)


@dataclass(frozen=True)
class DriveCounts:
    """What one run of the driver did. Times are in ns; `cpu_ns` is the front-end's CPU time."""

    runs: int
    requests: int
    wall_ns: int
    cpu_ns: int
    kicks: int
    interrupts: int


class _Ring(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32) for name in ("size", "descriptors", "available", "used")
    ] + [("kick", ctypes.c_int32)]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("ring", "table", "descriptors", "request", "reply")),
        ("error", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("first_copy", "copies")),
    ]


class _Copy(ctypes.Structure):
    _fields_ = [("from_", ctypes.c_uint32), ("to", ctypes.c_uint32)]


class _Result(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("runs", "requests", "wall_ns", "cpu_ns", "kicks", "interrupts")
        ),
        *((name, ctypes.c_int32) for name in ("failed", "step", "error")),
    ]


@dataclass(frozen=True)
class _RequestLayout:
    """The offsets of a request's parts in the memory.

    reply, reply_args: the reply's header, and the bytes after it.
    """

    header: int
    args: int
    reply: int
    reply_args: int
    table: int
    descriptors: int


@dataclass
class Program:
    """The requests of each slot, in the memory and in the form that synthetic.c uses."""

    depth: int
    requests: list[PreparedRequest]
    steps: list[_Step] = field(default_factory=list)
    copies: list[_Copy] = field(default_factory=list)
    layouts: list[_RequestLayout] = field(default_factory=list)


def compiled() -> ctypes.CDLL:
    """Load the driver. HarnessError: has the compiler's errors."""
    return ctypes.CDLL(str(compiler.program(SOURCE, *FLAGS)))


class BenchmarkMemory:
    """The guest's memory, allocated from its beginning on."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("farwatch-bench", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY)
        self.map = mmap.mmap(self.fd, MEMORY)
        # Offset 0 means "none".
        self.next = PAGE

    @property
    def address(self) -> int:
        """The address at which the memory is mapped in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def allocate(self, size: int, align: int = 64) -> int:
        """Return the offset of `size` zero bytes.

        No two allocations are adjacent, as a guest's small buffers are not.
        """
        offset = -(-self.next // align) * align
        self.next = offset + size + 1
        if self.next > MEMORY:
            raise HarnessError("the benchmark's guest memory is used up")
        self.map[offset : offset + size] = bytes(size)
        return offset

    def put(self, data: bytes) -> int:
        """Copy the data into the memory; return its offset."""
        offset = self.allocate(len(data))
        self.map[offset : offset + len(data)] = data
        return offset


class SyntheticFrontEnd:
    """A daemon's only front-end. It takes ownership of the connection `sock`."""

    def __init__(self, sock: socket.socket, driver: ctypes.CDLL) -> None:
        sock.settimeout(REPLY_LIMIT)
        self.sock = sock
        self.driver = driver
        self.protocol_features = ProtocolFeature(0)
        self.unique = ctypes.c_uint64(0)
        self.memory = BenchmarkMemory()
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in (HIPRIO, REQUESTS)]
        self.rings = [self.new_ring(kick) for kick in self.kicks]
        try:
            self.negotiate()
        except OSError as error:
            raise HarnessError(
                f"the daemon does not answer a vhost-user message: {error}"
            ) from error

    def new_ring(self, kick: int) -> _Ring:
        """Allocate a ring."""
        sizes = 16 * RING, 6 + 2 * RING, 6 + 8 * RING
        return _Ring(RING, *(self.memory.allocate(size) for size in sizes), kick)

    def close(self) -> None:
        """Close the connection and all descriptors."""
        self.sock.close()
        for fd in (*self.kicks, self.call, self.memory.fd):
            os.close(fd)

    # vhost-user

    def negotiate(self) -> None:
        """Send the messages that QEMU sends until a guest can use the queues."""
        offered = self.ask_number(wire.FrontEndRequest.GET_FEATURES)
        wanted = FEATURES | wire.VHOST_USER_F_PROTOCOL_FEATURES
        if wanted & ~offered:
            raise HarnessError(f"the daemon lacks features: {wanted & ~offered!r}")
        known = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
        known &= ProtocolFeature(
            self.ask_number(wire.FrontEndRequest.GET_PROTOCOL_FEATURES) & int(known)
        )
        self.send(wire.FrontEndRequest.SET_PROTOCOL_FEATURES, wire.number.pack(value=int(known)))
        self.protocol_features = known
        self.send_checked(wire.FrontEndRequest.SET_OWNER)
        self.send_checked(wire.FrontEndRequest.SET_FEATURES, wire.number.pack(value=int(wanted)))
        table = wire.memory_table.pack(regions=1)
        table += wire.memory_region.pack(guest_addr=BASE, size=MEMORY, user_addr=USER_BASE)
        self.send_checked(wire.FrontEndRequest.SET_MEM_TABLE, table, [self.memory.fd])
        for index, ring in enumerate(self.rings):
            self.start_ring(index, ring)

    def start_ring(self, index: int, ring: _Ring) -> None:
        """Send the messages that start a ring."""
        self.send_checked(
            wire.FrontEndRequest.SET_VRING_NUM, wire.vring_state.pack(index=index, num=ring.size)
        )
        self.send_checked(wire.FrontEndRequest.SET_VRING_BASE, wire.vring_state.pack(index=index))
        addresses = wire.vring_addr.pack(
            index=index,
            descriptor=USER_BASE + ring.descriptors,
            available=USER_BASE + ring.available,
            used=USER_BASE + ring.used,
        )
        self.send_checked(wire.FrontEndRequest.SET_VRING_ADDR, addresses)
        self.send_checked(
            wire.FrontEndRequest.SET_VRING_CALL, wire.number.pack(value=index), [self.call]
        )
        self.send_checked(
            wire.FrontEndRequest.SET_VRING_KICK, wire.number.pack(value=index), [ring.kick]
        )
        self.send_checked(
            wire.FrontEndRequest.SET_VRING_ENABLE, wire.vring_state.pack(index=index, num=1)
        )

    def send_checked(
        self, request: wire.FrontEndRequest, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Send a message that has no reply of its own.

        HarnessError: the daemon acknowledges it with an error.
        """
        acknowledged = ProtocolFeature.REPLY_ACK in self.protocol_features
        self.send(request, payload, fds, HeaderFlag.NEED_REPLY if acknowledged else HeaderFlag(0))
        if acknowledged and self.number(request):
            raise HarnessError(f"the daemon refuses {request.name}")

    def ask_number(self, request: wire.FrontEndRequest) -> int:
        """Send a request without payload; return the number that is its reply."""
        self.send(request)
        return self.number(request)

    def send(
        self,
        request: wire.FrontEndRequest,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        flags: HeaderFlag = HeaderFlag(0),  # noqa: B008
    ) -> None:
        """Send a message with these descriptors."""
        message = wire.header.pack_values(request, wire.VERSION | flags, len(payload)) + payload
        socket.send_fds(self.sock, [message], list(fds))

    def number(self, request: wire.FrontEndRequest) -> int:
        """Return the number that is the reply to `request`."""
        size = wire.header.size + wire.number.size
        reply = b""
        while len(reply) < size:
            part = self.sock.recv(size - len(reply))
            if not part:
                break
            reply += part
        if len(reply) < size or wire.header.unpack_from(reply).request != request:
            raise HarnessError(f"the daemon does not answer {request.name}")
        return int(wire.number.unpack_from(reply, wire.header.size).value)

    # Requests

    def ask(self, request: PreparedRequest) -> bytes:
        """Send one request; return its reply after the header.

        HarnessError: the reply has another error than expected.
        """
        with self.prepared([[request]]) as program:
            self.drive(program, 0.0)
            start = program.layouts[0].reply_args
            return self.memory.map[start : start + request.room]

    @contextmanager
    def prepared(self, slots: Sequence[Sequence[PreparedRequest]]) -> Iterator[Program]:
        """Lay out the requests of each slot; free the memory when the block ends.

        slots: all have the same kinds of requests, in the same order.
        """
        if not 0 < len(slots) <= MAX_DEPTH:
            raise HarnessError(f"{len(slots)} concurrent requests: 1 to {MAX_DEPTH} are possible")
        mark = self.memory.next
        program = Program(len(slots), list(slots[0]))
        for requests in slots:
            self.lay_out(program, requests)
        yield program
        self.memory.next = mark

    def drive(self, program: Program, seconds: float) -> DriveCounts:
        """Have all slots repeat their requests for `seconds`, at least once.

        HarnessError: a request failed.
        """
        steps = (_Step * len(program.steps))(*program.steps)
        copies = (_Copy * len(program.copies))(*program.copies)
        result = _Result()
        self.driver.drive(
            ctypes.c_void_p(self.memory.address),
            ctypes.c_uint64(BASE),
            (_Ring * len(self.rings))(*self.rings),
            self.call,
            steps,
            len(program.requests),
            program.depth,
            copies,
            ctypes.byref(self.unique),
            ctypes.c_uint64(int(seconds * 1e9)),
            ctypes.byref(result),
        )
        if result.failed:
            name = program.requests[result.step].opcode.name
            number = f": {os.strerror(result.error)}" if result.error else ""
            raise HarnessError(f"{name}: {FAILURES[result.failed]}{number}")
        return DriveCounts(
            *(int(getattr(result, name)) for name in DriveCounts.__dataclass_fields__)
        )

    def lay_out(self, program: Program, requests: Sequence[PreparedRequest]) -> None:
        """Add one slot to the program."""
        layouts = [self.write_request(request) for request in requests]
        for number, (request, at) in enumerate(zip(requests, layouts, strict=True)):
            first = len(program.copies)
            for copy in request.copies:
                there = layouts[number + copy.step]
                to = copy.target + (there.header if copy.header else there.args)
                program.copies.append(_Copy(at.reply_args + copy.start, to))
            ring = HIPRIO if request.silent else REQUESTS
            numbers = (
                at.table,
                at.descriptors,
                at.header,
                at.reply,
                -request.error,
                first,
                len(request.copies),
            )
            program.steps.append(_Step(ring, *numbers))
        program.layouts += layouts

    def write_request(self, request: PreparedRequest) -> _RequestLayout:
        """Write one request as Linux does.

        Header, arguments and each page of data have a descriptor of their own.
        """
        memory = self.memory
        length = in_header.size + len(request.args) + request.data
        header = memory.put(
            in_header.pack(len=length, opcode=request.opcode, nodeid=request.nodeid, pid=1)
        )
        args = memory.put(request.args)
        slices = [(header, in_header.size, 0), (args, len(request.args), 0)]
        slices += [(page, PAGE, 0) for page in self.pages(request.data)]
        reply = reply_args = 0
        if not request.silent:
            reply, reply_args = memory.allocate(out_header.size), memory.allocate(request.room)
            slices += [(reply, out_header.size, DESC_WRITE), (reply_args, request.room, DESC_WRITE)]
            slices += [(page, PAGE, DESC_WRITE) for page in self.pages(request.data_room)]
        slices = [part for part in slices if part[1]]
        table = b"".join(
            _DESCRIPTOR.pack(
                BASE + offset, size, flags | (DESC_NEXT if number < len(slices) else 0), number
            )
            for number, (offset, size, flags) in enumerate(slices, 1)
        )
        return _RequestLayout(header, args, reply, reply_args, memory.put(table), len(slices))

    def pages(self, size: int) -> list[int]:
        """Return the offsets of single pages for `size` bytes; no two are adjacent."""
        return [self.memory.allocate(PAGE, PAGE) for _ in range(0, size, PAGE)]
