# SPDX-License-Identifier: Apache-2.0
"""A daemon that serves a share like farwatchd, but reports and answers as a test orders.

Usage: scripted_daemon.py SOCKET SHARED_DIR TAG CONTROL CACHE [NUMBERS]. NUMBERS is a JSON object:
the "generation" of all inodes, the "max_background" of the INIT reply. CONTROL is a UNIX seqpacket
socket that takes one JSON object per message, {"do": WHAT, ...}, and answers each with one:

- watches: the masks by nodeid, as strings
- send: report the records whose bytes are in "payload", base64
- delay: let FUSE_FSNOTIFY take this many "seconds", "times" times
- fail: answer FUSE_FSNOTIFY with "errno", 0 for none, "times" times; a negative one is sent as it
  is, which makes the error of the reply positive
- fail_wait: answer FUSE_FSNOTIFY_WAIT with "errno"
- withhold: never answer requests of these "opcodes", from now on
- withheld: the opcodes of the requests that were not answered
- drop_watches: forget all watches
- log: the requests since the last call, as [opcode, nodeid, mask or None]
"""

import base64
import dataclasses
import errno
import json
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from farwatchd.event_loop import Loop
from farwatchd.fuse import init
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.reply import ErrorReply, Handler, Reply
from farwatchd.fuse.request import Request
from farwatchd.fuse.session import Session
from farwatchd.passthrough import attributes, share
from farwatchd.passthrough.options import Cache, ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.wire.fsnotify import Event, fsnotify_in, fsnotify_wait_in
from farwatchd.wire.fuse import Opcode


class GivenPayloads:
    """A notification source with the payloads that the test sends."""

    def __init__(self) -> None:
        self.payloads: deque[bytes] = deque()
        self.wakeup: Callable[[], None] = lambda: None

    def take(self, max_bytes: int) -> bytes | None:
        return self.payloads.popleft()[:max_bytes] if self.payloads else None

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        self.wakeup = callback


class ScriptedWatches:
    """Watches without host watches, with the delays and errors that the test orders."""

    supported = Event(0x1FFF) | Event.ON_CHILD | Event.RENAME

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self.delay = 0.0
        self.delays = 0
        self.errno = 0
        self.times = 0

    def report_own(self, report: bool) -> None:
        """Do nothing: only the test's records are reported."""

    def set_mask(self, nodeid: int, generation: int, fd: int, is_dir: bool, mask: Event) -> Event:
        if self.delays:
            self.delays -= 1
            time.sleep(self.delay)
        if self.times:
            self.times -= 1
            raise OSError(self.errno, "as the test says")
        if mask:
            self.masks[nodeid] = int(mask)
        else:
            self.masks.pop(nodeid, None)
        return mask

    def forget(self, nodeid: int) -> None:
        self.masks.pop(nodeid, None)

    def reset(self) -> None:
        self.masks.clear()


class ScriptedSession(Session):
    """A session that logs requests about watches, refuses WAIT requests and withholds replies."""

    def __init__(
        self, shared: Path, watches: ScriptedWatches, options: ShareOptions, source: GivenPayloads
    ) -> None:
        session_options = SessionOptions(others_only=True)
        super().__init__(PassthroughFs(shared, options), watches, session_options, source=source)
        self.log: list[tuple[str, int, int | None]] = []
        self.wait_errno = 0
        #: The opcodes that are not answered, and those of the requests that were not.
        self.silent: set[str] = set()
        self.withheld: list[str] = []
        for opcode in (Opcode.FSNOTIFY, Opcode.FORGET, Opcode.DESTROY, Opcode.INIT):
            self._log_requests(opcode)
        self._handlers[Opcode.FSNOTIFY_WAIT] = Handler(self._maybe_wait, fsnotify_wait_in.size)
        self._log_requests(Opcode.FSNOTIFY_WAIT)
        for opcode in (Opcode.READ, Opcode.WRITE):
            self.intercept(opcode, partial(self._maybe_withhold, opcode.name))

    def _log_requests(self, opcode: Opcode) -> None:
        handler = self._handlers[opcode]

        def logged(request: Request) -> Reply:
            mask = None
            if opcode is Opcode.FSNOTIFY:
                mask = fsnotify_in.unpack_from(request.args).mask
            self.log.append((opcode.name, request.nodeid, mask))
            try:
                return handler.handle(request)
            except OSError as error:
                if error.errno is not None and error.errno < 0:
                    return ErrorReply(error.errno)
                raise

        self._handlers[opcode] = dataclasses.replace(handler, handle=logged)
        if opcode in self._first_handlers:
            self._first_handlers[opcode] = self._handlers[opcode]

    def _maybe_withhold(
        self, name: str, handle: Callable[[Request], Reply]
    ) -> Callable[[Request], Reply]:
        def maybe(request: Request) -> Reply:
            if name not in self.silent:
                return handle(request)
            self.withheld.append(name)
            return DeferredReply(request.unique)

        return maybe

    def _maybe_wait(self, request: Request) -> Reply:
        if self.wait_errno:
            raise OSError(self.wait_errno, "as the test says")
        return self._wait(request)


def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.INFO)
    path, shared, tag, control_path, cache, *numbers = sys.argv[1:]
    for name, number in json.loads("".join(numbers) or "{}").items():
        if name == "max_background":
            init._MAX_BACKGROUND = number
        else:
            for module in (attributes, share):
                vars(module)["GENERATION"] = number
    loop, source, watches = Loop(), GivenPayloads(), ScriptedWatches()
    session = ScriptedSession(Path(shared), watches, ShareOptions(cache=Cache(cache)), source)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(control_path)
    control.listen()

    def obey(order: dict[str, Any]) -> object:
        if order["do"] == "watches":
            return {str(nodeid): mask for nodeid, mask in watches.masks.items()}
        if order["do"] == "send":
            source.payloads.append(base64.b64decode(order["payload"]))
            source.wakeup()
        elif order["do"] == "delay":
            watches.delay, watches.delays = order["seconds"], order["times"]
        elif order["do"] == "fail":
            watches.errno, watches.times = order["errno"], order["times"]
        elif order["do"] == "fail_wait":
            session.wait_errno = order["errno"]
        elif order["do"] == "withhold":
            session.silent = set(order["opcodes"])
        elif order["do"] == "withheld":
            return session.withheld
        elif order["do"] == "drop_watches":
            watches.masks.clear()
        elif order["do"] == "log":
            log, session.log = session.log, []
            return log
        else:
            return {"error": errno.EINVAL}
        return {}

    def accept() -> None:
        client, _ = control.accept()

        def serve() -> None:
            message = client.recv(1 << 20)
            if not message:
                loop.remove(client.fileno())
                client.close()
                return
            answer = json.dumps(obey(json.loads(message))).encode()
            # Answer after the records were sent to the guest.
            loop.call_soon(lambda: client.sendall(answer))

        loop.add(client.fileno(), serve)

    loop.add(control.fileno(), accept)
    device = Device(loop, session, DeviceConfig(tag), source)
    server = Server(loop, listen(Path(path)), device, loop.stop)
    logging.info("listening on %s", path)
    loop.run()
    server.close()


main()
