# SPDX-License-Identifier: Apache-2.0
"""The messages by which a front-end saves and loads the device's state, right and hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from farwatchd.vhost_user.device_state import Direction, StateTransfer
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.state import StateError
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import ProtocolFeature
from tests.support.device_fixture import ECHO, DeviceFixture, device_fixture
from tests.support.frontend import FrontEnd
from tests.support.state_migration import (
    ACCEPTED,
    check_state,
    load_state,
    other_end,
    saved_state,
    set_state_fd,
)

LARGE = bytes(range(256)) * 4096
REFUSED = ACCEPTED | 1


class BytesState:
    """A state that is bytes; ``problem`` refuses it."""

    def __init__(self) -> None:
        self.data = LARGE
        self.problem = ""

    @property
    def max_size(self) -> int:
        return 2 * len(LARGE)

    def save(self) -> bytes:
        self._refuse()
        return self.data

    def load(self, data: bytes) -> None:
        self._refuse()
        self.data = data

    def _refuse(self) -> None:
        if self.problem:
            raise StateError(self.problem)


@pytest.fixture
def device() -> Iterator[DeviceFixture]:
    with device_fixture() as fixture:
        yield fixture


@pytest.fixture
def state(device: DeviceFixture) -> BytesState:
    state = BytesState()
    device.state_transfer = StateTransfer(device.loop, state)
    return state


@pytest.fixture
def front_end(device: DeviceFixture, state: BytesState) -> FrontEnd:
    del state
    front_end = device.connect()
    front_end.negotiate()
    for index in range(len(front_end.channels)):
        front_end.stop_ring(index)
    return front_end


def go_on(front_end: FrontEnd) -> None:
    """See that the device serves."""
    for index in range(len(front_end.channels)):
        front_end.start_ring(index)
    assert front_end.request(ECHO, 1, b"text", 4) == (0, b"txet")


def test_state_is_saved_and_loaded(front_end: FrontEnd, state: BytesState) -> None:
    assert ProtocolFeature.DEVICE_STATE in front_end.protocol_features
    assert saved_state(front_end) == LARGE
    assert load_state(front_end, LARGE[::-1]) == 0
    assert state.data == LARGE[::-1]
    go_on(front_end)


def test_state_may_go_through_a_socket(front_end: FrontEnd, state: BytesState) -> None:
    fd, sock = other_end()
    assert set_state_fd(front_end, Direction.LOAD, fd) == ACCEPTED
    os.close(fd)
    sock.sendall(b"state")
    sock.close()
    assert check_state(front_end) == 0
    assert state.data == b"state"


def test_device_without_a_state_offers_none(device: DeviceFixture) -> None:
    front_end = device.connect()
    front_end.negotiate()
    assert ProtocolFeature.DEVICE_STATE not in front_end.protocol_features
    front_end.send(Request.CHECK_DEVICE_STATE)
    assert front_end.closed()


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0, 1), (1, 1), (1 << 31, 0)])
def test_unknown_direction_or_phase_is_refused(
    front_end: FrontEnd, direction: int, phase: int
) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, direction, writer, phase) == REFUSED
    os.close(reader)
    os.close(writer)
    assert check_state(front_end) == 1
    go_on(front_end)


@pytest.mark.parametrize("direction", list(Direction))
def test_state_of_running_rings_is_refused(front_end: FrontEnd, direction: Direction) -> None:
    front_end.start_ring(0)
    reader, writer = os.pipe()
    assert set_state_fd(front_end, direction, (writer, reader)[direction]) == REFUSED
    os.close(reader)
    os.close(writer)
    front_end.stop_ring(0)
    go_on(front_end)


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_number_of_descriptors_ends_the_connection(front_end: FrontEnd, count: int) -> None:
    reader, writer = os.pipe()
    front_end.send(
        Request.SET_DEVICE_STATE_FD, wire.device_state.pack(direction=0, phase=0), [writer] * count
    )
    assert front_end.closed()
    os.close(reader)
    os.close(writer)


def test_short_message_ends_the_connection(front_end: FrontEnd) -> None:
    front_end.send(Request.SET_DEVICE_STATE_FD, bytes(4))
    assert front_end.closed()


@pytest.mark.parametrize("direction", list(Direction))
def test_descriptor_that_is_no_pipe_is_refused(front_end: FrontEnd, direction: Direction) -> None:
    fd = os.memfd_create("state")
    assert set_state_fd(front_end, direction, fd) == REFUSED
    os.close(fd)
    go_on(front_end)


def test_wrong_end_of_a_pipe_fails(front_end: FrontEnd) -> None:
    reader, writer = os.pipe()
    # To write into the one, and to read from the other, is an error of the first attempt.
    for direction, fd in ((Direction.SAVE, reader), (Direction.LOAD, writer)):
        assert set_state_fd(front_end, direction, fd) in (ACCEPTED, REFUSED)
        assert check_state(front_end) == 1
    os.close(reader)
    os.close(writer)
    go_on(front_end)


def test_state_that_cannot_be_saved_is_refused(front_end: FrontEnd, state: BytesState) -> None:
    state.problem = "it has gone"
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == REFUSED
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    go_on(front_end)


def test_state_that_cannot_be_loaded_fails(front_end: FrontEnd, state: BytesState) -> None:
    state.problem = "it has gone"
    assert load_state(front_end, b"state") == 1
    assert check_state(front_end) == 1
    go_on(front_end)


def test_bug_in_the_state_is_a_failure(
    front_end: FrontEnd, state: BytesState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RecursionError("too deep")

    monkeypatch.setattr(state, "load", fail)
    assert load_state(front_end, b"state") == 1
    monkeypatch.setattr(state, "save", fail)
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == REFUSED
    os.close(reader)
    os.close(writer)
    go_on(front_end)


def test_state_without_an_end_fails(front_end: FrontEnd, state: BytesState) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.LOAD, reader) == ACCEPTED
    os.write(writer, b"state")
    # The daemon does not wait for it.
    assert check_state(front_end) == 1
    os.close(reader)
    os.close(writer)
    assert state.data == LARGE
    go_on(front_end)


def test_state_that_is_too_large_fails(front_end: FrontEnd, state: BytesState) -> None:
    assert load_state(front_end, 3 * LARGE) == 1
    assert state.data == LARGE
    go_on(front_end)


def test_state_that_is_not_read_fails(front_end: FrontEnd) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == ACCEPTED
    os.close(writer)
    front_end.settle()
    assert check_state(front_end) == 1
    os.close(reader)
    go_on(front_end)


def test_reader_that_leaves_fails(front_end: FrontEnd) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == ACCEPTED
    os.close(writer)
    os.close(reader)
    front_end.settle()
    assert check_state(front_end) == 1
    go_on(front_end)


def test_second_transfer_ends_the_first_one(front_end: FrontEnd) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == ACCEPTED
    os.close(writer)
    assert saved_state(front_end) == LARGE
    while os.read(reader, 1 << 20):
        pass
    os.close(reader)


def test_result_is_that_of_one_transfer(front_end: FrontEnd) -> None:
    assert check_state(front_end) == 1
    saved_state(front_end)
    assert check_state(front_end) == 1


def test_front_end_that_leaves_ends_the_transfer(
    device: DeviceFixture, front_end: FrontEnd
) -> None:
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.LOAD, reader) == ACCEPTED
    os.close(reader)
    front_end.sock.close()
    front_end.settle()
    assert device.ends == 1
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"state")
    os.close(writer)
