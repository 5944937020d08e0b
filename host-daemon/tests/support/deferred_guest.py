# SPDX-License-Identifier: Apache-2.0
"""A driver whose requests may be replied in any order, with the daemon in the test's own thread."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from farwatchd.event_loop import Loop
from farwatchd.fuse.session import Session
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire import fuse
from tests.support.driver import Buffer
from tests.support.frontend import FrontEnd

TURNS = 100


class DeferredGuest:
    """``answers`` has the errno and what follows the header, by the request's unique number."""

    def __init__(self, loop: Loop, session: Session, init_flags: int = 0) -> None:
        self.loop = loop
        ours, theirs = socket.socketpair()
        device = Device(loop, session, DeviceConfig("share"))
        self.server = Server(loop, theirs, device, lambda: None)
        self.front_end = FrontEnd(ours, False, loop=loop)
        self.front_end.negotiate()
        self.unique = 1 << 32
        self.places: dict[int, tuple[int, Buffer]] = {}
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.ask(
            fuse.Opcode.INIT,
            0,
            fuse.init_in.pack(major=7, minor=41, flags=init_flags),
            fuse.init_out.size,
        )

    def ask(self, opcode: int, nodeid: int, payload: bytes, room: int = 0) -> bytes:
        """Send a request that is replied immediately."""
        error, reply = self.front_end.request(opcode, nodeid, payload, room)
        assert error == 0, os.strerror(error)
        return reply

    def send(
        self,
        opcode: int,
        nodeid: int,
        payload: bytes,
        room: int = 0,
        unique: int = 0,
        answer: Buffer | None = None,
    ) -> int:
        """Send a request whose answer may come later than others'; returns its unique number.

        ``answer``: where the reply will be, if not in new memory. ``request`` is where the request
        is.
        """
        if not unique:
            self.unique += 2
            unique = self.unique
        size = fuse.in_header.size + len(payload)
        head = fuse.in_header.pack(len=size, opcode=opcode, unique=unique, nodeid=nodeid)
        ram, channel = self.front_end.ram, self.front_end.requests()
        self.request = Buffer(ram.allocate(size), size)
        ram.write(self.request.addr, head + payload)
        if answer is None:
            answer = Buffer(ram.allocate(fuse.out_header.size + room), fuse.out_header.size + room)
        place = channel.queue.add([self.request], [answer], self.front_end.indirect)
        self.places[place] = (unique, answer)
        self.front_end.publish(channel)
        self.settle()
        return unique

    def settle(self) -> None:
        """Let the daemon do what it can without waiting, and take the answers that have come."""
        self.front_end.settle()
        while (used := self.front_end.requests().queue.take_used()) is not None:
            unique, place = self.places.pop(used[0])
            reply = self.front_end.ram.read(place.addr, used[1])
            header = fuse.out_header.unpack_from(reply)
            assert (header.len, header.unique) == (used[1], unique)
            self.answers[unique] = (-header.error, reply[fuse.out_header.size :])

    def settle_until(self, done: Callable[[], bool], patience: float) -> None:
        """Turn the loop until ``done``, waiting at most ``patience`` seconds in a turn."""
        for _ in range(TURNS):
            self.settle()
            if done():
                return
            self.loop.run_once(patience)
        raise AssertionError("what was waited for did not happen")

    def leave(self) -> None:
        """End the daemon's side and the front-end."""
        self.server.close()
        self.front_end.close()
