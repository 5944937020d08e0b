# SPDX-License-Identifier: Apache-2.0
"""WAIT requests, where there is no notification queue; other requests are served meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.fuse.wait_requests import MAX_PENDING
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import RECORD_MAX, EventRecord
from farwatchd.wire.fsnotify import (
    FUSE_HAS_FSNOTIFY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
    fsnotify_wait_in,
)
from farwatchd.wire.fuse import (
    InitFlag,
    Opcode,
    in_header,
    init_in,
    init_out,
    out_header,
    statfs_out,
)
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import single_region
from tests.support.device_fixture import AlwaysPoll
from tests.support.driver import Buffer
from tests.support.event_records import decode_all
from tests.support.fake_fs import FakeFs, FakeWatches
from tests.support.frontend import FrontEnd

SIZE = 4096
WAIT = fsnotify_wait_in.pack(size=SIZE)
CREATED = EventRecord(1, 0, Event.CREATE, b"name")


@dataclass
class WaitingGuest:
    """A driver without a notification queue, whose client sends WAIT requests."""

    front_end: FrontEnd
    queue: EventQueue
    session: Session
    busy: AlwaysPoll
    unique: int = 1000

    def send_wait(self, size: int = SIZE) -> Buffer:
        """Send a WAIT request for ``size`` bytes, and return where its reply will be."""
        self.unique += 1
        arguments = fsnotify_wait_in.pack(size=size)
        head = in_header.pack(
            len=in_header.size + len(arguments), opcode=Opcode.FSNOTIFY_WAIT, unique=self.unique
        )
        ram, channel = self.front_end.ram, self.front_end.requests()
        request = Buffer(ram.allocate(len(head) + len(arguments)), len(head) + len(arguments))
        ram.write(request.addr, head + arguments)
        answer = Buffer(ram.allocate(out_header.size + SIZE), out_header.size + SIZE)
        channel.queue.add([request], [answer])
        self.front_end.publish(channel)
        self.front_end.settle()
        return answer

    def answer(self, place: Buffer) -> bytes | None:
        """Return the reply at this place, or None."""
        self.front_end.settle()
        used = self.front_end.requests().queue.take_used()
        if used is None:
            return None
        head = out_header.unpack_from(self.front_end.ram.read(place.addr, out_header.size))
        assert (head.len, head.error) == (used[1], 0)
        return self.front_end.ram.read(place.addr, used[1])[out_header.size :]

    def report(self, record: EventRecord) -> None:
        self.queue.push(record)
        self.queue.announce()


@pytest.fixture
def guest() -> Iterator[WaitingGuest]:
    loop, queue = Loop(), EventQueue(100)
    session = Session(FakeFs(), FakeWatches(), SessionOptions(), source=queue)
    ours, theirs = socket.socketpair()
    busy = AlwaysPoll(loop.has_work)
    server = Server(
        loop,
        theirs,
        Device(loop, session, DeviceConfig("share"), queue, busy_poll=busy),
        lambda: None,
    )
    front_end = FrontEnd(ours, False, loop=loop)
    front_end.negotiate()
    offered = int(InitFlag.INIT_EXT) | FUSE_HAS_FSNOTIFY | FUSE_HAS_FSNOTIFY_WAIT
    init = init_in.pack(major=7, minor=41, flags=offered & 0xFFFFFFFF, flags2=offered >> 32)
    error, reply = front_end.request(Opcode.INIT, 0, init, init_out.size)
    assert error == 0 and init_out.unpack_from(reply).flags2 << 32 & FUSE_HAS_FSNOTIFY_WAIT
    yield WaitingGuest(front_end, queue, session, busy)
    server.close()
    front_end.close()
    loop.close()


def test_wait_request_is_completed_by_an_event(guest: WaitingGuest) -> None:
    place = guest.send_wait()
    assert guest.answer(place) is None
    guest.report(CREATED)
    assert decode_all(guest.answer(place) or b"") == [CREATED]


def test_wait_request_is_completed_immediately_if_events_are_queued(guest: WaitingGuest) -> None:
    guest.report(CREATED)
    guest.report(EventRecord(1, 0, Event.DELETE, b"name"))
    assert [record.mask for record in decode_all(guest.answer(guest.send_wait()) or b"")] == [
        Event.CREATE,
        Event.DELETE,
    ]


def test_other_requests_are_served_while_a_wait_request_is_pending(guest: WaitingGuest) -> None:
    place = guest.send_wait()
    assert guest.front_end.request(Opcode.GETATTR, 1, bytes(16), 104)[0] == 0
    guest.report(CREATED)
    assert guest.answer(place)


def test_destroy_completes_pending_wait_requests(guest: WaitingGuest) -> None:
    first = guest.send_wait()
    channel = guest.front_end.requests()
    answered: list[int] = []
    guest.busy.during = lambda: answered.append(channel.queue.used_count())
    head = in_header.pack(len=in_header.size, opcode=Opcode.DESTROY, unique=7)
    ram = guest.front_end.ram
    request = Buffer(ram.allocate(len(head)), len(head))
    ram.write(request.addr, head)
    channel.queue.add([request], [Buffer(ram.allocate(out_header.size), out_header.size)])
    guest.front_end.publish(channel)
    guest.front_end.settle()
    assert answered[0] == 2, "pending ones are completed before the next request is popped"
    assert channel.queue.take_used() is not None
    assert guest.answer(first) == b""


def test_oldest_wait_request_gets_an_empty_reply_if_too_many_are_pending(
    guest: WaitingGuest,
) -> None:
    places = [guest.send_wait() for _ in range(MAX_PENDING + 1)]
    assert guest.answer(places[0]) == b""
    assert guest.answer(places[1]) is None


def test_request_stays_pending_while_its_ring_is_stopped(guest: WaitingGuest) -> None:
    place = guest.send_wait()
    guest.front_end.stop_ring(1)
    guest.report(CREATED)
    guest.front_end.settle()
    assert guest.front_end.requests().queue.used_count() == 0
    guest.front_end.start_ring(1)
    assert decode_all(guest.answer(place) or b"") == [CREATED]
    again = guest.send_wait()
    guest.report(CREATED)
    assert decode_all(guest.answer(again) or b"") == [CREATED]


def test_reset_of_the_device_forgets_pending_requests(guest: WaitingGuest) -> None:
    guest.send_wait()
    guest.front_end.reboot()
    guest.report(CREATED)
    guest.front_end.settle()
    assert guest.front_end.requests().queue.used_count() == 0


def test_reply_is_no_longer_than_the_size_of_the_request(guest: WaitingGuest) -> None:
    records = [EventRecord(1, 0, Event.CREATE, b"%d" % number) for number in range(60)]
    for record in records:
        guest.queue.push(record)
    found: list[EventRecord] = []
    for _ in range(100):
        payload = guest.answer(guest.send_wait(RECORD_MAX))
        assert payload is not None and 0 < len(payload) <= RECORD_MAX
        found += decode_all(payload)
        if len(found) == len(records):
            break
    assert found == records


def test_room_for_no_record_is_refused(guest: WaitingGuest) -> None:
    small = fsnotify_wait_in.pack(size=100)
    assert guest.front_end.request(Opcode.FSNOTIFY_WAIT, 0, small, SIZE)[0] == 22
    assert guest.front_end.request(Opcode.FSNOTIFY_WAIT, 0, WAIT, 100)[0] == 22
    assert (
        guest.front_end.request(
            Opcode.FSNOTIFY_WAIT, 0, fsnotify_wait_in.pack(flags=2, size=SIZE), SIZE
        )[0]
        == 22
    )


def test_wait_request_outlives_a_change_of_memory_regions(guest: WaitingGuest) -> None:
    place = guest.send_wait()
    more = os.memfd_create("more")
    os.ftruncate(more, 4096)
    fields = {"guest_addr": 1 << 40, "size": 4096, "user_addr": 1 << 41, "mmap_offset": 0}
    guest.front_end.set(Request.ADD_MEM_REG, single_region.pack(**fields), [more])
    os.close(more)
    assert guest.front_end.request(Opcode.STATFS, 1, b"", statfs_out.size)[0] == 0
    guest.report(CREATED)
    answer = guest.answer(place)
    assert answer is not None and decode_all(answer) == [CREATED]
    assert guest.front_end.request(Opcode.STATFS, 1, b"", statfs_out.size)[0] == 0
