# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed with inputs of bytes: requests, rings, a device's rings, and conversations.

An input decides all that a fuzzer of the tests chooses at random. So what it does is the same each
time, and a small change of the bytes is a small change of what it does.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Protocol

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue import RingAddress, RingMemory, VirtqueueError
from tests.fuzz.test_fuzz_requests import Fuzzer, tidy
from tests.fuzz.test_fuzz_rings import RAM, SIZE, drain, fill, memory_of
from tests.fuzz.test_fuzz_vhost_user import converse, serve_one, turn
from tests.support.driver import DriverQueue, GuestRam
from tests.support.frontend import FrontEnd
from tests.support.fuzzing import errors_logged
from tests.support.handlers import RAW_ECHO, RawEchoHandler
from tests.support.native_part import make_ring

CORPUS = Path(__file__).with_name("corpus")
#: Requests of one input at most.
MOST_REQUESTS = 60
#: Longer random data repeat one byte: what they are decides nothing.
MOST_RANDOM_BYTES = 200


class Input(Random):
    """Takes what it chooses from bytes, and zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        """The number of bytes that are not used yet."""
        return max(0, len(self._data) - self._position)

    def getrandbits(self, k: int, /) -> int:
        """Return a number of ``k`` bits."""
        size = (k + 7) // 8
        part = self._data[self._position : self._position + size]
        self._position += size
        return int.from_bytes(part, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """Return a number from 0 up to 1, by one byte."""
        return self.getrandbits(8) / 256

    def randbytes(self, n: int) -> bytes:
        """Return ``n`` bytes."""
        if n > MOST_RANDOM_BYTES:
            return bytes([self.getrandbits(8)]) * n
        return self.getrandbits(8 * n).to_bytes(n, "little")


class Target(Protocol):
    """Something that is fuzzed."""

    def run(self, data: bytes) -> None:
        """Do what the bytes say. AssertionError, or any other: a fault was found."""

    def close(self) -> None:
        """Check what must hold at the end, and release everything."""


class Requests:
    """Requests to a session over the real file system."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        parent = memory if os.access(memory, os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="farwatch-fuzz-", dir=parent))
        self.share = self.place / "share"
        self.share.mkdir()
        (self.place / "outside").write_text("untouched")
        tidy(self.share)
        self.fuzzer = Fuzzer(self.share)

    def run(self, data: bytes) -> None:
        """Mount, and send the requests that the bytes say."""
        random = Input(data)
        self.fuzzer.session.reset()
        self.fuzzer.begin()
        tidy(self.share)
        for _ in range(MOST_REQUESTS):
            if not random.left:
                break
            self.fuzzer.exchange(random)

    def close(self) -> None:
        """Check that nothing was left and nothing outside was changed."""
        self.fuzzer.session.reset()
        assert len(self.fuzzer.fs.share.locks) == len(self.fuzzer.waits) == 0
        self.fuzzer.close()
        assert {path.name for path in self.place.iterdir()} == {"outside", "share"}
        assert (self.place / "outside").read_text() == "untouched"
        shutil.rmtree(self.place)


class RingsAlone:
    """A ring alone, with and without event index."""

    def __init__(self) -> None:
        self.ram = GuestRam(RAM)
        self.memory = memory_of(self.ram)
        self.queues = [DriverQueue(self.ram, SIZE, event_idx) for event_idx in (False, True)]
        self.area = self.ram.allocate(8192)

    def run(self, data: bytes) -> None:
        """Fill a ring, and take its chains."""
        random = Input(data)
        event_idx = random.random() < 0.5
        queue = self.queues[event_idx]
        address = RingAddress(
            *(self.ram.user_addr(at) for at in (queue.descriptors, queue.available, queue.used))
        )
        self.ram.write_short(queue.used + 2, 0)
        ahead = fill(random, self.ram, queue, self.area)
        parts = RingMemory.at_user_addresses(self.memory, SIZE, address, event_idx)
        ring = make_ring(self.memory, parts, 0, event_idx, random.random() < 0.9)
        try:
            taken = drain(ring, self.memory)
        except VirtqueueError as error:
            assert "\n" not in str(error)
        else:
            assert taken == ahead <= SIZE

    def close(self) -> None:
        """Release the memory, with its views."""
        del self.memory
        self.ram.close()


class DeviceRings:
    """RingsAlone of a device, which serves the next request after each."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, theirs = socket.socketpair()
        config = DeviceConfig("share", notification=False)
        busy_poll = BusyPoll(20_000, self.loop.has_work)
        device = Device(self.loop, RawEchoHandler(), config, None, busy_poll, make_ring)
        self.server = Server(self.loop, theirs, device, lambda: None)
        ram = GuestRam(1 << 20)
        # Chains write here; what they write must not be another queue.
        ram.allocate(8192)
        self.front_end = FrontEnd(ours, False, loop=self.loop, queue_size=SIZE, ram=ram)
        self.front_end.negotiate()
        self.channel = self.front_end.requests()
        self.area = ram.allocate(8192)
        self.mark = ram.mark()

    def run(self, data: bytes) -> None:
        """Fill the ring of a queue and kick, then reset it and send a request."""
        front_end, channel = self.front_end, self.channel
        index = front_end.channels.index(channel)
        with errors_logged() as lines:
            fill(Input(data), front_end.ram, channel.queue, self.area)
            os.eventfd_write(channel.kick, 1)
            front_end.settle()
            assert len(lines) <= 1
            assert all(line.startswith(f"queue {index} stopped: ") for line in lines), lines
            front_end.stop_ring(index)
            front_end.ram.rewind(self.mark)
            front_end.reset_ring(index)
            front_end.start_ring(index)
            assert front_end.request(RAW_ECHO, 1, b"", 24)[0] == 0

    def close(self) -> None:
        """Disconnect."""
        self.server.close()
        self.front_end.close()
        self.loop.close()


class Conversations:
    """Messages of a front-end."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="farwatch-fuzz-"))
        self.loop = Loop()
        self.ram = GuestRam(1 << 16)
        self.path = self.place / "socket"
        config = DeviceConfig("share", notification=False)
        device = Device(self.loop, RawEchoHandler(), config)
        self.server = Server(self.loop, listen(self.path), device, lambda: None)

    def run(self, data: bytes) -> None:
        """Connect, and send the messages that the bytes say."""
        with errors_logged() as lines, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            turn(self.loop)
            converse(Input(data), sock, self.loop, self.ram)
            sock.close()
            turn(self.loop)
            ends = [line for line in lines if line.startswith("front-end disconnected: ")]
            assert len(ends) <= 1
            assert not any("\n" in line or "traceback" in line for line in lines), lines

    def close(self) -> None:
        """Check that the next front-end is served."""
        serve_one(self.path, self.loop)
        self.server.close()
        self.loop.close()
        self.ram.close()
        shutil.rmtree(self.place)


TARGETS: dict[str, Callable[[], Target]] = {
    "requests": Requests,
    "rings": RingsAlone,
    "device_rings": DeviceRings,
    "conversations": Conversations,
}


def read_corpus(name: str) -> list[bytes]:
    """Return the inputs that are kept for a target."""
    return [bytes.fromhex(line) for line in (CORPUS / f"{name}.txt").read_text().split()]


def write_corpus(name: str, inputs: list[bytes]) -> None:
    """Keep inputs for a target, the shortest first, a line of hexadecimal digits each."""
    lines = [each.hex() for each in sorted(inputs, key=lambda each: (len(each), each)) if each]
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
