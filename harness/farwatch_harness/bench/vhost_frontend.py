# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front end without a guest: gives a daemon memory and rings, and has prepared
requests sent over them.

What is sent again and again is laid out here once; the sending is synthetic.c, so that it costs
little.
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

from farwatch_harness.util import apt, paths, subprocesses
from farwatch_harness.util.errors import HarnessError

SOURCE = Path(__file__).with_name("synthetic.c")
LIBRARY = paths.CHECKOUT / "build" / "bench" / "bench_synthetic.so"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
#: Seconds to wait for a reply to a vhost-user message.
PATIENCE = 10.0
PAGE = 4096
MEMORY = 160 << 20
#: The guest's and the front end's address of the memory's first byte.
BASE, USER_BASE = 1 << 30, 0x7F00_0000_0000
#: As large as QEMU lets it be, so that 1 MiB in single pages is one request.
RING = 1024
HIPRIO, REQUESTS = range(2)
DESC_NEXT, DESC_WRITE = 1, 2
FEATURES = int(VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC)
MAX_DEPTH = 64
FAILURES = (
    "",
    "another error than expected",
    "no proper reply",
    "no reply",
    "the device cannot be waited for",
)

_DESCRIPTOR = struct.Struct("<QIHH")


@dataclass(frozen=True)
class Copy:
    """Eight bytes of a reply, from `start` after its header on, that a later request of the same
    slot needs.

    `step` counts from the request that is answered; they go to `target` of its arguments, or of its
    header.
    """

    start: int
    step: int
    target: int
    header: bool = False


@dataclass(frozen=True)
class Request:
    """A FUSE request. `room` is for its reply after the header; `data` and `data_room` are as much
    in single pages."""

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
        """Whether there is no reply; such requests go by the queue for them."""
        return self.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET)


@dataclass(frozen=True)
class Counts:
    """What was done in one go: times in ns, `cpu_ns` being the front end's own processor time."""

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
class _Placed:
    """Where the parts of a request are in the memory; `reply` is the header's place, `reply_args`
    what follows it."""

    header: int
    args: int
    reply: int
    reply_args: int
    table: int
    descriptors: int


@dataclass
class Program:
    """The requests of each slot, in the memory and as synthetic.c wants them."""

    depth: int
    requests: list[Request]
    steps: list[_Step] = field(default_factory=list)
    copies: list[_Copy] = field(default_factory=list)
    placed: list[_Placed] = field(default_factory=list)


def compiled() -> ctypes.CDLL:
    """Compiles and loads the driver; HarnessError gives the compiler's words."""
    apt.install(["gcc", "libc6-dev"], paths.LOGS / "apt-bench.log")
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    subprocesses.run(["gcc", *FLAGS, "-o", LIBRARY, SOURCE])
    return ctypes.CDLL(str(LIBRARY))


class Memory:
    """The guest's memory, given out from the beginning on."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("farwatch-bench", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY)
        self.map = mmap.mmap(self.fd, MEMORY)
        # Place 0 means: there is none.
        self.next = PAGE

    @property
    def address(self) -> int:
        """Where it is mapped here."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def allocate(self, size: int, align: int = 64) -> int:
        """The place of `size` zero bytes. No two are adjacent, as a guest's small buffers are
        not."""
        place = -(-self.next // align) * align
        self.next = place + size + 1
        if self.next > MEMORY:
            raise HarnessError("the benchmark's guest memory is used up")
        self.map[place : place + size] = bytes(size)
        return place

    def put(self, data: bytes) -> int:
        place = self.allocate(len(data))
        self.map[place : place + len(data)] = data
        return place


class FrontEnd:
    """A daemon's only guest, on the connection `sock`, which it takes over."""

    def __init__(self, sock: socket.socket, driver: ctypes.CDLL) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.driver = driver
        self.protocol_features = ProtocolFeature(0)
        self.unique = ctypes.c_uint64(0)
        self.memory = Memory()
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
        sizes = 16 * RING, 6 + 2 * RING, 6 + 8 * RING
        return _Ring(RING, *(self.memory.allocate(size) for size in sizes), kick)

    def close(self) -> None:
        """Leaves."""
        self.sock.close()
        for fd in (*self.kicks, self.call, self.memory.fd):
            os.close(fd)

    # vhost-user

    def negotiate(self) -> None:
        """All that QEMU does until a guest can use the queues."""
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
        self.tell(wire.FrontEndRequest.SET_OWNER)
        self.tell(wire.FrontEndRequest.SET_FEATURES, wire.number.pack(value=int(wanted)))
        table = wire.memory_table.pack(regions=1)
        table += wire.memory_region.pack(guest_addr=BASE, size=MEMORY, user_addr=USER_BASE)
        self.tell(wire.FrontEndRequest.SET_MEM_TABLE, table, [self.memory.fd])
        for index, ring in enumerate(self.rings):
            self.start_ring(index, ring)

    def start_ring(self, index: int, ring: _Ring) -> None:
        self.tell(
            wire.FrontEndRequest.SET_VRING_NUM, wire.vring_state.pack(index=index, num=ring.size)
        )
        self.tell(wire.FrontEndRequest.SET_VRING_BASE, wire.vring_state.pack(index=index))
        addresses = wire.vring_addr.pack(
            index=index,
            descriptor=USER_BASE + ring.descriptors,
            available=USER_BASE + ring.available,
            used=USER_BASE + ring.used,
        )
        self.tell(wire.FrontEndRequest.SET_VRING_ADDR, addresses)
        self.tell(wire.FrontEndRequest.SET_VRING_CALL, wire.number.pack(value=index), [self.call])
        self.tell(wire.FrontEndRequest.SET_VRING_KICK, wire.number.pack(value=index), [ring.kick])
        self.tell(wire.FrontEndRequest.SET_VRING_ENABLE, wire.vring_state.pack(index=index, num=1))

    def tell(
        self, request: wire.FrontEndRequest, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Sends a message that has no reply of its own; HarnessError when the daemon says that it
        cannot do it."""
        acknowledged = ProtocolFeature.REPLY_ACK in self.protocol_features
        self.send(request, payload, fds, HeaderFlag.NEED_REPLY if acknowledged else HeaderFlag(0))
        if acknowledged and self.number(request):
            raise HarnessError(f"the daemon refuses {request.name}")

    def ask_number(self, request: wire.FrontEndRequest) -> int:
        self.send(request)
        return self.number(request)

    def send(
        self,
        request: wire.FrontEndRequest,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        flags: HeaderFlag = HeaderFlag(0),  # noqa: B008
    ) -> None:
        message = wire.header.pack_values(request, wire.VERSION | flags, len(payload)) + payload
        socket.send_fds(self.sock, [message], list(fds))

    def number(self, request: wire.FrontEndRequest) -> int:
        """The number that is the reply to `request`."""
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

    def ask(self, request: Request) -> bytes:
        """Sends one request and returns its reply after the header; HarnessError unless it has the
        expected error."""
        with self.prepared([[request]]) as program:
            self.drive(program, 0.0)
            start = program.placed[0].reply_args
            return self.memory.map[start : start + request.room]

    @contextmanager
    def prepared(self, slots: Sequence[Sequence[Request]]) -> Iterator[Program]:
        """Lays out what each slot does; all have equally many requests of the same kinds."""
        if not 0 < len(slots) <= MAX_DEPTH:
            raise HarnessError(f"{len(slots)} requests at a time: 1 to {MAX_DEPTH} are possible")
        mark = self.memory.next
        program = Program(len(slots), list(slots[0]))
        for requests in slots:
            self.lay_out(program, requests)
        yield program
        self.memory.next = mark

    def drive(self, program: Program, seconds: float) -> Counts:
        """Has all slots do their requests again and again for `seconds`, and at least once;
        HarnessError on failure."""
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
        return Counts(*(int(getattr(result, name)) for name in Counts.__dataclass_fields__))

    def lay_out(self, program: Program, requests: Sequence[Request]) -> None:
        """Adds one slot to the program."""
        placed = [self.place(request) for request in requests]
        for number, (request, at) in enumerate(zip(requests, placed, strict=True)):
            first = len(program.copies)
            for copy in request.copies:
                there = placed[number + copy.step]
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
        program.placed += placed

    def place(self, request: Request) -> _Placed:
        """Writes one request as Linux does: header, arguments and each page of data in a descriptor
        of its own."""
        memory = self.memory
        length = in_header.size + len(request.args) + request.data
        header = memory.put(
            in_header.pack(len=length, opcode=request.opcode, nodeid=request.nodeid, pid=1)
        )
        args = memory.put(request.args)
        pieces = [(header, in_header.size, 0), (args, len(request.args), 0)]
        pieces += [(page, PAGE, 0) for page in self.pages(request.data)]
        reply = reply_args = 0
        if not request.silent:
            reply, reply_args = memory.allocate(out_header.size), memory.allocate(request.room)
            pieces += [(reply, out_header.size, DESC_WRITE), (reply_args, request.room, DESC_WRITE)]
            pieces += [(page, PAGE, DESC_WRITE) for page in self.pages(request.data_room)]
        pieces = [piece for piece in pieces if piece[1]]
        table = b"".join(
            _DESCRIPTOR.pack(
                BASE + place, size, flags | (DESC_NEXT if number < len(pieces) else 0), number
            )
            for number, (place, size, flags) in enumerate(pieces, 1)
        )
        return _Placed(header, args, reply, reply_args, memory.put(table), len(pieces))

    def pages(self, size: int) -> list[int]:
        """Places of single pages that hold `size` bytes; no two are adjacent."""
        return [self.memory.allocate(PAGE, PAGE) for _ in range(0, size, PAGE)]
