# SPDX-License-Identifier: Apache-2.0
"""The device end to end, with a handler behind it.

The front-end is a fake, with real shared memory, descriptors and rings.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Iterator

import pytest
from farwatchd.virtio_fs.device import CHAINS_PER_TURN
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import ProtocolFeature
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE, fs_config
from tests.support.device_fixture import (
    DEFER,
    ECHO,
    FAIL,
    LIE,
    DeviceFixture,
    device_fixture,
    posted_echo,
)
from tests.support.driver import INDIRECT, NEXT, WRITE, Buffer
from tests.support.frontend import IN_HEADER, OUT_HEADER, FrontEnd, region_fields


@pytest.fixture
def fixture() -> Iterator[DeviceFixture]:
    with device_fixture() as fixture:
        yield fixture


@pytest.mark.parametrize(
    ("notification", "event_idx", "indirect", "slots"),
    list(itertools.product([True, False], repeat=4)),
)
def test_requests_are_replied_in_every_layout(
    fixture: DeviceFixture, notification: bool, event_idx: bool, indirect: bool, slots: bool
) -> None:
    front_end = fixture.connect(
        notification, event_idx=event_idx, indirect=indirect, memory_slots=slots
    )
    front_end.negotiate()
    assert front_end.request(ECHO, 1, b"abc", 3) == (0, b"cba")
    big = os.urandom(300_000)
    assert front_end.request(ECHO, 1, big, len(big)) == (0, big[::-1])
    front_end.forget(77)
    assert fixture.handler.forgotten == [77]


def test_config_space_has_tag_queues_and_notification_buffer_size(fixture: DeviceFixture) -> None:
    front_end = fixture.connect(num_request_queues=3)
    front_end.negotiate()
    config = fs_config.unpack_from(front_end.config)
    assert config == (b"share".ljust(36, b"\0"), 3, NOTIFY_BUF_SIZE)
    assert front_end.read_config(36, 4) == (3).to_bytes(4, "little")
    assert front_end.read_config(40, 20) == NOTIFY_BUF_SIZE.to_bytes(4, "little") + bytes(16)
    assert front_end.read_config(250, 44) == b""


def test_device_without_tag_leaves_the_configuration_space_to_the_front_end(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect(tag=None)
    front_end.negotiate()
    assert ProtocolFeature.CONFIG not in front_end.protocol_features
    assert front_end.request(ECHO, 1, b"x", 1) == (0, b"x")
    front_end.send(Request.GET_CONFIG, wire.config.pack(size=44) + bytes(44))
    assert front_end.closed()
    assert "GET_CONFIG without having negotiated CONFIG" in caplog.text


def test_device_without_notification_does_not_offer_it(fixture: DeviceFixture) -> None:
    front_end = fixture.connect(notification=False, offer=False)
    front_end.negotiate()
    assert not front_end.offered & 1
    assert fs_config.unpack_from(front_end.config).notify_buf_size == 0
    assert front_end.request(ECHO, 1, b"x", 1) == (0, b"x")


def test_every_request_queue_is_served(fixture: DeviceFixture) -> None:
    front_end = fixture.connect(num_request_queues=4)
    front_end.negotiate()
    for queue in range(4):
        assert front_end.request(ECHO, 1, b"ab", 2, queue=queue) == (0, b"ba")


def test_a_bug_in_the_handler_is_an_io_error_and_one_traceback(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    for _ in range(3):
        assert front_end.request(FAIL, 1, b"", 8) == (errno.EIO, b"")
    assert front_end.request(LIE, 1, b"", 8) == (errno.EIO, b"")
    front_end.send_no_reply(FAIL, 1, b"")
    assert [bool(r.exc_info) for r in caplog.records if r.levelno == logging.ERROR] == [
        True
    ] + 4 * [False]
    # The traceback in the log record holds views of guest memory.
    caplog.clear()
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


@pytest.mark.parametrize("event_idx", [True, False])
def test_indices_wrap_around(fixture: DeviceFixture, event_idx: bool) -> None:
    front_end = fixture.connect(base=0xFFFA, queue_size=4, event_idx=event_idx)
    front_end.negotiate()
    front_end.post_notification_buffers(4)
    for number in range(20):
        text = b"%d" % number
        assert front_end.request(ECHO, 1, text, len(text)) == (0, text[::-1])
        fixture.source.put(bytes([number]) * 80)
        assert front_end.notifications() == [bytes([number]) * 80]


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_batch_larger_than_a_turn_is_served_with_few_interrupts(
    fixture: DeviceFixture, event_idx: bool
) -> None:
    front_end = fixture.connect(event_idx=event_idx, queue_size=1024)
    front_end.negotiate()
    channel = front_end.requests()
    front_end.settle()
    channel.interrupts()
    heads = [posted_echo(front_end, channel) for _ in range(5 * CHAINS_PER_TURN)]
    front_end.publish(channel)
    front_end.settle()
    used = [channel.queue.take_used() for _ in heads]
    assert used == [(head, OUT_HEADER.size) for head in heads]
    assert channel.queue.take_used() is None
    # With event index the driver asked for the first one only.
    assert 1 <= channel.interrupts() <= (1 if event_idx else len(heads) // 4)


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_driver_that_wants_no_interrupt_gets_none(
    fixture: DeviceFixture, event_idx: bool
) -> None:
    front_end = fixture.connect(event_idx=event_idx)
    front_end.negotiate()
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")
    channel = front_end.requests()
    channel.interrupts()
    posted_echo(front_end, channel)
    channel.queue.want_interrupts(False)
    assert channel.queue.publish(), "an idle device wants kicks"
    os.eventfd_write(channel.kick, 1)
    front_end.settle()
    assert channel.queue.used_count() == 1
    assert channel.interrupts() == 0


def test_requests_available_before_the_ring_starts_need_no_kick(
    fixture: DeviceFixture,
) -> None:
    front_end = fixture.connect()
    front_end.negotiate_features()
    front_end.share_memory()
    channel = front_end.requests()
    posted_echo(front_end, channel)
    channel.queue.publish()
    front_end.start_ring(2)
    assert front_end.wait_used(channel)[1] == OUT_HEADER.size


def test_disabled_ring_is_served_once_it_is_enabled(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.enable_ring(2, False)
    channel = front_end.requests()
    posted_echo(front_end, channel)
    front_end.publish(channel)
    front_end.settle()
    assert channel.queue.used_count() == 0
    front_end.enable_ring(2, True)
    assert front_end.wait_used(channel)[1] == OUT_HEADER.size


def test_stopped_ring_resumes_at_its_index_and_keeps_the_session(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    for number in range(5):
        front_end.request(ECHO, 1, b"", 0)
        assert front_end.stop_ring(2) == number + 1
        front_end.start_ring(2)
    assert fixture.handler.resets == 0


def test_rings_run_without_enabling_when_protocol_features_are_not_acked(
    fixture: DeviceFixture,
) -> None:
    front_end = fixture.connect()
    assert front_end.ask_number(Request.GET_FEATURES)
    front_end.set(Request.SET_OWNER)
    front_end.set(Request.SET_FEATURES, wire.number.pack(value=1 << 32 | 1 << 28 | 1 << 29))
    front_end.share_memory()
    front_end.start_ring(0, enable=False)
    front_end.forget(5)
    assert fixture.handler.forgotten == [5]


def test_queue_one_is_a_request_queue_when_notification_is_offered_but_not_acked(
    fixture: DeviceFixture,
) -> None:
    front_end = fixture.connect(notification=False)
    front_end.negotiate()
    assert front_end.offered & 1
    assert front_end.requests() is front_end.channels[1]
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


def test_new_call_descriptor_gets_an_interrupt_for_earlier_replies(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.set(Request.SET_VRING_CALL, wire.number.pack(value=2 | wire.VRING_NO_FD))
    channel = front_end.requests()
    channel.interrupts()
    posted_echo(front_end, channel)
    front_end.publish(channel)
    front_end.settle()
    assert channel.queue.used_count() == 1
    assert channel.interrupts() == 0
    front_end.set(Request.SET_VRING_CALL, wire.number.pack(value=2), [channel.call])
    assert channel.interrupts() == 1


def test_rings_that_restart_at_another_index_reset_the_session(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.request(ECHO, 1, b"", 0)
    for reboots in range(1, 4):
        front_end.reboot()
        assert fixture.handler.resets == reboots
        assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")
        front_end.forget(1)


def test_reset_device_forgets_the_guest_and_keeps_the_memory(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.request(ECHO, 1, b"", 0)
    front_end.set(Request.RESET_DEVICE)
    assert fixture.handler.resets == 1
    for index in range(3):
        assert front_end.stop_ring(index) == 0
    front_end.reboot()
    assert fixture.handler.resets == 1
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


# Notifications


def test_notifications_stay_queued_until_there_are_buffers(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    fixture.source.put(b"a" * 80, b"b" * 88)
    front_end.settle()
    assert len(fixture.source.waiting) == 2
    assert fixture.source.rooms == []
    front_end.post_notification_buffers(1)
    assert front_end.notifications(at_least=2) == [b"a" * 80, b"b" * 88]
    assert set(fixture.source.rooms) == {NOTIFY_BUF_SIZE - 16}


@pytest.mark.parametrize("buffers", [1, 16])
@pytest.mark.parametrize("event_idx", [True, False])
def test_no_notification_is_lost_or_reordered(
    fixture: DeviceFixture, buffers: int, event_idx: bool
) -> None:
    front_end = fixture.connect(event_idx=event_idx, queue_size=16)
    front_end.negotiate()
    front_end.post_notification_buffers(buffers)
    sent = [bytes([number % 256]) * (80 + 8 * (number % 60)) for number in range(500)]
    got: list[bytes] = []
    for start in range(0, len(sent), 25):
        fixture.source.put(*sent[start : start + 25])
        got += front_end.notifications(at_least=25)
    assert got == sent
    front_end.settle()
    assert not fixture.source.waiting


def test_buffers_stay_available_until_there_is_a_notification(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.post_notification_buffers(16)
    front_end.settle()
    assert front_end.notify.queue.used_count() == 0
    assert front_end.stop_ring(1) == 0
    front_end.start_ring(1)
    fixture.source.put(b"x" * 80)
    assert front_end.notifications() == [b"x" * 80]


def test_a_device_with_buffers_needs_no_kick_for_more(fixture: DeviceFixture) -> None:
    front_end = fixture.connect(event_idx=False)
    front_end.negotiate()
    front_end.post_notification_buffers(2)
    front_end.settle()
    assert front_end.ram.read_short(front_end.notify.queue.used) == 1
    fixture.source.put(*[b"x" * 80] * 3)
    front_end.settle()
    assert front_end.ram.read_short(front_end.notify.queue.used) == 0
    assert len(front_end.notifications(at_least=3)) == 3


def test_small_notification_buffers_are_completed_empty_with_one_warning(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    queue = front_end.notify.queue
    front_end.post_notification_buffers(2, size=95)
    fixture.source.put(b"x" * 80)
    front_end.settle()
    assert [queue.take_used(), queue.take_used()] == [(0, 0), (1, 0)]
    assert sum("notification buffer of 95 bytes" in r.getMessage() for r in caplog.records) == 1
    front_end.post_notification_buffers(1, size=96)
    assert front_end.notifications() == [b"x" * 80]


def test_notifications_stay_queued_while_the_queue_is_stopped(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.post_notification_buffers(4)
    front_end.stop_ring(1)
    fixture.source.put(b"x" * 80)
    front_end.settle()
    assert len(fixture.source.waiting) == 1
    front_end.start_ring(1)
    assert front_end.notifications() == [b"x" * 80]


def test_notification_is_scattered_over_the_slices_of_a_buffer(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    buffers = [Buffer(front_end.ram.allocate(size), size) for size in (1, 7, 20, 100)]
    front_end.notify.queue.add([], buffers)
    front_end.publish(front_end.notify)
    payload = bytes(range(80))
    fixture.source.put(payload)
    head, written = front_end.wait_used(front_end.notify)
    assert (head, written) == (0, 96)
    data = b"".join(front_end.ram.read(p.addr, p.length) for p in buffers)
    assert data[:96] == OUT_HEADER.pack(96, 64, 0) + payload


# Rings that break the rules


def _expect_stopped(front_end: FrontEnd, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    os.eventfd_write(front_end.requests().kick, 1)
    front_end.settle()
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1, errors
    assert errors[0].startswith("queue 2 stopped: ")
    assert reason in errors[0]
    assert all(r.exc_info is None for r in caplog.records)
    # The others go on, and so does this one when it is set up again.
    front_end.forget(3)
    front_end.stop_ring(2)
    front_end.reset_ring(2)
    front_end.start_ring(2)
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


@pytest.mark.parametrize(
    ("descriptor", "reason"),
    [
        ((0x10_0000, 64, NEXT, 0), "a loop"),
        ((0x10_0000, 64, NEXT, 128), "descriptor 128 of a table of 128"),
        ((0, 64, 0, 0), "outside the guest's memory"),
        ((0x110_0000 - 1, 2, 0, 0), "outside the guest's memory"),
        ((0xFFFF_FFFF_FFFF_FFFF, 1, 0, 0), "outside the guest's memory"),
        ((0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, WRITE, 0), "outside the guest's memory"),
        ((0x10_0000, 0xFFFF_FFFF, WRITE, 0), "outside the guest's memory"),
        ((0x10_0000, 16, INDIRECT | NEXT, 0), "has a next one"),
        ((0x10_0000, 0, INDIRECT, 0), "table of 0 bytes"),
        ((0x10_0000, 24, INDIRECT, 0), "table of 24 bytes"),
        ((0x10_0000, 16 * 1025, INDIRECT, 0), "table of 16400 bytes"),
        ((0, 16, INDIRECT, 0), "outside the guest's memory"),
    ],
)
def test_a_bad_descriptor_stops_the_queue(
    fixture: DeviceFixture,
    caplog: pytest.LogCaptureFixture,
    descriptor: tuple[int, int, int, int],
    reason: str,
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    queue = front_end.requests().queue
    queue.set_descriptor(0, *descriptor)
    queue.set_available(0)
    queue.publish()
    _expect_stopped(front_end, caplog, reason)


def test_a_head_outside_the_table_stops_the_queue(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.requests().queue.set_available(128)
    front_end.requests().queue.publish()
    _expect_stopped(front_end, caplog, "descriptor 128 of a table of 128")


def test_an_available_index_too_far_ahead_stops_the_queue(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    front_end.ram.write_short(front_end.requests().queue.available + 2, 129)
    _expect_stopped(front_end, caplog, "129 ahead of 0 in a ring of 128")


def test_a_chain_that_is_offered_again_while_it_is_in_flight_stops_the_queue(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Each deferred reply takes memory, so their number has a limit."""
    front_end = fixture.connect()
    front_end.negotiate()
    channel = front_end.requests()
    queue, size = channel.queue, IN_HEADER.size
    request = Buffer(front_end.ram.allocate(size), size)
    front_end.ram.write(request.addr, IN_HEADER.pack(size, DEFER, 9, 1, 0, 0, 1, 0, 0))
    head = queue.add([request], [Buffer(front_end.ram.allocate(64), 64)])
    for _ in range(queue.size - 1):
        queue.set_available(head)
    front_end.publish(channel)
    front_end.settle()
    assert len(fixture.handler.deferred) == queue.size
    # One is completed, and one more may be offered.
    fixture.handler.deferred[0].complete()
    queue.set_available(head)
    front_end.publish(channel)
    front_end.settle()
    assert len(fixture.handler.deferred) == queue.size + 1
    queue.set_available(head)
    queue.publish()
    _expect_stopped(front_end, caplog, f"{queue.size} of {queue.size} chains are in flight")
    assert len(fixture.handler.deferred) == queue.size + 1


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([(0x10_0000, 16, INDIRECT, 0)], "inside an indirect table"),
        (
            [(0x10_0000, 16, WRITE | NEXT, 1), (0x10_0000, 16, 0, 0)],
            "readable descriptor after a writable",
        ),
        ([(0x10_0000, 16, NEXT, 1), (0x10_0000, 16, NEXT, 0)], "a loop"),
        ([(0x10_0000, 16, NEXT, 7)], "descriptor 7 of a table of 1"),
        (
            [(0x10_0000, 0x80_0000, WRITE | NEXT, i + 1) for i in range(512)]
            + [(0x10_0000, 1, WRITE, 0)],
            "one chain",
        ),
    ],
)
def test_a_bad_indirect_table_stops_the_queue(
    fixture: DeviceFixture,
    caplog: pytest.LogCaptureFixture,
    table: list[tuple[int, int, int, int]],
    reason: str,
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    queue = front_end.requests().queue
    addr = front_end.ram.allocate(16 * len(table))
    queue.write_table(addr, table)
    queue.set_descriptor(0, addr, 16 * len(table), INDIRECT)
    queue.set_available(0)
    queue.publish()
    _expect_stopped(front_end, caplog, reason)


def test_an_indirect_descriptor_that_was_not_negotiated_stops_the_queue(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect(indirect=False)
    front_end.negotiate()
    queue = front_end.requests().queue
    queue.set_descriptor(0, front_end.ram.allocate(16), 16, INDIRECT)
    queue.set_available(0)
    queue.publish()
    _expect_stopped(front_end, caplog, "not negotiated")


def test_a_broken_ring_writes_the_error_descriptor(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    front_end.set(Request.SET_VRING_ERR, wire.number.pack(value=2), [err])
    front_end.requests().queue.set_available(999)
    front_end.publish(front_end.requests())
    front_end.settle()
    assert os.eventfd_read(err) == 1
    os.close(err)


def test_requests_before_a_bad_chain_are_completed_and_interrupted(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    channel = front_end.requests()
    front_end.settle()
    channel.interrupts()
    posted_echo(front_end, channel)
    channel.queue.set_available(999)
    front_end.publish(channel)
    front_end.settle()
    assert channel.queue.used_count() == 1
    assert channel.interrupts() >= 1


def test_a_kick_descriptor_whose_other_end_closes_stops_the_queue(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    reader, writer = os.pipe()
    front_end.stop_ring(2)
    front_end.set(Request.SET_VRING_KICK, wire.number.pack(value=2), [reader])
    os.close(reader)
    front_end.settle()
    os.close(writer)
    front_end.settle()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "queue 2 stopped: the front-end closed its kick descriptor"
    ]


# Memory that changes


def test_a_chain_may_cross_adjacent_regions(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    channel = front_end.requests()
    border = front_end.ram.regions[1].guest_addr
    head = border - 20
    front_end.ram.write(
        head, IN_HEADER.pack(IN_HEADER.size + 4, ECHO, 6, 1, 0, 0, 0, 0, 0) + b"abcd"
    )
    reply = front_end.ram.allocate(20)
    written = front_end.submit(channel, [Buffer(head, IN_HEADER.size + 4)], [Buffer(reply, 20)])
    assert front_end.ram.read(reply, written) == OUT_HEADER.pack(20, 0, 6) + b"dcba"


def test_removing_a_ring_s_memory_stops_only_that_ring(
    fixture: DeviceFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    upper, lower = front_end.ram.regions[1], front_end.ram.regions[0]
    front_end.set(Request.REM_MEM_REG, wire.single_region.pack(**region_fields(upper)))
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")
    front_end.set(Request.REM_MEM_REG, wire.single_region.pack(**region_fields(lower)))
    front_end.settle()
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [e.split(":")[0] for e in errors] == [
        "queue 0 stopped",
        "queue 1 stopped",
        "queue 2 stopped",
    ]
    front_end.set(
        Request.ADD_MEM_REG,
        wire.single_region.pack(**region_fields(lower)),
        [front_end.ram.fd],
    )
    front_end.stop_ring(2)
    front_end.start_ring(2)
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


def test_invalid_regions_are_refused_and_the_former_ones_stay(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    known = region_fields(front_end.ram.regions[0])
    for change in (
        {},
        {"guest_addr": 1 << 40},
        {"user_addr": 1 << 40},
        {"guest_addr": 1 << 40, "user_addr": 1 << 40, "size": 0},
        {"guest_addr": 1 << 40, "user_addr": 1 << 40, "size": front_end.ram.size + 4096},
        {"guest_addr": 1 << 40, "user_addr": 1 << 40, "mmap_offset": (1 << 64) - 4096},
        {"guest_addr": (1 << 64) - 4096, "user_addr": 1 << 40},
    ):
        fields = wire.single_region.pack(**{**known, **change})
        assert front_end.try_set(Request.ADD_MEM_REG, fields, [front_end.ram.fd]) == 1
    missing = wire.single_region.pack(**{**known, "size": known["size"] - 4096})
    assert front_end.try_set(Request.REM_MEM_REG, missing) == 1
    assert front_end.request(ECHO, 1, b"ab", 2) == (0, b"ba")


def test_a_region_may_start_in_the_middle_of_a_page_of_its_file(fixture: DeviceFixture) -> None:
    front_end = fixture.connect()
    front_end.negotiate()
    odd = {"guest_addr": 1 << 40, "user_addr": 1 << 40, "size": 100, "mmap_offset": 4096 + 24}
    front_end.set(Request.ADD_MEM_REG, wire.single_region.pack(**odd), [front_end.ram.fd])
    front_end.ram.write(
        front_end.ram.BASE + 4096 + 24, IN_HEADER.pack(IN_HEADER.size, ECHO, 6, 1, 0, 0, 0, 0, 0)
    )
    reply = front_end.ram.allocate(16)
    buffers = [Buffer(1 << 40, IN_HEADER.size)], [Buffer(reply, 16)]
    assert front_end.submit(front_end.requests(), *buffers) == 16
    assert front_end.ram.read(reply, 16) == OUT_HEADER.pack(16, 0, 6)
