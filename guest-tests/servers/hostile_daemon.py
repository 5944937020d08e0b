# SPDX-License-Identifier: Apache-2.0
"""A daemon that serves a share like farwatchd, but sends the notifications that a test gives it.

Usage: hostile_daemon.py SOCKET SHARED_DIR TAG CONTROL. CONTROL is a UNIX seqpacket socket: the
message "?" is answered with the watches as JSON, {nodeid: mask}; any other message is the payload
of one FUSE_NOTIFY_FSNOTIFY, answered with "ok" once the guest has been given it.
"""

import json
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from farwatchd.event_loop import Loop
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire.fsnotify import Event


class GivenPayloads:
    """A notification source with the payloads that the test sends."""

    def __init__(self) -> None:
        self.payloads: deque[bytes] = deque()
        self.wakeup: Callable[[], None] = lambda: None

    def take(self, max_bytes: int) -> bytes | None:
        return self.payloads.popleft()[:max_bytes] if self.payloads else None

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        self.wakeup = callback


class AgreesToAll:
    """Watches without host watches."""

    supported = Event(0x1FFF) | Event.ON_CHILD | Event.RENAME

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}

    def report_own(self, report: bool) -> None:
        """Do nothing: only the test's records are reported."""

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        self.masks[nodeid] = int(mask)
        return mask

    def forget(self, nodeid: int) -> None:
        self.masks.pop(nodeid, None)

    def reset(self) -> None:
        self.masks.clear()


def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.INFO)
    path, shared, tag, control_path = sys.argv[1:]
    loop, source, watches = Loop(), GivenPayloads(), AgreesToAll()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(control_path)
    control.listen()

    def accept() -> None:
        client, _ = control.accept()

        def answer() -> None:
            client.send(b"ok")

        def serve() -> None:
            message = client.recv(1 << 20)
            if not message:
                loop.remove(client.fileno())
                client.close()
            elif message == b"?":
                client.send(json.dumps(watches.masks).encode())
            else:
                source.payloads.append(message)
                source.wakeup()
                loop.call_soon(answer)

        loop.add(client.fileno(), serve)

    loop.add(control.fileno(), accept)
    session = Session(PassthroughFs(Path(shared), ShareOptions()), watches, SessionOptions())
    device = Device(loop, session, DeviceConfig(tag), source)
    server = Server(loop, listen(Path(path)), device, loop.stop)
    logging.info("listening on %s", path)
    loop.run()
    server.close()


main()
