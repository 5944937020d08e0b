# SPDX-License-Identifier: Apache-2.0
"""A connection of the daemon in a loop that the test runs, with a front-end at its other end."""

from __future__ import annotations

import socket

from farwatchd.event_loop import Loop
from farwatchd.vhost_user.connection import Connection
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from tests.support.frontend import FrontEnd
from tests.support.handlers import CountingHandler


class ConnectionFixture:
    """The two ends of a connection. ``closed`` counts the calls of its ``on_close``."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handler = CountingHandler()
        device = Device(self.loop, self.handler, DeviceConfig("share"))
        ours, theirs = socket.socketpair()
        self.closed = 0
        self.connection = Connection(self.loop, theirs, device, self._on_close)
        self.front_end = FrontEnd(ours, loop=self.loop)

    def _on_close(self) -> None:
        self.closed += 1

    def close(self) -> None:
        """Close both ends and the loop."""
        self.connection.close()
        self.front_end.close()
        self.loop.close()
