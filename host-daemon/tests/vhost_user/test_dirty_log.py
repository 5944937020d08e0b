# SPDX-License-Identifier: Apache-2.0
"""The messages by which a front-end has writes into guest memory logged."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from farwatchd.virtqueue.dirty_log import PAGE_SIZE
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import VHOST_F_LOG_ALL
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.device_fixture import ECHO, DeviceFixture, device_fixture
from tests.support.frontend import FrontEnd
from tests.support.shared_log import Log, log_size, ring_address, set_logging, share_log


@pytest.fixture
def device() -> Iterator[DeviceFixture]:
    with device_fixture() as fixture:
        yield fixture


@pytest.fixture
def front_end(device: DeviceFixture) -> FrontEnd:
    front_end = device.connect()
    front_end.negotiate()
    return front_end


@pytest.fixture
def log(front_end: FrontEnd) -> Iterator[Log]:
    log = Log(log_size(front_end.ram))
    yield log
    log.close()


def ask(front_end: FrontEnd) -> None:
    assert front_end.request(ECHO, 1, b"text", 4) == (0, b"txet")


def features(front_end: FrontEnd, logging: bool) -> bytes:
    return wire.number.pack(value=front_end.acked | (VHOST_F_LOG_ALL if logging else 0))


def test_replies_are_logged_while_logging_is_on(front_end: FrontEnd, log: Log) -> None:
    assert front_end.offered & VHOST_F_LOG_ALL
    ask(front_end)
    assert share_log(front_end, log) == 0
    ask(front_end)
    assert log.take() == set()
    assert set_logging(front_end, True) == 0
    log.take()
    ask(front_end)
    used = front_end.requests().queue.used
    assert used // PAGE_SIZE * PAGE_SIZE in log.take()
    assert set_logging(front_end, False) == 0
    log.take()
    ask(front_end)
    assert log.take() == set()


def test_logging_goes_on_in_a_ring_that_starts_again_and_in_new_memory(
    front_end: FrontEnd, log: Log
) -> None:
    share_log(front_end, log)
    set_logging(front_end, True)
    front_end.stop_ring(2)
    front_end.start_ring(2)
    log.take()
    ask(front_end)
    assert log.take()
    table = [
        dict(zip(("guest_addr", "size", "user_addr", "mmap_offset"), each, strict=True))
        for each in ((r.guest_addr, r.size, r.user_addr, r.offset) for r in front_end.ram.regions)
    ]
    payload = wire.memory_table.pack(regions=len(table)) + b"".join(
        wire.memory_region.pack(**each) for each in table
    )
    front_end.set(Request.SET_MEM_TABLE, payload, [front_end.ram.fd] * len(table))
    log.take()
    ask(front_end)
    assert log.take()


def test_new_log_is_used_instead_of_the_former_one(front_end: FrontEnd, log: Log) -> None:
    share_log(front_end, log)
    set_logging(front_end, True)
    larger = Log(2 * log.size, 4096)
    assert share_log(front_end, larger) == 0
    log.take()
    ask(front_end)
    assert larger.take()
    assert not log.take()
    larger.close()


def test_logging_without_a_log_is_refused(front_end: FrontEnd) -> None:
    assert front_end.try_set(Request.SET_FEATURES, features(front_end, True)) == 1
    ask(front_end)


def test_log_that_is_too_small_is_refused(front_end: FrontEnd, log: Log) -> None:
    small = Log(log.size - 1)
    assert share_log(front_end, small) == 1
    assert front_end.try_set(Request.SET_FEATURES, features(front_end, True)) == 1
    ask(front_end)
    assert share_log(front_end, log) == 0
    assert set_logging(front_end, True) == 0
    ask(front_end)
    # Nobody would notice what is not logged from now on.
    front_end.send(Request.SET_LOG_BASE, small.payload(), [small.fd])
    assert front_end.closed()
    small.close()


def test_memory_that_is_not_in_the_log_is_refused(front_end: FrontEnd, log: Log) -> None:
    share_log(front_end, log)
    set_logging(front_end, True)
    region = wire.single_region.pack(
        guest_addr=1 << 40, size=PAGE_SIZE, user_addr=1 << 50, mmap_offset=0
    )
    assert front_end.try_set(Request.ADD_MEM_REG, region, [front_end.ram.fd]) == 1
    log.take()
    ask(front_end)
    assert log.take()
    set_logging(front_end, False)
    front_end.set(Request.ADD_MEM_REG, region, [front_end.ram.fd])


@pytest.mark.parametrize("fds", [0, 2])
def test_log_with_a_wrong_number_of_descriptors_ends_the_connection(
    front_end: FrontEnd, log: Log, fds: int
) -> None:
    front_end.send(Request.SET_LOG_BASE, log.payload(), [log.fd] * fds)
    assert front_end.closed()


def test_descriptor_that_is_no_log_is_refused(front_end: FrontEnd) -> None:
    reader, writer = os.pipe()
    payload = wire.log_base.pack(size=4096, offset=0)
    front_end.send(Request.SET_LOG_BASE, payload, [reader])
    assert wire.number.unpack_from(front_end.receive(Request.SET_LOG_BASE)).value == 1
    os.close(reader)
    os.close(writer)
    ask(front_end)


def test_event_descriptor_of_the_log_is_written(front_end: FrontEnd, log: Log) -> None:
    first, second = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
    front_end.set(Request.SET_LOG_FD, fds=[first])
    share_log(front_end, log)
    set_logging(front_end, True)
    ask(front_end)
    assert os.eventfd_read(first)
    front_end.set(Request.SET_LOG_FD, fds=[second])
    ask(front_end)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(first)
    assert os.eventfd_read(second)
    # A saturated one holds nothing up.
    os.eventfd_write(second, (1 << 64) - 2)
    ask(front_end)
    front_end.set(Request.SET_LOG_FD)
    ask(front_end)
    os.close(first)
    os.close(second)


def test_addresses_of_a_running_ring_cannot_change(front_end: FrontEnd, log: Log) -> None:
    share_log(front_end, log)
    front_end.set(Request.SET_VRING_ADDR, ring_address(front_end, 2, True))
    ask(front_end)
    moved = bytearray(ring_address(front_end, 2, True))
    moved[8] ^= 16
    front_end.send(Request.SET_VRING_ADDR, bytes(moved))
    assert front_end.closed()


def test_used_ring_outside_the_log_is_refused(front_end: FrontEnd, log: Log) -> None:
    share_log(front_end, log)
    fields = wire.vring_addr.unpack_from(ring_address(front_end, 2, True))
    outside = wire.vring_addr.pack(
        **{name: getattr(fields, name) for name in fields._fields if name != "log"},
        log=(1 << 64) - 8,
    )
    assert front_end.try_set(Request.SET_VRING_ADDR, outside) == 1
    ask(front_end)


@pytest.mark.parametrize("later", ["a shorter log", "a longer ring"])
def test_used_ring_that_is_outside_the_log_later_stops_the_queue(
    front_end: FrontEnd, log: Log, caplog: pytest.LogCaptureFixture, later: str
) -> None:
    size = log.size
    longer = Log(size + 8)
    assert share_log(front_end, longer) == 0
    assert set_logging(front_end, True) == 0
    fields = wire.vring_addr.unpack_from(ring_address(front_end, 2, True))
    at = (size + 8) * 8 * PAGE_SIZE - 4096
    where = wire.vring_addr.pack(**{**fields._asdict(), "log": at})
    front_end.set(Request.SET_VRING_ADDR, where)
    ask(front_end)
    if later == "a shorter log":
        assert share_log(front_end, log) == 0
    else:
        front_end.stop_ring(2)
        front_end.set(Request.SET_VRING_NUM, wire.vring_state.pack(index=2, num=1 << 10))
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        front_end.set(Request.SET_VRING_KICK, wire.number.pack(value=2), [kick])
        os.close(kick)
    front_end.settle()
    errors = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert len(errors) == 1, errors
    assert errors[0].startswith("queue 2 stopped: the used ring")
    longer.close()


def test_features_of_running_rings_cannot_change_with_logging(
    front_end: FrontEnd, log: Log
) -> None:
    share_log(front_end, log)
    other = front_end.acked & ~(1 << 29) | VHOST_F_LOG_ALL
    front_end.send(Request.SET_FEATURES, wire.number.pack(value=other))
    assert front_end.closed()
