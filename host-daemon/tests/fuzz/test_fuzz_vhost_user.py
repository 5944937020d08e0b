# SPDX-License-Identifier: Apache-2.0
"""Thousands of conversations of a front-end.

Messages are nearly right, spoilt, or out of order, with descriptors missing or too many.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import HeaderFlag
from tests.support.driver import GuestRam
from tests.support.frontend import FrontEnd, region_fields
from tests.support.fuzzing import errors_logged, inputs, noise, number, spoiled
from tests.support.handlers import RAW_ECHO, RawEchoHandler
from tests.support.passthrough_share import open_descriptors

CONVERSATIONS = 2_000
#: Messages in a conversation, at most.
LENGTH = 30
FEATURES = [
    0,
    1 << 30,
    1 << 32,
    *[(1 << 32) | (1 << 30), (1 << 32) | (0b111 << 28)] * 5,
    (1 << 64) - 1,
]
#: What lets rings run, for those conversations that begin well.
IN_ORDER = [
    Request.SET_PROTOCOL_FEATURES,
    Request.SET_FEATURES,
    Request.ADD_MEM_REG,
    *[
        Request.SET_VRING_NUM,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_BASE,
        Request.SET_VRING_KICK,
    ]
    * 2,
    *[Request.SET_VRING_CALL, Request.SET_VRING_ENABLE] * 3,
]


class FrontEndGoneWild:
    """Makes messages. Most make sense, so that rings come to run."""

    def __init__(self, random: Random, ram: GuestRam) -> None:
        self._random = random
        self._ram = ram

    def payload(self, request: Request) -> bytes:
        """Make the payload of a message, with values that may be valid."""
        random = self._random
        index = random.choice((0, 1, 1, 2, 2) * 5 + (3, 255))
        match request:
            case Request.SET_FEATURES:
                return wire.number.pack(value=random.choice(FEATURES))
            case Request.SET_PROTOCOL_FEATURES:
                return wire.number.pack(
                    value=random.choice((0xA209,) * 9 + (0x209, 0, (1 << 64) - 1))
                )
            case (
                Request.SET_VRING_NUM
                | Request.SET_VRING_BASE
                | Request.SET_VRING_ENABLE
                | Request.GET_VRING_BASE
            ):
                return wire.vring_state.pack(
                    index=index, num=random.choice((0, 1, 1, 1, 8, 8, 128, 65535))
                )
            case Request.SET_VRING_ADDR:
                base = self._ram.user_addr(self._ram.BASE)
                places = [base + random.choice((0, 0x1000, 0x2000, 0x3000, 8, 3)) for _ in range(3)]
                places = places if random.random() < 0.9 else [number(random, 8) for _ in range(3)]
                fields = dict(zip(("descriptor", "available", "used"), places, strict=True))
                return wire.vring_addr.pack(
                    index=index, flags=random.choice((0, 0, 0, 1)), **fields
                )
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                return wire.number.pack(value=index | random.choice((0, 0, 0, 0x100, 0x8000)))
            case Request.SET_MEM_TABLE:
                regions = [self.region() for _ in range(random.choice((0, 1, 2, 2, 8)))]
                count = len(regions) if random.random() < 0.9 else number(random, 4)
                return wire.memory_table.pack(regions=count) + b"".join(
                    wire.memory_region.pack(**r) for r in regions
                )
            case Request.ADD_MEM_REG | Request.REM_MEM_REG:
                return wire.single_region.pack(**self.region())
            case Request.GET_CONFIG | Request.SET_CONFIG:
                size = random.choice((0, 4, 44, 256, 300))
                return wire.config.pack(offset=random.choice((0, 40, 250)), size=size) + bytes(
                    min(size, 256)
                )
        return b""

    def region(self) -> dict[str, int]:
        """Choose a region of the guest, or one that is invalid.

        An invalid one overlaps another, or leaves the file or the address space.
        """
        fields = region_fields(self._random.choice(self._ram.regions))
        if self._random.random() < 0.1:
            fields[self._random.choice(list(fields))] = number(self._random, 8)
        return fields

    def message(self, request: Request | None = None) -> tuple[bytes, list[int]]:
        """Make a message, any unless one is named, and its descriptors, which the caller closes."""
        random = self._random
        request = request or random.choice(list(Request))
        payload = self.payload(request)
        wanted = {
            Request.SET_MEM_TABLE: len(payload) // 32,
            Request.ADD_MEM_REG: 1,
        }.get(request, 0)
        if request in (
            Request.SET_VRING_KICK,
            Request.SET_VRING_CALL,
            Request.SET_VRING_ERR,
        ):
            wanted = 1
        if random.random() < 0.02:
            payload = spoiled(random, payload)
        if random.random() < 0.02:
            wanted = random.randrange(10)
        flags = wire.VERSION | (HeaderFlag.NEED_REPLY if random.random() < 0.5 else 0)
        kind = int(request) if random.random() < 0.995 else number(random, 4)
        size = len(payload) if random.random() < 0.995 else number(random, 4)
        flags = flags if random.random() < 0.995 else number(random, 4)
        data = wire.header.pack_values(kind, flags, size) + payload
        if random.random() < 0.005:
            data = noise(random, 100) or b"x"
        memory = request in (Request.SET_MEM_TABLE, Request.ADD_MEM_REG) and random.random() < 0.95
        return data, [os.dup(self._ram.fd) if memory else self.descriptor() for _ in range(wanted)]

    def descriptor(self) -> int:
        """Something open: of the right kind mostly."""
        match self._random.randrange(8):
            case 0:
                return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            case 1:
                return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            case 2:
                ours, theirs = os.pipe()
                os.close(theirs)
                return ours
            case 3:
                return os.memfd_create("short")
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def converse(random: Random, sock: socket.socket, loop: Loop, ram: GuestRam) -> None:
    """Talk until the other end has enough, or we have."""
    wild = FrontEndGoneWild(random, ram)
    in_order = [*IN_ORDER] if random.random() < 0.8 else []
    for _ in range(random.randrange(1, LENGTH)):
        data, fds = wild.message(in_order.pop(0) if in_order and random.random() < 0.9 else None)
        try:
            cut = random.randrange(len(data)) if random.random() < 0.1 else len(data)
            socket.send_fds(sock, [data[:cut]], fds)
            turn(loop)
            if cut < len(data):
                sock.send(data[cut:])
        except OSError:
            return
        finally:
            for fd in fds:
                os.close(fd)
        turn(loop)
        try:
            if not sock.recv(1 << 16, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            continue
        except ConnectionError:
            return


def turn(loop: Loop) -> None:
    """Run the daemon's loop until it is idle.

    A kick descriptor that is always readable keeps it busy for ever.
    """
    for _ in range(20):
        if not loop.run_once(0):
            return


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_any_conversation_ends_and_the_next_front_end_is_served(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    device = Device(loop, RawEchoHandler(), DeviceConfig("share", notification=False))
    server = Server(loop, listen(path), device, lambda: None)
    ram = GuestRam(1 << 16)
    before = open_descriptors()
    disconnected = 0
    with errors_logged() as lines:
        for position, random in inputs(CONVERSATIONS):
            lines.clear()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                turn(loop)
                converse(random, sock, loop, ram)
            turn(loop)
            ends = [line for line in lines if line.startswith("front-end disconnected: ")]
            assert len(ends) <= 1
            assert all(
                line.startswith("queue ") and " stopped: " in line
                for line in lines
                if line not in ends
            ), lines
            assert not any("\n" in line for line in lines)
            disconnected += len(ends)
            if open_descriptors() > before:
                gc.collect()
            assert open_descriptors() <= before, "descriptors have leaked"
            if position % 20 == 0:
                serve_one(path, loop)
    assert disconnected
    server.close()
    ram.close()


def serve_one(path: Path, loop: Loop) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    front_end = FrontEnd(sock, False, loop=loop, ram=GuestRam(1 << 20))
    front_end.negotiate()
    assert front_end.request(RAW_ECHO, 1, b"", 24)[0] == 0
    front_end.close()
    turn(loop)
