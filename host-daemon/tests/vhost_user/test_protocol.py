# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages: framing, order, sizes, descriptors, acknowledgements, and invalid ones."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import MAX_MEM_SLOTS, Backend
from farwatchd.vhost_user.messages import MAX_FDS, Message, MessageDecoder, ProtocolError
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import HeaderFlag, ProtocolFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.connection_fixture import ConnectionFixture
from tests.support.driver import GuestRam
from tests.support.frontend import region_fields
from tests.support.handlers import CountingHandler
from tests.support.passthrough_share import open_descriptors


def _encode(request: int, payload: bytes = b"", flags: int = wire.VERSION) -> bytes:
    return wire.header.pack_values(request, flags, len(payload)) + payload


# Framing


@given(
    st.lists(st.tuples(st.sampled_from(Request), st.binary(max_size=40)), max_size=8),
    st.data(),
)
@settings(max_examples=100)
def test_messages_survive_any_fragmentation(
    messages: list[tuple[Request, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(_encode(request, payload) for request, payload in messages)
    decoder = MessageDecoder()
    got = []
    while stream:
        size = data.draw(st.integers(1, decoder.wanted))
        message = decoder.feed(stream[:size])
        stream = stream[size:]
        if message is not None:
            got.append((message.request, message.payload))
    assert got == messages
    assert not decoder.within_message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_encode(Request.GET_FEATURES, flags=2), "protocol version 2"),
        (_encode(Request.GET_FEATURES, flags=0), "protocol version 0"),
        (
            _encode(Request.GET_FEATURES, flags=wire.VERSION | HeaderFlag.REPLY),
            "marked as a reply",
        ),
        (_encode(0), "unknown type 0"),
        (_encode(9999), "unknown type 9999"),
        (wire.header.pack_values(1, 1, wire.MAX_PAYLOAD + 1), "announces"),
        (wire.header.pack_values(1, 1, 0xFFFF_FFFF), "announces"),
    ],
)
def test_invalid_headers_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        MessageDecoder().feed(data[: wire.header.size])


def test_descriptors_belong_to_the_first_byte_of_a_message() -> None:
    fds = [os.dup(0) for _ in range(2)]
    decoder = MessageDecoder()
    assert decoder.feed(_encode(Request.GET_FEATURES)[:4], fds[:1]) is None
    with pytest.raises(ProtocolError, match="in the middle"):
        decoder.feed(b"\0", fds[1:])
    decoder.close()
    for fd in fds:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)


# Through a socket


@pytest.fixture
def link() -> Iterator[ConnectionFixture]:
    before = open_descriptors()
    link = ConnectionFixture()
    yield link
    link.close()
    assert open_descriptors() <= before, "descriptors have leaked"


def _state(index: int, num: int = 0) -> bytes:
    return wire.vring_state.pack(index=index, num=num)


def _number(value: int) -> bytes:
    return wire.number.pack(value=value)


_REGION = wire.single_region.pack(guest_addr=0, size=4096, user_addr=0, mmap_offset=0)
_TABLE = wire.memory_table.pack(regions=1) + _REGION[8:]


@pytest.mark.parametrize(
    ("request_", "payload", "fds", "reason"),
    [
        (Request.GET_FEATURES, b"x", 0, "GET_FEATURES with 1 bytes, 0 are right"),
        (
            Request.GET_FEATURES,
            b"",
            1,
            "GET_FEATURES with 1 descriptors, at most 0 are right",
        ),
        (Request.SET_FEATURES, b"1234", 0, "SET_FEATURES with 4 bytes, 8 are right"),
        (Request.SET_FEATURES, _number(1 << 27), 0, "not offered: 0x8000000"),
        (Request.SET_PROTOCOL_FEATURES, _number(1 << 12), 0, "not offered: 0x1000"),
        (Request.SET_MEM_TABLE, b"1234", 0, "SET_MEM_TABLE with 4 bytes"),
        (Request.SET_MEM_TABLE, _TABLE, 0, "1 regions with 0 descriptors"),
        (Request.SET_MEM_TABLE, _TABLE, 2, "1 regions with 2 descriptors"),
        (Request.SET_MEM_TABLE, _TABLE[:-1], 1, "1 regions in 39 bytes"),
        (
            Request.SET_MEM_TABLE,
            wire.memory_table.pack(regions=9) + bytes(256),
            8,
            "9 regions",
        ),
        (
            Request.SET_MEM_TABLE,
            wire.memory_table.pack(regions=0xFFFF_FFFF),
            0,
            "4294967295 regions",
        ),
        (Request.SET_MEM_TABLE, _TABLE, 1, "cannot be mapped"),
        (Request.ADD_MEM_REG, _REGION, 0, "ADD_MEM_REG without a descriptor"),
        (Request.ADD_MEM_REG, _REGION, 2, "at most 1 are right"),
        (Request.SET_VRING_NUM, _state(3, 8), 0, "no queue 3: there are 3"),
        (Request.SET_VRING_NUM, _state(0, 0), 0, "0 is not a power of two"),
        (Request.SET_VRING_NUM, _state(0, 48), 0, "48 is not a power of two"),
        (Request.SET_VRING_NUM, _state(0, 1 << 16), 0, "65536 is not a power of two"),
        (Request.SET_VRING_BASE, _state(0, 1 << 16), 0, "65536 is no 16-bit index"),
        (Request.SET_VRING_BASE, _state(99, 1), 0, "no queue 99"),
        (Request.GET_VRING_BASE, _state(99), 0, "no queue 99"),
        (Request.SET_VRING_ADDR, wire.vring_addr.pack(index=7), 0, "no queue 7"),
        (Request.SET_VRING_ENABLE, _state(7, 1), 0, "no queue 7"),
        (Request.SET_VRING_ENABLE, _state(0, 2), 0, "2 is neither 0 nor 1"),
        (Request.SET_VRING_KICK, _number(0), 0, "SET_VRING_KICK with 0 descriptors"),
        (
            Request.SET_VRING_KICK,
            _number(wire.VRING_NO_FD),
            1,
            "SET_VRING_KICK with 1 descriptors",
        ),
        (Request.SET_VRING_KICK, _number(wire.VRING_NO_FD), 0, "polling is not done here"),
        (
            Request.SET_VRING_CALL,
            _number(0),
            2,
            "SET_VRING_CALL with 2 descriptors, at most 1 are right",
        ),
        (Request.SET_VRING_CALL, _number(200), 1, "no queue 200"),
        (Request.SET_VRING_ERR, _number(1 << 9), 1, "unknown bits in 0x200"),
        (Request.GET_CONFIG, b"1234", 0, "GET_CONFIG with 4 bytes"),
        (
            Request.GET_CONFIG,
            wire.config.pack(size=44) + bytes(43),
            0,
            "44 bytes in 55 bytes",
        ),
    ],
)
def test_a_message_that_breaks_the_rules_ends_the_connection_with_one_line(
    link: ConnectionFixture,
    caplog: pytest.LogCaptureFixture,
    request_: Request,
    payload: bytes,
    fds: int,
    reason: str,
) -> None:
    front_end = link.front_end
    features = int(ProtocolFeature.CONFIG | ProtocolFeature.CONFIGURE_MEM_SLOTS)
    front_end.send(Request.SET_PROTOCOL_FEATURES, _number(features))
    front_end.send(request_, payload, [front_end.channels[0].kick] * fds)
    assert front_end.closed()
    assert link.closed == 1
    assert link.handler.resets == 1
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("front-end disconnected: ")
    assert reason in errors[0]
    assert "\n" not in errors[0]


@pytest.mark.parametrize(
    "request_",
    [
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.SET_CONFIG,
        Request.RESET_DEVICE,
        Request.GET_MAX_MEM_SLOTS,
        Request.ADD_MEM_REG,
        Request.REM_MEM_REG,
    ],
)
def test_messages_of_features_that_were_not_negotiated_are_refused(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture, request_: Request
) -> None:
    link.front_end.send(request_)
    assert link.front_end.closed()
    assert "without having negotiated" in caplog.text


def test_more_descriptors_than_any_message_has_end_the_connection(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    link.front_end.send(Request.SET_MEM_TABLE, bytes(8), [link.front_end.ram.fd] * (MAX_FDS + 3))
    assert link.front_end.closed()
    assert f"more than {MAX_FDS} descriptors" in caplog.text


def test_disconnect_within_a_message_ends_the_connection(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    socket.send_fds(
        link.front_end.sock,
        [_encode(Request.SET_MEM_TABLE, bytes(8))[:14]],
        [link.front_end.ram.fd],
    )
    link.front_end.sock.shutdown(socket.SHUT_WR)
    assert link.front_end.closed()
    assert "in the middle of a message" in caplog.text


def test_settings_of_a_running_ring_cannot_change(caplog: pytest.LogCaptureFixture) -> None:
    for request, payload in (
        (Request.SET_VRING_NUM, _state(0, 64)),
        (Request.SET_VRING_BASE, _state(0, 1)),
        (Request.SET_VRING_ADDR, wire.vring_addr.pack(index=0)),
        (Request.SET_FEATURES, _number(1 << 32)),
    ):
        link = ConnectionFixture()
        link.front_end.negotiate()
        link.front_end.send(request, payload)
        assert link.front_end.closed()
        link.close()
    assert caplog.text.count(" runs") + caplog.text.count("rings run") == 4


def test_acknowledgements_come_only_when_asked_for_and_negotiated(link: ConnectionFixture) -> None:
    front_end = link.front_end
    front_end.send(Request.SET_OWNER, need_reply=True)
    front_end.send(Request.SET_PROTOCOL_FEATURES, _number(int(ProtocolFeature.REPLY_ACK)))
    front_end.send(Request.SET_OWNER)
    front_end.send(Request.GET_FEATURES, need_reply=True)
    assert wire.number.unpack_from(front_end.receive(Request.GET_FEATURES)).value & 1 << 32
    front_end.send(Request.SET_OWNER, need_reply=True)
    assert front_end.receive(Request.SET_OWNER) == _number(0)
    front_end.send(Request.SET_VRING_KICK, _number(wire.VRING_NO_FD), need_reply=True)
    assert front_end.receive(Request.SET_VRING_KICK) == _number(1)
    assert front_end.ask_number(Request.GET_FEATURES)


def test_the_configuration_space_is_read_only(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = link.front_end
    front_end.negotiate_features()
    payload = wire.config.pack(offset=0, size=4) + b"abcd"
    assert front_end.try_set(Request.SET_CONFIG, payload) == 1
    front_end.send(Request.SET_CONFIG, payload)
    assert front_end.read_config(0, 5) == b"share"
    assert "read-only" in caplog.text


def test_kick_descriptor_that_epoll_does_not_support_is_refused(
    link: ConnectionFixture, tmp_path: Path
) -> None:
    front_end = link.front_end
    front_end.negotiate()
    front_end.stop_ring(2)
    with (tmp_path / "file").open("w") as file:
        assert front_end.try_set(Request.SET_VRING_KICK, _number(2), [file.fileno()]) == 1
    path = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    assert front_end.try_set(Request.SET_VRING_KICK, _number(2), [path]) == 1
    os.close(path)
    front_end.start_ring(2)


def test_reset_owner_stops_the_rings_and_nothing_else(link: ConnectionFixture) -> None:
    link.front_end.negotiate()
    link.front_end.set(Request.RESET_OWNER)
    assert link.handler.resets == 0
    link.front_end.set(Request.SET_VRING_NUM, _state(0, 64))


def test_memory_slots_are_bounded_and_counted() -> None:
    device = Device(Loop(), CountingHandler(), DeviceConfig("share"))
    backend = Backend(device)
    ram = GuestRam()
    features = int(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    backend.handle(Message(Request.SET_PROTOCOL_FEATURES, 1, _number(features)))
    reply = backend.handle(Message(Request.GET_MAX_MEM_SLOTS, 1, b""))
    assert reply is not None
    assert wire.number.unpack_from(reply, wire.header.size).value == MAX_MEM_SLOTS

    def add(number: int) -> None:
        fields = {"guest_addr": number << 12, "user_addr": number << 12, "size": 4096}
        message = Message(
            Request.ADD_MEM_REG, 1, wire.single_region.pack(**fields), [os.dup(ram.fd)]
        )
        backend.handle(message)

    for number in range(MAX_MEM_SLOTS):
        add(number)
    with pytest.raises(ProtocolError, match="slots are taken"):
        add(MAX_MEM_SLOTS)
    backend.close()
    ram.close()


def test_a_second_memory_table_replaces_the_first_while_rings_run(link: ConnectionFixture) -> None:
    front_end = link.front_end
    front_end.memory_slots = False
    front_end.negotiate()
    front_end.forget(1)
    front_end.share_memory()
    front_end.forget(2)
    # Forty bytes too many do not matter: some front-ends send the whole array.
    regions = [region_fields(r) for r in front_end.ram.regions]
    table = (
        wire.memory_table.pack(regions=2)
        + b"".join(wire.memory_region.pack(**f) for f in regions)
        + bytes(192)
    )
    front_end.set(Request.SET_MEM_TABLE, table, [front_end.ram.fd] * 2)
    front_end.forget(3)


# Anything


_PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.builds(_state, st.integers(0, 4), st.sampled_from([0, 1, 2, 8, 128, 65535, 65536])),
    st.builds(
        _number,
        st.one_of(
            st.integers(0, 4), st.integers(0, (1 << 64) - 1), st.sampled_from([0x100, 0x102])
        ),
    ),
    st.builds(
        lambda index, flags, where: wire.vring_addr.pack(
            index=index, flags=flags, descriptor=where, available=where + 4096, used=where + 8192
        ),
        st.integers(0, 3),
        st.integers(0, 1),
        st.sampled_from([0, 0x1000, 0x8, 1 << 40]),
    ),
    st.builds(
        lambda guest, size, user, offset: wire.single_region.pack(
            guest_addr=guest, size=size, user_addr=user, mmap_offset=offset
        ),
        st.sampled_from([0, 0x4000, 1 << 63]),
        st.sampled_from([0, 0x4000, 0x8000, (1 << 64) - 1]),
        st.sampled_from([0, 0x4000, 1 << 40]),
        st.sampled_from([0, 1, 0x1000, 1 << 63]),
    ),
    st.builds(
        lambda offset, size: wire.config.pack(offset=offset, size=size) + bytes(size),
        st.integers(0, 300),
        st.integers(0, 64),
    ),
    st.just(b""),
)
_STEPS = st.lists(
    st.tuples(st.sampled_from(Request), _PAYLOADS, st.integers(0, 2), st.booleans(), st.booleans()),
    max_size=30,
)


@given(_STEPS)
@settings(max_examples=300)
def test_any_sequence_of_messages_is_answered_or_refused(
    steps: list[tuple[Request, bytes, int, bool, bool]],
) -> None:
    before = open_descriptors()
    loop = Loop()
    handler = CountingHandler()
    backend = Backend(Device(loop, handler, DeviceConfig("share")))
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(memory, 1 << 16)
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    backend.handle(Message(Request.SET_PROTOCOL_FEATURES, 1, _number(0xA209)))
    for request, payload, count, need_reply, as_event in steps:
        fds = [os.dup(event if as_event else memory) for _ in range(count)]
        flags = wire.VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
        try:
            backend.handle(Message(request, flags, payload, fds))
        except ProtocolError as error:
            assert "\n" not in str(error)
        loop.run_once(0)
    backend.close()
    assert handler.resets >= 1
    loop.close()
    os.close(memory)
    os.close(event)
    assert open_descriptors() <= before, "descriptors have leaked"


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=10))
@settings(max_examples=100)
def test_any_bytes_close_the_connection(parts: list[bytes]) -> None:
    before = open_descriptors()
    link = ConnectionFixture()
    for part in parts:
        if link.closed:
            break
        link.front_end.sock.send(part)
        link.front_end.settle()
    link.front_end.sock.shutdown(socket.SHUT_WR)
    link.front_end.settle()
    assert link.closed == 1
    link.close()
    assert open_descriptors() <= before, "descriptors have leaked"
