# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front-end for tests.

Owns the guest's memory, drives the rings, speaks FUSE to the daemon::

front_end = FrontEnd(sock) # the daemon runs in another thread or process front_end = FrontEnd(sock,
loop=loop) # or the front-end runs its loop while it waits front_end.negotiate() error, reply =
front_end.request(opcode, nodeid, payload, out_size)

Every wait has a limit; ``FrontEndTimeout`` and ``FrontEndClosed`` say what was waited for.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from farwatchd.event_loop import Loop
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import HeaderFlag, ProtocolFeature
from farwatchd.wire.virtio import VirtioFeature
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE, VirtioFsFeature
from tests.support.driver import Buffer, DriverQueue, GuestRam

FUSE_FORGET = 2
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
NOTIFY_FSNOTIFY = 64
DEFAULT_TIMEOUT = 10.0
#: Payload and reply bytes are split into slices of this size, so that chains have several.
BUFFER_SIZE = 1 << 16


class FrontEndTimeout(AssertionError):  # noqa: N818
    """The daemon did not do something in time."""


class FrontEndClosed(AssertionError):  # noqa: N818
    """The daemon ended the connection."""


@dataclass
class Channel:
    """A queue with its event descriptors."""

    queue: DriverQueue
    kick: int
    call: int

    def interrupts(self) -> int:
        """Return how often the device has interrupted since the last time."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0


class FrontEnd:
    """One connection to a back-end, and the guest behind it."""

    def __init__(
        self,
        sock: socket.socket,
        notification: bool = True,
        num_request_queues: int = 1,
        *,
        loop: Loop | None = None,
        event_idx: bool = True,
        indirect: bool = True,
        queue_size: int = 128,
        base: int = 0,
        ram: GuestRam | None = None,
        memory_slots: bool = True,
    ) -> None:
        self.sock = sock
        self.loop = loop
        self.notification = notification
        self.num_request_queues = num_request_queues
        self.event_idx = event_idx
        self.indirect = indirect
        self.memory_slots = memory_slots
        self.ram = ram or GuestRam()
        self.offered = 0
        self.acked = 0
        self.protocol_features = ProtocolFeature(0)
        self.config = b""
        count = num_request_queues + (2 if notification else 1)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.channels = [
            Channel(
                DriverQueue(self.ram, queue_size, event_idx, base),
                os.eventfd(0, flags),
                os.eventfd(0, flags),
            )
            for _ in range(count)
        ]
        self._unique = 0
        self._buffers: dict[int, Buffer] = {}

    # Channels by name

    @property
    def hiprio(self) -> Channel:
        """The queue for FORGET and INTERRUPT."""
        return self.channels[0]

    @property
    def notify(self) -> Channel:
        """The notification queue, where that was asked for."""
        assert self.notification
        return self.channels[1]

    def requests(self, number: int = 0) -> Channel:
        """Return a request queue."""
        return self.channels[number + (2 if self.notification else 1)]

    # vhost-user

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), need_reply: bool = False
    ) -> None:
        """Send one message."""
        flags = wire.VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
        data = wire.header.pack_values(request, flags, len(payload)) + payload
        socket.send_fds(self.sock, [data], list(fds))

    def receive(self, request: int, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """Return the payload of the reply to ``request``."""
        head = wire.header.unpack_from(self._read(wire.header.size, timeout))
        assert head.request == request, f"reply to {head.request} instead of {request}"
        assert head.flags & HeaderFlag.REPLY and head.flags & wire.VERSION_MASK == wire.VERSION
        return self._read(head.size, timeout)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """Send a message that has a reply, and return that."""
        self.send(request, payload)
        return self.receive(request)

    def ask_number(self, request: int) -> int:
        """Send a message that is answered with a number, and return that."""
        return int(wire.number.unpack_from(self.ask(request)).value)

    def set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message without a reply of its own.

        If it can be acknowledged, the acknowledgement must be good.
        """
        assert self.try_set(request, payload, fds) == 0, (
            f"the back-end refused {Request(request).name}"
        )

    def try_set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Do as ``set``, but return the acknowledgement: 0 is good."""
        ack = ProtocolFeature.REPLY_ACK in self.protocol_features
        self.send(request, payload, fds, need_reply=ack)
        return int(wire.number.unpack_from(self.receive(request)).value) if ack else 0

    def negotiate(self) -> None:
        """Do all that a VMM does until the driver can use the queues, in QEMU's order."""
        self.negotiate_features()
        self.share_memory()
        for index in range(len(self.channels)):
            self.start_ring(index)

    def reconnect(self, sock: socket.socket) -> None:
        """Do all of that again with another daemon, as QEMU does when the former one has ended.

        The rings go on after what was added to the used ring.
        """
        self.sock.close()
        self.sock = sock
        self.negotiate_features()
        self.share_memory()
        for index, channel in enumerate(self.channels):
            channel.queue.base = channel.queue.used_index()
            self.start_ring(index, enable=False)
        for index in range(len(self.channels)):
            self.enable_ring(index, True)

    def negotiate_features(self) -> None:
        """Agree on protocol features, read the configuration, agree on features."""
        self.offered = self.ask_number(Request.GET_FEATURES)
        if self.offered & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            offered = self.ask_number(Request.GET_PROTOCOL_FEATURES)
            self.send(Request.SET_PROTOCOL_FEATURES, wire.number.pack(value=offered))
            self.protocol_features = ProtocolFeature(offered)
            assert self.ask_number(Request.GET_QUEUE_NUM) >= len(self.channels)
            if ProtocolFeature.CONFIG in self.protocol_features:
                self.config = self.read_config(0, 44)
        self.set(Request.SET_OWNER)
        wanted = int(VirtioFeature.VERSION_1) | wire.VHOST_USER_F_PROTOCOL_FEATURES
        wanted |= VirtioFeature.EVENT_IDX if self.event_idx else 0
        wanted |= VirtioFeature.INDIRECT_DESC if self.indirect else 0
        wanted |= VirtioFsFeature.NOTIFICATION if self.notification else 0
        self.acked = wanted & self.offered
        assert self.acked == wanted, f"the back-end does not offer {wanted & ~self.offered:#x}"
        self.set(Request.SET_FEATURES, wire.number.pack(value=self.acked))

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space; empty when the back-end refuses."""
        reply = self.ask(
            Request.GET_CONFIG, wire.config.pack(offset=offset, size=size) + bytes(size)
        )
        return reply[wire.config.size :]

    def share_memory(self) -> None:
        """Share every region of the guest's memory."""
        regions = [region_fields(r) for r in self.ram.regions]
        if self.memory_slots and ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol_features:
            assert self.ask_number(Request.GET_MAX_MEM_SLOTS) >= len(regions)
            for fields in regions:
                self.set(Request.ADD_MEM_REG, wire.single_region.pack(**fields), [self.ram.fd])
            return
        table = wire.memory_table.pack(regions=len(regions)) + b"".join(
            wire.memory_region.pack(**f) for f in regions
        )
        self.set(Request.SET_MEM_TABLE, table, [self.ram.fd] * len(regions))

    def start_ring(self, index: int, enable: bool = True) -> None:
        """Set up and start one ring where the driver's indices are."""
        channel = self.channels[index]
        queue = channel.queue
        self.set(Request.SET_VRING_NUM, wire.vring_state.pack(index=index, num=queue.size))
        self.set(Request.SET_VRING_BASE, wire.vring_state.pack(index=index, num=queue.base))
        self.set(Request.SET_VRING_ADDR, self.ring_address(index))
        self.set(Request.SET_VRING_KICK, wire.number.pack(value=index), [channel.kick])
        self.set(Request.SET_VRING_CALL, wire.number.pack(value=index), [channel.call])
        if enable:
            self.enable_ring(index, True)

    def ring_address(self, index: int) -> bytes:
        """Return the payload of SET_VRING_ADDR."""
        queue = self.channels[index].queue
        return wire.vring_addr.pack(
            index=index,
            descriptor=self.ram.user_addr(queue.descriptors),
            available=self.ram.user_addr(queue.available),
            used=self.ram.user_addr(queue.used),
        )

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Enable or disable one ring."""
        self.set(Request.SET_VRING_ENABLE, wire.vring_state.pack(index=index, num=int(enabled)))

    def stop_ring(self, index: int) -> int:
        """Stop one ring and return the back-end's index, from which ``start_ring`` resumes."""
        state = wire.vring_state.unpack_from(
            self.ask(Request.GET_VRING_BASE, wire.vring_state.pack(index=index))
        )
        assert state.index == index
        self.channels[index].queue.base = state.num
        return int(state.num)

    def reset_ring(self, index: int) -> None:
        """Let the driver reset one stopped ring, so that it is empty; ``start_ring`` comes next."""
        old = self.channels[index].queue
        self.channels[index].queue = DriverQueue(self.ram, old.size, old.event_idx)

    def reboot(self) -> None:
        """Do what a VMM does when its guest reboots.

        The connection and the memory stay, the rings are reset.
        """
        for index in range(len(self.channels)):
            self.stop_ring(index)
            self.reset_ring(index)
        self._buffers.clear()
        for index in range(len(self.channels)):
            self.start_ring(index)

    # FUSE

    def request(
        self,
        opcode: int,
        nodeid: int,
        payload: bytes = b"",
        out_size: int = 0,
        *,
        queue: int = 0,
        uid: int = 0,
        gid: int = 0,
        pid: int = 1,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> tuple[int, bytes]:
        """Send one request and return (errno, 0 for success; reply without its header)."""
        channel = self.requests(queue)
        mark = self.ram.mark()
        self._unique += 2
        head = IN_HEADER.pack(
            IN_HEADER.size + len(payload), opcode, self._unique, nodeid, uid, gid, pid, 0, 0
        )
        readable = [self._buffer_of(head), *self._buffers_of(payload)]
        writable = [
            Buffer(self.ram.allocate(OUT_HEADER.size), OUT_HEADER.size),
            *self._room(out_size),
        ]
        written = self.submit(channel, readable, writable, timeout)
        assert written >= OUT_HEADER.size, f"a reply of {written} bytes to opcode {opcode}"
        reply = b"".join(self.ram.read(p.addr, p.length) for p in writable)
        length, error, unique = OUT_HEADER.unpack_from(reply)
        assert length == written, f"used length {written}, but the reply says {length}"
        assert unique == self._unique, f"reply to {unique} instead of {self._unique}"
        self.ram.rewind(mark)
        return -error, reply[OUT_HEADER.size : length]

    def send_no_reply(
        self, opcode: int, nodeid: int, payload: bytes, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Send a request without room for a reply on the hiprio queue; wait for its completion."""
        mark = self.ram.mark()
        self._unique += 2
        head = IN_HEADER.pack(
            IN_HEADER.size + len(payload), opcode, self._unique, nodeid, 0, 0, 0, 0, 0
        )
        written = self.submit(
            self.hiprio, [self._buffer_of(head), *self._buffers_of(payload)], [], timeout
        )
        assert written == 0
        self.ram.rewind(mark)

    def forget(self, nodeid: int, lookups: int = 1) -> None:
        """Send FORGET."""
        self.send_no_reply(FUSE_FORGET, nodeid, struct.pack("<Q", lookups))

    def submit(
        self,
        channel: Channel,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        timeout: float = DEFAULT_TIMEOUT,
    ) -> int:
        """Put one chain into a queue that has nothing else in it, and return the used length."""
        head = channel.queue.add(readable, writable, self.indirect)
        self.publish(channel)
        done = self.wait_used(channel, timeout)
        assert done[0] == head, f"used chain {done[0]} instead of {head}"
        return done[1]

    def publish(self, channel: Channel) -> None:
        """Let the device see what was added to the queue, and kick it if it wants that."""
        channel.queue.want_interrupts(True)
        if channel.queue.publish():
            os.eventfd_write(channel.kick, 1)

    def wait_used(self, channel: Channel, timeout: float = DEFAULT_TIMEOUT) -> tuple[int, int]:
        """Return the next used chain of the queue, waiting for its interrupt."""
        self.wait(lambda: channel.queue.used_count() > 0, channel, timeout, "a used chain")
        done = channel.queue.take_used()
        assert done is not None
        return done

    # Notifications

    def post_notification_buffers(self, count: int, size: int = NOTIFY_BUF_SIZE) -> None:
        """Give the device buffers for notifications."""
        for _ in range(count):
            self._post(Buffer(self.ram.allocate(size), size))
        self.publish(self.notify)

    def notifications(
        self, timeout: float = DEFAULT_TIMEOUT, at_least: int = 1, repost: bool = True
    ) -> list[bytes]:
        """Return the payloads of the notifications that have come, waiting for ``at_least``."""
        queue = self.notify.queue
        queue.want_interrupts(True)
        found: list[bytes] = []
        deadline = time.monotonic() + timeout
        while True:
            while (used := queue.take_used()) is not None:
                head, written = used
                buffer = self._buffers.pop(head)
                data = self.ram.read(buffer.addr, written)
                length, error, unique = OUT_HEADER.unpack_from(data)
                assert (length, error, unique) == (written, NOTIFY_FSNOTIFY, 0)
                found.append(data[OUT_HEADER.size :])
                if repost:
                    self._post(buffer)
            if repost and found:
                self.publish(self.notify)
            queue.want_interrupts(True)
            if len(found) >= at_least:
                return found
            self.wait(
                lambda: queue.used_count() > 0,
                self.notify,
                deadline - time.monotonic(),
                f"{at_least} notifications, {len(found)} came",
            )

    def _post(self, buffer: Buffer) -> None:
        self._buffers[self.notify.queue.add([], [buffer])] = buffer

    # Waiting

    def wait(
        self,
        condition: Callable[[], bool],
        channel: Channel | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        what: str = "it",
    ) -> None:
        """Wait for ``condition``, while the daemon's loop runs or ``channel`` is interrupted."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise FrontEndTimeout(f"no {what} within {timeout:.1f} s")
            if self.loop is not None:
                self.loop.run_once(left)
            else:
                assert channel is not None, (
                    "without a loop to turn there must be something to wait for"
                )
                if not select.select([channel.call], [], [], left)[0]:
                    raise FrontEndTimeout(f"no interrupt for {what} within {timeout:.1f} s")
                channel.interrupts()

    def settle(self) -> None:
        """Run the daemon's loop until it is idle; needs ``loop``."""
        assert self.loop is not None
        for _ in range(1000):
            if not self.loop.run_once(0):
                return
        raise FrontEndTimeout("the daemon's loop does not come to rest")

    def closed(self, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Wait until the daemon ends the connection; false when it does not."""
        try:
            self._read(1, timeout)
        except FrontEndClosed:
            return True
        except FrontEndTimeout:
            return False
        raise AssertionError("the daemon sent something")

    def close(self) -> None:
        """Leave: close the connection and all that belongs to it."""
        self.sock.close()
        for channel in self.channels:
            os.close(channel.kick)
            os.close(channel.call)
        self.ram.close()

    def _read(self, size: int, timeout: float) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + timeout
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FrontEndTimeout(f"no reply within {timeout:.1f} s")
            if self.loop is not None:
                while not self._readable(0) and deadline > time.monotonic():
                    self.loop.run_once(deadline - time.monotonic())
            elif not self._readable(left):
                continue
            try:
                part = self.sock.recv(size - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                raise FrontEndClosed(f"the daemon ended the connection: {error}") from error
            if not part:
                raise FrontEndClosed("the daemon ended the connection")
            data += part
        return bytes(data)

    def _readable(self, timeout: float) -> bool:
        return bool(select.select([self.sock], [], [], timeout)[0])

    # Guest memory

    def _buffer_of(self, data: bytes) -> Buffer:
        addr = self.ram.allocate(len(data))
        self.ram.write(addr, data)
        return Buffer(addr, len(data))

    def _buffers_of(self, data: bytes) -> list[Buffer]:
        return [
            self._buffer_of(data[start : start + BUFFER_SIZE])
            for start in range(0, len(data), BUFFER_SIZE)
        ]

    def _room(self, size: int) -> list[Buffer]:
        sizes = [min(BUFFER_SIZE, size - start) for start in range(0, size, BUFFER_SIZE)]
        return [Buffer(self.ram.allocate(n), n) for n in sizes]


def region_fields(region: Any) -> dict[str, int]:
    """Return the fields of a memory region's message for one of ``GuestRam``'s regions."""
    return {
        "guest_addr": region.guest_addr,
        "size": region.size,
        "user_addr": region.user_addr,
        "mmap_offset": region.offset,
    }
