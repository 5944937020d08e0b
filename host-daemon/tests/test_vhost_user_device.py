# SPDX-License-Identifier: Apache-2.0
"""The device end to end: a fake front end with real shared memory, descriptors and rings, and a handler behind."""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from farwatchd.loop import Loop
from farwatchd.vhost_user.device import Device, DeviceConfig
from farwatchd.vhost_user.server import Server
from tests.frontend import IN_HEADER, OUT_HEADER, FrontEnd

ECHO, FAIL, LIE = 1000, 1001, 1002


class EchoHandler:
    """Answers a request with its own payload, reversed."""

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.resets = 0
        self.served = 0

    def handle(self, readable: Sequence[memoryview], writable: Sequence[memoryview]) -> int:
        self.served += 1
        data = b"".join(readable)
        _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(data)
        if opcode == FAIL:
            raise RuntimeError("a bug in the handler")
        if opcode == LIE:
            return sum(map(len, writable)) + 1
        if not writable:
            self.forgotten.append(nodeid)
            return 0
        payload = data[IN_HEADER.size :][::-1]
        reply = OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique) + payload
        position = 0
        for segment in writable:
            part = reply[position : position + len(segment)]
            segment[: len(part)] = part
            position += len(part)
        return len(reply)

    def reset(self) -> None:
        self.resets += 1


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


class World:
    """A device in a loop that is turned by hand, and the front ends that connect to it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handler = EchoHandler()
        self.source = ListSource()
        self.ends = 0
        self._servers: list[Server] = []
        self._front_ends: list[FrontEnd] = []

    def connect(self, notification: bool = True, **options: object) -> FrontEnd:
        """Return a front end with a device of its own; ``offer``: whether that offers the notification queue."""
        offer = options.pop("offer", True)
        requests = options.get("num_request_queues", 1)
        assert isinstance(requests, int)
        config = DeviceConfig("share", requests, bool(offer))
        device = Device(self.loop, self.handler, config, self.source)
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


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def world() -> Iterator[World]:
    before = _open_descriptors()
    world = World()
    yield world
    world.close()
    assert _open_descriptors() == before, "descriptors have leaked"


@pytest.mark.parametrize(
    ("notification", "event_idx", "indirect", "slots"), list(itertools.product([True, False], repeat=4))
)
def test_requests_are_answered_in_every_layout(
    world: World, notification: bool, event_idx: bool, indirect: bool, slots: bool
) -> None:
    front_end = world.connect(notification, event_idx=event_idx, indirect=indirect, memory_slots=slots)
    front_end.negotiate()
    assert front_end.request(ECHO, 1, b"abc", 3) == (0, b"cba")
    big = os.urandom(300_000)
    assert front_end.request(ECHO, 1, big, len(big)) == (0, big[::-1])
    front_end.forget(77)
    assert world.handler.forgotten == [77]
