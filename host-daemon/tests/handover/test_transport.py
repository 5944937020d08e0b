# SPDX-License-Identifier: Apache-2.0
"""Connection, memory and rings of a front-end go on in another process, or are refused there."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.backend import Backend
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue.dirty_log import PAGE_SIZE
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.state import (
    NONE,
    Descriptors,
    ReceivedDescriptors,
    ServerState,
    State,
    StateError,
)
from farwatchd.wire.state_codec import decode, encode
from farwatchd.wire.vhost_user import VHOST_F_LOG_ALL, ProtocolFeature
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.device_fixture import ECHO, EchoHandler, ListSource
from tests.support.frontend import Channel, FrontEnd, FrontEndTimeout
from tests.support.passthrough_share import open_descriptors
from tests.support.shared_log import Log, log_size, set_logging, share_log


class Exported(NamedTuple):
    """A state, and the descriptors beside it, which stay their owner's."""

    state: State
    fds: list[int]

    def received(self) -> tuple[State, ReceivedDescriptors]:
        """Return both as another process gets them."""
        return decode(encode(self.state)), ReceivedDescriptors([os.dup(fd) for fd in self.fds])

    def replace(self, table: str, index: int, **values: int) -> None:
        """Change one record."""
        records = getattr(self.state, table)
        records[index] = records[index]._replace(**values)

    def add_fd(self, fd: int) -> int:
        """Return the index of one more descriptor."""
        self.fds.append(fd)
        return len(self.fds) - 1


class Transport:
    """A server with its device, in a loop of its own, as one process has them."""

    def __init__(self, listener: socket.socket) -> None:
        self.loop = Loop()
        self.handler = EchoHandler()
        self.source = ListSource()
        self.device = Device(self.loop, self.handler, DeviceConfig("share"), self.source)
        self.ends = 0
        self.changes: list[bool] = []
        self.server = Server(
            self.loop, listener, self.device, self._ended, on_change=self.changes.append
        )

    def _ended(self) -> None:
        self.ends += 1

    def export(self) -> Exported:
        """Pause, and return the state."""
        self.server.pause()
        state, fds = State(), Descriptors()
        listener, waiting = self.server.export_state(state, fds)
        state.server.append(ServerState(listener, NONE, NONE, waiting, NONE))
        state.pending += self.device.export_state()
        return Exported(state, fds.fds)

    def close(self) -> None:
        """End the process's part."""
        self.server.close()
        self.loop.close()


class ServingProcesses:
    """The processes that serve one socket one after the other, and the front-ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.transports = [Transport(listen(path))]
        self._front_ends: list[FrontEnd] = []

    @property
    def now(self) -> Transport:
        """The one that serves."""
        return self.transports[-1]

    def connect(self) -> FrontEnd:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(self._path))
        self._front_ends.append(FrontEnd(sock, loop=self.now.loop))
        return self._front_ends[-1]

    def hand_over(self, exported: Exported | None = None) -> None:
        """Let another process go on."""
        state, fds = (exported or self.now.export()).received()
        successor = Transport(socket.socket(fileno=fds.take(state.server[0].listener)))
        successor.device.restore_state(state.pending)
        successor.server.restore_state(state, fds)
        fds.close()
        successor.server.resume()
        self.transports.append(successor)
        for front_end in self._front_ends:
            front_end.loop = successor.loop

    def close(self) -> None:
        for front_end in self._front_ends:
            front_end.close()
        for former in self.transports[:-1]:
            # A process that was replaced ends without a system call.
            former.server.resume()
        for transport in self.transports:
            transport.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ServingProcesses]:
    processes = ServingProcesses(tmp_path / "socket")
    yield processes
    processes.close()


@pytest.fixture
def front_end(processes: ServingProcesses) -> FrontEnd:
    front_end = processes.connect()
    front_end.negotiate()
    front_end.forget(1)
    return front_end


def echo(front_end: FrontEnd, text: bytes) -> bytes:
    """Return the daemon's reply, as it should be."""
    error, reply = front_end.request(ECHO, 1, text[::-1], len(text))
    assert error == 0
    return reply


def test_rings_go_on_in_the_successor(processes: ServingProcesses, front_end: FrontEnd) -> None:
    front_end.post_notification_buffers(2)
    echo(front_end, b"before")
    processes.hand_over()
    assert echo(front_end, b"after") == b"after"
    processes.now.source.put(b"event")
    assert front_end.notifications() == [b"event"]
    assert processes.transports[0].handler.served == 2
    assert processes.now.handler.served == 1
    # The indices are those of the guest's rings, too.
    for index in range(len(front_end.channels)):
        front_end.stop_ring(index)
        front_end.start_ring(index)
    assert echo(front_end, b"again") == b"again"


def test_what_was_negotiated_holds_in_the_successor(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    processes.hand_over()
    assert ProtocolFeature.REPLY_ACK in front_end.protocol_features
    assert front_end.try_set(Request.SET_VRING_KICK, wire.number.pack(value=wire.VRING_NO_FD)) == 1
    # A change of the features of running rings is refused, as before.
    front_end.send(Request.SET_FEATURES, wire.number.pack(value=1 << 32))
    front_end.settle()
    assert not processes.now.server.connected


def test_chain_that_came_while_nobody_served_is_served(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    exported = processes.now.export()
    front_end.loop = None
    channel = front_end.requests()
    with pytest.raises(FrontEndTimeout):
        front_end.request(ECHO, 1, b"text", 4, timeout=0.05)
    processes.hand_over(exported)
    front_end.wait_used(channel)
    assert processes.now.handler.served == 1


@pytest.mark.parametrize("index", [0, 2])
def test_stopped_ring_stays_stopped(
    processes: ServingProcesses, front_end: FrontEnd, index: int
) -> None:
    base = front_end.stop_ring(index)
    processes.hand_over()
    assert front_end.stop_ring(index) == base
    front_end.start_ring(index)
    front_end.forget(2)
    echo(front_end, b"text")


def test_disabled_ring_stays_disabled(processes: ServingProcesses, front_end: FrontEnd) -> None:
    front_end.enable_ring(2, False)
    processes.hand_over()
    with pytest.raises(FrontEndTimeout):
        front_end.request(ECHO, 1, b"text", 4, timeout=0.05)
    front_end.enable_ring(2, True)
    front_end.wait_used(front_end.requests())


def test_writes_are_logged_in_the_successor(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    log = Log(log_size(front_end.ram))
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    front_end.set(Request.SET_LOG_FD, fds=[event])
    assert share_log(front_end, log) == 0
    assert set_logging(front_end, True) == 0
    processes.hand_over()
    # Of what a process has written that was killed nobody knows.
    pages = {
        addr
        for region in front_end.ram.regions
        for addr in range(region.guest_addr, region.guest_addr + region.size, PAGE_SIZE)
    }
    assert log.take() == pages
    os.eventfd_read(event)
    echo(front_end, b"text")
    used = front_end.requests().queue.used // PAGE_SIZE * PAGE_SIZE
    assert used in log.take()
    assert os.eventfd_read(event)
    assert set_logging(front_end, False) == 0
    log.take()
    echo(front_end, b"text")
    assert not log.take()
    os.close(event)
    log.close()


def break_ring(front_end: FrontEnd, channel: Channel) -> None:
    """Announce more chains than the ring has."""
    front_end.ram.write(channel.queue.available + 2, (0x7FFF).to_bytes(2, "little"))
    os.eventfd_write(channel.kick, 1)
    front_end.settle()


def test_broken_ring_stays_broken_until_it_is_set_up_again(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    errors = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    front_end.set(Request.SET_VRING_ERR, wire.number.pack(value=2), [errors])
    break_ring(front_end, front_end.requests())
    assert os.eventfd_read(errors) == 1
    processes.hand_over()
    os.eventfd_write(front_end.requests().kick, 1)
    front_end.settle()
    assert processes.now.handler.served == 0
    front_end.stop_ring(2)
    front_end.reset_ring(2)
    front_end.start_ring(2)
    echo(front_end, b"text")
    # The descriptor that reports it went along.
    break_ring(front_end, front_end.requests())
    assert os.eventfd_read(errors) == 1
    os.close(errors)


def test_reboot_after_a_handover_is_noticed(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    processes.hand_over()
    assert processes.now.handler.resets == 0
    front_end.reboot()
    assert processes.now.handler.resets >= 1
    echo(front_end, b"text")


def test_front_end_that_waits_is_served_by_the_successor(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    second = processes.connect()
    second.settle()
    processes.hand_over()
    assert processes.now.changes == []
    front_end.sock.close()
    second.negotiate()
    echo(second, b"text")
    assert processes.now.changes == [False, True]


def test_successor_without_a_front_end_accepts_the_next_one(processes: ServingProcesses) -> None:
    processes.hand_over()
    assert not processes.now.server.connected
    front_end = processes.connect()
    front_end.negotiate()
    echo(front_end, b"text")


def test_predecessor_goes_on_when_nothing_replaces_it(
    processes: ServingProcesses, front_end: FrontEnd
) -> None:
    processes.now.export()
    front_end.send(Request.GET_FEATURES)
    with pytest.raises(FrontEndTimeout):
        front_end.receive(Request.GET_FEATURES, timeout=0.05)
    processes.now.server.resume()
    front_end.receive(Request.GET_FEATURES)
    echo(front_end, b"text")


def test_message_in_part_is_noticed(processes: ServingProcesses, front_end: FrontEnd) -> None:
    message = wire.header.pack_values(Request.GET_FEATURES, wire.VERSION, 0)
    assert not processes.now.server.within_message
    front_end.sock.send(message[:5])
    front_end.settle()
    assert processes.now.server.within_message
    front_end.sock.send(message[5:])
    front_end.receive(Request.GET_FEATURES)
    assert not processes.now.server.within_message


def test_ring_whose_kick_descriptor_cannot_be_waited_for_stops_alone(
    processes: ServingProcesses,
    front_end: FrontEnd,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exported = processes.now.export()
    with (tmp_path / "file").open("w") as file:
        exported.replace("vrings", 0, kick=exported.add_fd(file.fileno()))
        processes.hand_over(exported)
    assert "queue 0: its kick descriptor cannot be waited for" in caplog.text
    echo(front_end, b"text")
    front_end.stop_ring(0)
    front_end.start_ring(0)
    front_end.forget(2)


# States that no daemon makes


def smaller_device() -> Device:
    return Device(Loop(), EchoHandler(), DeviceConfig(None, notification=False))


def more_queues() -> Device:
    return Device(Loop(), EchoHandler(), DeviceConfig("share", 2))


def same_device() -> Device:
    return Device(Loop(), EchoHandler(), DeviceConfig("share"))


def event(exported: Exported) -> int:
    """Return the index of a descriptor that cannot be mapped."""
    return exported.state.vrings[0].kick


def repeat_region(exported: Exported) -> None:
    """Add the first region again."""
    region = exported.state.regions[0]
    exported.state.regions.append(region._replace(fd=exported.add_fd(exported.fds[region.fd])))


def log_without_file(exported: Exported) -> None:
    """Have writes be logged nowhere."""
    features = exported.state.connection[0].features
    exported.replace("connection", 0, features=features | VHOST_F_LOG_ALL)


def small_log(exported: Exported) -> None:
    """Have a log that is not in its file."""
    exported.replace("connection", 0, log=event(exported), log_size=1 << 20)


CONTRADICTIONS: list[tuple[str, Callable[[], Device], Callable[[Exported], object]]] = [
    ("features of the device that are not offered", smaller_device, lambda e: None),
    (
        "protocol features that are not offered",
        same_device,
        lambda e: e.replace("connection", 0, protocol_features=1 << 20),
    ),
    ("the log of dirty pages is too small", same_device, lambda e: log_without_file(e)),
    ("its file is shorter", same_device, lambda e: small_log(e)),
    ("cannot be mapped", same_device, lambda e: e.replace("regions", 0, fd=event(e))),
    ("cannot be mapped", same_device, lambda e: e.replace("regions", 0, offset=NONE)),
    ("cannot be mapped", same_device, lambda e: e.replace("regions", 0, length=NONE)),
    ("empty", same_device, lambda e: e.replace("regions", 0, length=0)),
    (
        "impossible memory region",
        same_device,
        lambda e: e.replace("regions", 0, guest_addr=NONE),
    ),
    ("overlap", same_device, repeat_region),
    ("did not come with it", same_device, lambda e: e.replace("regions", 0, fd=1 << 40)),
    ("a descriptor is missing", same_device, lambda e: e.replace("regions", 0, fd=NONE)),
    ("it has 3 queues of 4", more_queues, lambda e: None),
    ("it has 2 queues of 3", same_device, lambda e: e.state.vrings.pop()),
    ("it has 3 queues of 3", same_device, lambda e: e.replace("vrings", 1, queue=0)),
    ("more than 16 bits", same_device, lambda e: e.replace("vrings", 0, base=1 << 16)),
    ("more than 16 bits", same_device, lambda e: e.replace("vrings", 0, next_used=1 << 16)),
    ("runs without all", same_device, lambda e: e.replace("vrings", 0, kick=NONE)),
    ("runs without all", same_device, lambda e: e.replace("vrings", 0, has_address=0)),
    ("runs without all", same_device, lambda e: e.replace("vrings", 0, broken=1)),
    ("runs without all", same_device, lambda e: e.replace("vrings", 0, enabled=0)),
    (
        "did not come with it",
        same_device,
        lambda e: e.replace("vrings", 1, kick=e.state.vrings[0].kick),
    ),
]


@pytest.mark.parametrize(
    ("reason", "device", "change"),
    CONTRADICTIONS,
    ids=[f"{number}-{reason}" for number, (reason, _, _) in enumerate(CONTRADICTIONS)],
)
def test_state_that_cannot_be_is_refused_with_one_line(
    processes: ServingProcesses,
    front_end: FrontEnd,
    reason: str,
    device: Callable[[], Device],
    change: Callable[[Exported], object],
) -> None:
    exported = processes.now.export()
    change(exported)
    model = device()
    gc.collect()
    before = open_descriptors()
    backend = Backend(model)
    state, fds = exported.received()
    with pytest.raises(StateError, match=reason) as caught:
        backend.restore_state(state, fds)
    assert "\n" not in str(caught.value)
    fds.close()
    backend.close()
    del caught
    gc.collect()
    assert open_descriptors() <= before, "descriptors have leaked"
    # The predecessor serves on.
    processes.now.server.resume()
    echo(front_end, b"text")


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 3}, {"size": 1 << 16}, {"used": 1 << 40}, {"descriptors": 8}],
    ids=str,
)
def test_ring_that_is_not_in_the_memory_stops_alone(
    processes: ServingProcesses,
    front_end: FrontEnd,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, int],
) -> None:
    exported = processes.now.export()
    exported.replace("vrings", 0, **change)
    processes.hand_over(exported)
    assert caplog.text.count("queue 0 stopped: ") == 1
    echo(front_end, b"text")
