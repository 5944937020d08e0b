# SPDX-License-Identifier: Apache-2.0
"""Listening: stale and living sockets, inherited descriptors, one front-end after the other."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.listen import ListenError, inherit, listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.frontend import FrontEnd, FrontEndTimeout
from tests.support.handlers import CountingHandler


class LoopedServer:
    """A server in a loop that is turned by hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handler = CountingHandler()
        self.device = Device(self.loop, self.handler, DeviceConfig("share"))
        self.ends = 0
        self.server: Server | None = None

    def serve(self, sock: socket.socket, once: bool = False) -> None:
        self.server = Server(self.loop, sock, self.device, self._ended, once)

    def _ended(self) -> None:
        self.ends += 1


@pytest.fixture
def daemon() -> Iterator[LoopedServer]:
    daemon = LoopedServer()
    yield daemon
    if daemon.server is not None:
        daemon.server.close()
    daemon.loop.close()


def _connect(path: Path, loop: Loop | None) -> FrontEnd:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.fspath(path))
    return FrontEnd(sock, loop=loop)


def test_front_ends_are_served_one_after_the_other(daemon: LoopedServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    daemon.serve(listen(path))
    for number in range(3):
        front_end = _connect(path, daemon.loop)
        front_end.negotiate()
        front_end.forget(1)
        front_end.close()
        front_end.settle()
        assert daemon.handler.resets == number + 1
    assert daemon.handler.served == 3
    assert daemon.ends == 0


def test_second_front_end_is_served_after_the_first_has_left(
    daemon: LoopedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "socket"
    daemon.serve(listen(path))
    first, second = _connect(path, daemon.loop), _connect(path, daemon.loop)
    first.negotiate()
    second.send(Request.GET_FEATURES)
    with pytest.raises(FrontEndTimeout):
        second.receive(Request.GET_FEATURES, timeout=0.05)
    assert caplog.text.count("waits until the present one leaves") == 1
    first.forget(1)
    first.close()
    assert second.receive(Request.GET_FEATURES)
    second.negotiate()
    second.forget(1)
    second.close()
    second.settle()
    third = _connect(path, daemon.loop)
    third.negotiate()
    third.close()


def test_once_ends_with_the_first_front_end(daemon: LoopedServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    daemon.serve(listen(path), once=True)
    front_end = _connect(path, daemon.loop)
    front_end.negotiate()
    assert daemon.ends == 0
    front_end.close()
    front_end.settle()
    assert daemon.ends == 1
    with pytest.raises(ConnectionRefusedError):
        _connect(path, None)


def test_closing_the_server_resets_the_device_and_is_no_end(
    daemon: LoopedServer, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    daemon.serve(listen(path))
    front_end = _connect(path, daemon.loop)
    front_end.negotiate()
    waiting = _connect(path, daemon.loop)
    front_end.settle()
    assert daemon.server is not None
    daemon.server.close()
    assert front_end.closed()
    assert waiting.closed()
    assert (daemon.handler.resets, daemon.ends) == (1, 0)
    front_end.close()
    waiting.close()


def test_inherited_sockets_may_be_connected_or_listening(
    daemon: LoopedServer, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    daemon.serve(inherit(theirs.detach()))
    front_end = FrontEnd(ours, loop=daemon.loop)
    front_end.negotiate()
    front_end.close()
    front_end.settle()
    assert daemon.ends == 1
    daemon.serve(inherit(listen(tmp_path / "socket").detach()))
    front_end = _connect(tmp_path / "socket", daemon.loop)
    front_end.negotiate()
    front_end.close()


def test_inherited_descriptor_must_be_a_unix_stream_socket() -> None:
    with pytest.raises(ListenError, match="not an open socket"):
        inherit(12345)
    reader, writer = os.pipe()
    with pytest.raises(ListenError, match="not an open socket"):
        inherit(reader)
    os.close(reader)
    os.close(writer)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        pytest.raises(ListenError, match="not a UNIX stream socket"),
    ):
        inherit(other.fileno())


def test_a_dead_daemon_s_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listen(path).close()
    assert path.is_socket()
    with listen(path) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.fspath(path))
        assert listener.accept()[0].fileno() >= 0


def test_probing_the_socket_of_a_running_daemon_is_unnoticed(
    daemon: LoopedServer, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    daemon.serve(listen(path), once=True)
    with pytest.raises(ListenError, match="another daemon listens"):
        listen(path)
    assert not daemon.loop.run_once(0)
    assert daemon.ends == 0


def test_only_sockets_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 200, "longer than 107 bytes"), ("no/such/directory", "No such file or directory")],
)
def test_impossible_paths_are_explained(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ListenError, match=reason) as error:
        listen(tmp_path / name)
    assert "\n" not in str(error.value)


def test_the_socket_has_the_permissions_asked_for(tmp_path: Path) -> None:
    for mode in (0o600, 0o660):
        path = tmp_path / f"{mode:o}"
        listen(path, mode).close()
        assert path.stat().st_mode & 0o777 == mode


def test_a_daemon_in_a_thread_serves_a_blocking_front_end(tmp_path: Path) -> None:
    daemon = LoopedServer()
    daemon.serve(listen(tmp_path / "socket"))
    thread = threading.Thread(target=daemon.loop.run)
    thread.start()
    try:
        front_end = _connect(tmp_path / "socket", None)
        front_end.negotiate()
        for number in range(100):
            front_end.forget(number)
        front_end.close()
    finally:
        daemon.loop.stop()
        thread.join(10)
    assert daemon.handler.served == 100
    assert daemon.server is not None
    daemon.server.close()
    daemon.loop.close()
