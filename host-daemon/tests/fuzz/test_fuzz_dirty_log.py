# SPDX-License-Identifier: Apache-2.0
"""Any requests and events while the front-end logs: a copy of memory by the log is the same.

That is what a migration does. After each step all that differs must be in pages that are marked.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import Event
from tests.fuzz.test_fuzz_requests import LIFE, Fuzzer, tidy
from tests.support.driver import Buffer
from tests.support.frontend import FrontEnd
from tests.support.fuzzing import inputs
from tests.support.shared_log import Log, ShadowedRam, log_size, set_logging, share_log

STEPS = 3000
RAM = 2 << 20
QUEUE_SIZE = 16
REQUESTS, NOTIFICATIONS = 2, 1
OUT_HEADER = fuse.out_header


class LoggedGuest(Fuzzer):
    """A guest in whose memory all writes are logged, and the copy that the log makes of it."""

    def __init__(self, share: Path, random: Random) -> None:
        super().__init__(share)
        self.loop = Loop()
        self.pool = ThreadPool(2, self.loop.call_from_thread)
        self.waits = BlockingLocks(self.loop.call_later)
        self.fs.use_threads(self.pool.run_aside, lambda: self.pool.own_umask)
        options = SessionOptions(
            posix_lock=True, flock=True, killpriv_v2=True, security_label=Negotiation.AUTO
        )
        self.session = Session(
            self.fs, self.host.table, options, self.waits, self.pool, self.host.queue
        )
        self.device = Device(self.loop, self.session, DeviceConfig("share"), self.host.queue)
        self.loop.add(self.host.backend.fileno(), self.host.table.process)
        self.pool.start()
        ours, theirs = socket.socketpair()
        self.server = Server(self.loop, theirs, self.device, lambda: None)
        self.ram = ShadowedRam(RAM, 2)
        self.front_end = FrontEnd(
            ours,
            loop=self.loop,
            ram=self.ram,
            event_idx=random.random() < 0.7,
            indirect=random.random() < 0.7,
            queue_size=QUEUE_SIZE,
        )
        self.log = Log(log_size(self.ram))
        self.begin()
        self.front_end.negotiate()
        self.start = self.ram.mark()
        self.logs = False
        self.posted = 0
        self.made = 0

    def set_logging(self, logging: bool) -> None:
        """Begin or end logging."""
        if logging:
            assert share_log(self.front_end, self.log) == 0
        assert set_logging(self.front_end, logging) == 0
        # What was in flight is logged at the end of logging, and what came after it is not.
        self.ram.copy_all()
        self.log.take()
        self.logs = logging

    def check(self) -> None:
        """Compare what differs from the copy with the log, and copy what that has."""
        marked = self.log.take()
        if not self.logs:
            assert not marked
            return
        missed = [hex(page) for page in self.ram.different_pages() if page not in marked]
        assert not missed, f"written and not logged: {missed}"
        self.ram.copy_pages(marked)

    def reboot(self) -> None:
        """Reset the rings: the memory of requests is free again."""
        for index in range(len(self.front_end.channels)):
            self.front_end.stop_ring(index)
        self.check()
        self.ram.rewind(0)
        for index in range(len(self.front_end.channels)):
            self.front_end.reset_ring(index)
        self.start = self.ram.mark()
        for index in range(len(self.front_end.channels)):
            self.front_end.start_ring(index)
        # A ring that starts has no log address.
        if self.logs:
            assert set_logging(self.front_end, True) == 0
            self.ram.copy_all()
            self.log.take()
        self.posted = 0
        self.begin()

    def step(self, random: Random) -> None:
        """Do one thing that a front-end, a guest or the host may do."""
        chance = random.random()
        if chance < 0.85:
            self.submit(random)
        elif chance < 0.89:
            self.change_host()
        elif chance < 0.92:
            self.post_buffers(random)
        elif chance < 0.95:
            index = random.randrange(len(self.front_end.channels))
            self.front_end.stop_ring(index)
            self.front_end.start_ring(index)
            if self.logs:
                assert set_logging(self.front_end, True) == 0
        elif chance < 0.98:
            self.set_logging(not self.logs)
        else:
            self.front_end.settle()
        self.front_end.settle()
        self.check()

    def has_room(self, channel: int, descriptors: int) -> bool:
        """Return whether a queue has free descriptors, and memory is left; reset it if not."""
        queue = self.front_end.channels[channel].queue
        while queue.take_used() is not None:
            self.posted -= channel == NOTIFICATIONS
        return len(queue._free) >= descriptors

    def submit(self, random: Random) -> None:
        """Send a request in buffers of any sizes."""
        if not self.mounted:
            self.begin()
            self.mounted = True
        request = self.request(random)
        room = random.choice((16, 32, 144, 160, 4112, 70_000, 15, 0))
        if self.ram.size - self.ram.mark() < 2 * (room + len(request)) + (1 << 17):
            self.reboot()
        readable = self.buffers(random, request)
        writable = self.buffers(random, bytes(room))
        needed = len(readable) + len(writable)
        if not needed or not self.has_room(REQUESTS, needed):
            if needed:
                self.reboot()
            return
        channel = self.front_end.channels[REQUESTS]
        head = channel.queue.add(readable, writable, self.front_end.indirect)
        self.front_end.publish(channel)
        self.front_end.settle()
        self.check()
        used = channel.queue.take_used()
        if used is None or used[0] != head or used[1] < OUT_HEADER.size:
            return
        reply = b"".join(self.ram.read(each.addr, each.length) for each in writable)[: used[1]]
        header = fuse.in_header.unpack_from(request.ljust(fuse.in_header.size, b"\0"))
        if OUT_HEADER.unpack_from(reply).error == 0:
            self.learn(header.opcode, header.nodeid, reply[OUT_HEADER.size :])

    def buffers(self, random: Random, data: bytes) -> list[Buffer]:
        """Put data into up to four buffers, some of them at the end of a page."""
        found = []
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(4)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end:
                self.ram.allocate(random.choice((1, 1, 100, 4000)))
                buffer = Buffer(self.ram.allocate(end - start, random.choice((1, 16))), end - start)
                self.ram.write(buffer.addr, data[start:end])
                found.append(buffer)
        return found

    def post_buffers(self, random: Random) -> None:
        """Give buffers for notifications, of which some are too small."""
        if not self.has_room(NOTIFICATIONS, 4) or self.ram.size - self.ram.mark() < 1 << 17:
            return
        channel = self.front_end.channels[NOTIFICATIONS]
        for _ in range(random.randrange(1, 4)):
            size = random.choice((4096, 4096, 20, 200))
            channel.queue.add([], [Buffer(self.ram.allocate(size), size)])
        self.front_end.publish(channel)

    def change_host(self) -> None:
        """Make events."""
        self.host.watch(1, self.host.share, Event.CREATE | Event.DELETE)
        for _ in range(3):
            self.made += 1
            (self.host.share / f"made {self.made}").touch()
        # What inotify has is read at the next turn.
        self.host.table.process()

    def close(self) -> None:
        self.server.close()
        self.session.reset()
        assert self.pool.close(10)
        self.front_end.close()
        self.log.close()
        super().close()
        self.loop.close()


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="farwatch-log-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.root
@pytest.mark.parametrize("kind", range(3))
def test_copy_by_the_log_is_the_same(place: Path, kind: int) -> None:
    share = place / "share"
    (share / "dir").mkdir(parents=True)
    (share / "file").write_bytes(b"content" * 1000)
    guest = LoggedGuest(share, Random(kind))
    guest.set_logging(True)
    for position, random in inputs(STEPS):
        if position % LIFE == LIFE - 1:
            guest.reboot()
            tidy(share)
        guest.step(Random(f"{kind} {random.random()}"))
    if not guest.logs:
        guest.set_logging(True)
    for index in range(len(guest.front_end.channels)):
        guest.front_end.stop_ring(index)
    guest.check()
    assert guest.ram.different_pages() == []
    guest.close()
