# SPDX-License-Identifier: Apache-2.0
"""Migrates a guest between daemons, as a front-end does."""

from __future__ import annotations

import os
import select
import socket
import threading

from farwatchd.vhost_user.device_state import Direction
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.daemon_guest import MountedGuest
from tests.support.daemon_process import DaemonProcess
from tests.support.frontend import DEFAULT_TIMEOUT, FrontEnd

ACCEPTED = wire.VRING_NO_FD


def set_state_fd(front_end: FrontEnd, direction: int, fd: int, phase: int = 0) -> int:
    """Send SET_DEVICE_STATE_FD; return the reply: ``ACCEPTED``, or that and an error."""
    front_end.send(
        Request.SET_DEVICE_STATE_FD, wire.device_state.pack(direction=direction, phase=phase), [fd]
    )
    return int(wire.number.unpack_from(front_end.receive(Request.SET_DEVICE_STATE_FD)).value)


def check_state(front_end: FrontEnd) -> int:
    """Send CHECK_DEVICE_STATE; return the reply: 0 is good."""
    return front_end.ask_number(Request.CHECK_DEVICE_STATE)


def saved_state(front_end: FrontEnd) -> bytes:
    """Return the daemon's state; its rings are stopped."""
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.SAVE, writer) == ACCEPTED
    os.close(writer)
    parts = []
    while True:
        if front_end.loop is not None:
            front_end.settle()
        assert select.select([reader], [], [], DEFAULT_TIMEOUT)[0], "the state does not come"
        part = os.read(reader, 1 << 16)
        if not part:
            break
        parts.append(part)
    os.close(reader)
    assert check_state(front_end) == 0
    return b"".join(parts)


def load_state(front_end: FrontEnd, state: bytes) -> int:
    """Have the daemon load a state; return the reply to CHECK_DEVICE_STATE: 0 is good."""
    reader, writer = os.pipe()
    assert set_state_fd(front_end, Direction.LOAD, reader) == ACCEPTED
    os.close(reader)

    def send() -> None:
        # A daemon that has refused the state does not read the rest.
        try:
            with os.fdopen(writer, "wb") as stream:
                stream.write(state)
        except BrokenPipeError:
            return

    thread = threading.Thread(target=send)
    thread.start()
    if front_end.loop is not None:
        while thread.is_alive():
            front_end.settle()
    thread.join()
    return check_state(front_end)


class Migration:
    """A guest that has been stopped at its daemon. The connection to that stays until the end."""

    def __init__(self, guest: MountedGuest) -> None:
        self.front_end = guest.front_end
        for index in range(len(self.front_end.channels)):
            self.front_end.stop_ring(index)
        self.state = saved_state(self.front_end)

    def go_on(self) -> None:
        """Let the guest run at the daemon that it is connected with."""
        for index in range(len(self.front_end.channels)):
            self.front_end.start_ring(index, enable=False)
        for index in range(len(self.front_end.channels)):
            self.front_end.enable_ring(index, True)

    def arrive(self, daemon: DaemonProcess, state: bytes | None = None) -> int:
        """Load the state into another daemon; return the reply to CHECK_DEVICE_STATE.

        The guest belongs to that one if it is good.
        """
        source = self.front_end.sock
        self.front_end.sock = daemon.connect()
        self.front_end.negotiate_features()
        self.front_end.share_memory()
        refused = load_state(self.front_end, self.state if state is None else state)
        if refused:
            self.front_end.sock.close()
            self.front_end.sock = source
            return refused
        self.go_on()
        source.close()
        return 0


def migrate(guest: MountedGuest, daemon: DaemonProcess) -> None:
    """Migrate a guest to another daemon."""
    assert Migration(guest).arrive(daemon) == 0


def other_end() -> tuple[int, socket.socket]:
    """Return the descriptor of a socket for a state, and its other end."""
    ours, theirs = socket.socketpair()
    return theirs.detach(), ours
