# SPDX-License-Identifier: Apache-2.0
"""Running out of descriptors, by the process or the guest, ends no connection and no daemon."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.acceptor import ACCEPT_PAUSE
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.messages import MAX_FDS
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire import fuse
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from farwatchd.wire.vhost_user import ProtocolFeature
from tests.support.connection_fixture import ConnectionFixture
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess, running
from tests.support.frontend import FrontEnd, FrontEndTimeout, region_fields
from tests.support.handlers import CountingHandler

LIMIT = 10.0


@contextlib.contextmanager
def no_descriptors(spare: int = 0) -> Iterator[None]:
    """Let the process open ``spare`` descriptors more, and none with 0."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.dup(0) for _ in range(200)]
    limit = opened[-1] + 1
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        while True:
            opened.append(os.dup(0))
    for fd in opened[-spare:] if spare else []:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in opened[: len(opened) - spare]:
            os.close(fd)


@pytest.fixture
def link() -> Iterator[ConnectionFixture]:
    link = ConnectionFixture()
    link.front_end.negotiate()
    yield link
    link.close()


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_KICK])
def test_message_finds_room_for_its_descriptor_when_none_is_free(
    link: ConnectionFixture, request_: Request
) -> None:
    front_end = link.front_end
    channel = front_end.requests()
    fd = channel.call if request_ is Request.SET_VRING_CALL else channel.kick
    for _ in range(3 * MAX_FDS):
        with no_descriptors():
            front_end.set(request_, wire.number.pack(value=2), [fd])
    front_end.forget(1)
    assert link.closed == 0


def test_memory_region_finds_room_when_no_descriptor_is_free(link: ConnectionFixture) -> None:
    more = os.memfd_create("more")
    os.ftruncate(more, 4096)
    fields = {"guest_addr": 1 << 40, "size": 4096, "user_addr": 1 << 41, "mmap_offset": 0}
    with no_descriptors():
        link.front_end.set(Request.ADD_MEM_REG, wire.single_region.pack(**fields), [more])
    os.close(more)
    link.front_end.forget(1)


def test_memory_table_finds_room_when_no_descriptor_is_free(link: ConnectionFixture) -> None:
    front_end = link.front_end
    regions = [region_fields(each) for each in front_end.ram.regions]
    fds = [front_end.ram.fd] * len(regions)
    more = os.memfd_create("more")
    os.ftruncate(more, 4096)
    for number in range(MAX_FDS - len(regions)):
        place = {"guest_addr": (1 << 40) + 4096 * number, "user_addr": (1 << 41) + 4096 * number}
        regions.append({**place, "size": 4096, "mmap_offset": 0})
        fds.append(more)
    table = wire.memory_table.pack(regions=len(regions))
    table += b"".join(wire.memory_region.pack(**each) for each in regions)
    for _ in range(3):
        with no_descriptors():
            front_end.set(Request.SET_MEM_TABLE, table, fds)
        # With any message the daemon gets its reserve back, which has become regions.
        front_end.ask_number(Request.GET_QUEUE_NUM)
    os.close(more)
    front_end.forget(1)
    assert link.closed == 0


@contextlib.contextmanager
def lowest_limit() -> Iterator[None]:
    """Let no descriptor be opened, not even one that was closed before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_message_without_its_descriptor_is_refused_and_the_connection_goes_on(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = link.front_end
    kick = wire.number.pack(value=2)
    with lowest_limit():
        assert front_end.try_set(Request.SET_VRING_KICK, kick, [front_end.requests().kick]) == 1
    assert "SET_VRING_KICK refused: no descriptor is free; raise --rlimit-nofile" in caplog.text
    front_end.forget(1)
    front_end.set(Request.SET_VRING_KICK, kick, [front_end.requests().kick])
    assert link.closed == 0


def test_call_descriptor_that_does_not_arrive_leaves_the_former_one(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = link.front_end
    # As QEMU, which asks for no acknowledgement of this message.
    front_end.protocol_features &= ~ProtocolFeature.REPLY_ACK
    other = os.eventfd(0, os.EFD_NONBLOCK)
    with lowest_limit():
        front_end.set(Request.SET_VRING_CALL, wire.number.pack(value=0), [other])
        front_end.settle()
    os.close(other)
    assert "SET_VRING_CALL ignored: no descriptor is free" in caplog.text
    # Waits for the interrupt.
    front_end.forget(1)
    assert link.closed == 0


def test_too_many_descriptors_are_not_called_too_few(
    link: ConnectionFixture, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = link.front_end
    front_end.send(Request.SET_MEM_TABLE, bytes(8), [front_end.ram.fd] * (MAX_FDS + 3))
    assert front_end.closed()
    assert f"more than {MAX_FDS} descriptors" in caplog.text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Loop, Server]]:
    loop = Loop()
    device = Device(loop, CountingHandler(), DeviceConfig("share"))
    server = Server(loop, listen(tmp_path / "socket"), device, lambda: None)
    yield loop, server
    server.close()
    loop.close()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.fspath(path))
    return sock


def test_accept_without_a_descriptor_pauses_and_resumes(
    server: tuple[Loop, Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop, _ = server
    with connected(tmp_path / "socket") as sock:
        with lowest_limit():
            assert loop.run_once(LIMIT)
            # Nothing spins meanwhile.
            assert not loop.run_once(0)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == [
            f"a front-end cannot be accepted, trying again every {ACCEPT_PAUSE:g} s:"
            f" {os.strerror(errno.EMFILE)}"
        ]
        front_end = FrontEnd(sock, loop=loop)
        front_end.negotiate()
        front_end.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    (tmp_path / "shared").mkdir()
    with running(tmp_path / "socket", tmp_path / "shared", "--rlimit-nofile=80") as process:
        yield process


def open_all(guest: MountedGuest) -> list[tuple[int, int]]:
    """Open files until the daemon has no descriptor left."""
    nodeid, fh = guest.create(ROOT, b"file")
    opened = [(nodeid, fh)]
    while True:
        error, reply = guest.front_end.request(
            Opcode.OPEN, nodeid, fuse.open_in.pack(flags=os.O_RDONLY), fuse.open_out.size
        )
        if error:
            assert error == errno.ENFILE
            return opened
        opened.append((nodeid, fuse.open_out.unpack_from(reply).fh))


def test_guest_that_opens_all_files_keeps_its_connection(daemon: DaemonProcess) -> None:
    guest = MountedGuest(daemon)
    opened = open_all(guest)
    channel = guest.front_end.requests()
    for _ in range(3):
        guest.front_end.set(Request.SET_VRING_CALL, wire.number.pack(value=2), [channel.call])
    with daemon.connect() as sock:
        second = FrontEnd(sock)
        second.send(Request.GET_FEATURES)
        with pytest.raises(FrontEndTimeout):
            second.receive(Request.GET_FEATURES, timeout=0.2)
        for nodeid, fh in opened:
            guest.release(nodeid, fh)
        assert guest.names(ROOT).keys() >= {b"file"}
        guest.leave()
        assert second.receive(Request.GET_FEATURES)
