# SPDX-License-Identifier: Apache-2.0
"""A device whose event loop the test runs, with an echo handler and a list of notifications."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.device_state import StateTransfer
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue import Chain
from tests.support.driver import Buffer
from tests.support.frontend import IN_HEADER, OUT_HEADER, Channel, FrontEnd
from tests.support.handlers import CountingHandler
from tests.support.native_part import make_ring
from tests.support.passthrough_share import open_descriptors

ECHO, FAIL, LIE, DEFER = 1000, 1001, 1002, 1003


class EchoHandler(CountingHandler):
    """Replies to a request with its own payload, reversed."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[int] = []
        self.deferred: list[DeferredReply] = []

    def handle(self, chain: Chain) -> int | DeferredReply:
        self.served += 1
        data = b"".join(chain.readable)
        _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(data)
        if opcode == FAIL:
            raise RuntimeError("a bug in the handler")
        if opcode == LIE:
            return chain.writable_size + 1
        if opcode == DEFER:
            self.deferred.append(DeferredReply(unique))
            return self.deferred[-1]
        if not chain.writable:
            self.forgotten.append(nodeid)
            return 0
        payload = data[IN_HEADER.size :][::-1]
        reply = OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique) + payload
        position = 0
        for view in chain.writable:
            part = reply[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
        return len(reply)


class ListSource:
    """Notifications from a list."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.rooms: list[int] = []
        self._wakeup: Callable[[], None] = lambda: None

    def put(self, *payloads: bytes) -> None:
        self.waiting.extend(payloads)
        self._wakeup()

    def take(self, max_bytes: int) -> bytes | None:
        self.rooms.append(max_bytes)
        if not self.waiting or len(self.waiting[0]) > max_bytes:
            return None
        return self.waiting.popleft()

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        self._wakeup = callback


class DeviceFixture:
    """A device whose event loop the test runs, and the front-ends that connect to it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handler = EchoHandler()
        self.source = ListSource()
        self.ends = 0
        #: Of the devices that are made.
        self.state_transfer: StateTransfer | None = None
        self._servers: list[Server] = []
        self._front_ends: list[FrontEnd] = []

    def connect(
        self,
        notification: bool = True,
        busy_poll: BusyPoll | None = None,
        **options: object,
    ) -> FrontEnd:
        """Return a front-end with a device of its own.

        ``offer``: whether the device offers the notification queue. ``tag``: None for a device
        without a configuration space.
        """
        tag = options.pop("tag", "share")
        assert tag is None or isinstance(tag, str)
        offer = options.pop("offer", True)
        requests = options.get("num_request_queues", 1)
        assert isinstance(requests, int)
        config = DeviceConfig(tag, requests, notification=bool(offer))
        device = Device(self.loop, self.handler, config, self.source, busy_poll, make_ring)
        device.state_transfer = self.state_transfer
        ours, theirs = socket.socketpair()
        self._servers.append(Server(self.loop, theirs, device, self._ended))
        front_end = FrontEnd(ours, notification, loop=self.loop, **options)  # type: ignore[arg-type]
        self._front_ends.append(front_end)
        return front_end

    def _ended(self) -> None:
        self.ends += 1

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for front_end in self._front_ends:
            front_end.close()
        self.loop.close()


@contextlib.contextmanager
def device_fixture() -> Iterator[DeviceFixture]:
    """Check that the fixture leaves no descriptors behind."""
    before = open_descriptors()
    fixture = DeviceFixture()
    yield fixture
    fixture.close()
    assert open_descriptors() <= before, "descriptors have leaked"


def posted_echo(front_end: FrontEnd, channel: Channel, nodeid: int = 1) -> int:
    """Add an ECHO request without payload to the queue, invisible yet; returns its head."""
    head = front_end.ram.allocate(IN_HEADER.size)
    front_end.ram.write(head, IN_HEADER.pack(IN_HEADER.size, ECHO, 9, nodeid, 0, 0, 0, 0, 0))
    reply = front_end.ram.allocate(OUT_HEADER.size)
    return channel.queue.add(
        [Buffer(head, IN_HEADER.size)], [Buffer(reply, OUT_HEADER.size)], front_end.indirect
    )


class AlwaysPoll(BusyPoll):
    """Polls every time; ``during`` is called when it does."""

    def __init__(self, other_work: Callable[[], bool]) -> None:
        super().__init__(1, other_work)
        self.during: Callable[[], None] = lambda: None
        self.found = 0

    def should_poll(self) -> bool:
        return True

    def poll(self, more: Callable[[], bool]) -> bool:
        self.during()
        found = more()
        self.found += found
        return found
