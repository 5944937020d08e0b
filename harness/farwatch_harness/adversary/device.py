# SPDX-License-Identifier: Apache-2.0
"""A scripted vhost-user device: serves the file system in memory, with the lies of a script.

It runs in its own thread. Other threads use `call`, which runs a function in that thread.
"""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from farwatchd.event_loop import Loop
from farwatchd.iovec import gather, scatter
from farwatchd.vhost_user.device_state import StateTransfer
from farwatchd.vhost_user.listen import listen
from farwatchd.vhost_user.server import Server
from farwatchd.vhost_user.vring import KickState, RingMaker, Vring
from farwatchd.virtqueue import Chain, SplitRing, VirtqueueError
from farwatchd.watch.event_record import WATCHES_LOST
from farwatchd.wire import fsnotify as wire
from farwatchd.wire.fuse import Opcode, in_header, out_header
from farwatchd.wire.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from farwatchd.wire.virtio import VirtioFeature
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE, VirtioFsFeature, fs_config

from farwatch_harness.adversary import records
from farwatch_harness.adversary.filesystem import Known, Tree
from farwatch_harness.adversary.script import Lie, Lies, Script, init_flags
from farwatch_harness.util.errors import HarnessError

log = logging.getLogger(__name__)

CALL_LIMIT = 20.0
#: The least room for the reply of a WAIT request, in bytes (docs/protocol.md).
WAIT_ROOM = 592
#: The most payloads that wait for buffers; further ones are dropped.
MOST_WAITING = 5000
T = TypeVar("T")


class Held(NamedTuple):
    """A request without a reply so far."""

    vring: Vring
    head: int
    chain: Chain
    unique: int


class Withheld(NamedTuple):
    """A request whose reply is sent when the server is settled."""

    held: Held
    error: int
    payload: bytes | None


@dataclass
class Counts:
    """The messages on the rings."""

    requests: int = 0
    fsnotify: int = 0
    waits: int = 0
    notifications: int = 0
    sent_records: dict[str, int] = field(default_factory=dict)


class HostileDevice:
    """The device. Only `call`, `start` and `stop` may be used from other threads."""

    def __init__(
        self, tree: Tree, tag: str, notification_queue: bool, request_queues: int = 1
    ) -> None:
        self.tree = tree
        self.tag = tag
        self.notification_queue = notification_queue
        self.request_queues = request_queues
        self.make_ring: RingMaker = SplitRing
        self.loop = Loop()
        self.server: Server | None = None
        #: It does not migrate.
        self.state_transfer: StateTransfer | None = None
        self.random = Random(0)
        self.lies = Lies()
        self.running: dict[int, tuple[Vring, int]] = {}
        self.payloads: deque[bytes] = deque()
        self.waiting: deque[Held] = deque()
        self.held: list[Withheld] = []
        self.ended_waits = False
        self.frozen = False
        self.epoch = 0
        self.errors: list[str] = []
        self.counts = Counts()
        self.thread = threading.Thread(target=self.loop.run, name="hostile device", daemon=True)

    # For other threads.

    def start(self, socket_path: Path) -> None:
        """Listen, and serve until `stop`."""
        sock = listen(socket_path)
        self.server = Server(self.loop, sock, self, self.loop.stop)
        self.thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run the function in the device's thread; return its result.

        HarnessError: it took too long.
        """
        done = threading.Event()
        result: list[T] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                result.append(function())
            except BaseException as error:
                raised.append(error)
            done.set()

        self.loop.call_from_thread(run)
        if not done.wait(CALL_LIMIT):
            raise HarnessError(f"the device's thread did not answer in {CALL_LIMIT:.0f} s")
        if raised:
            raise raised[0]
        return result[0]

    def stop(self) -> None:
        """End the connection and the thread."""
        self.call(self.kill)
        self.loop.stop()
        self.thread.join(CALL_LIMIT)

    # The interface that vhost_user.backend uses.

    def prepare(self, script: Script) -> None:
        """Begin a script with the initial tree."""
        self.random.seed(script.seed)
        self.lies = Lies()
        self.payloads.clear()
        tree = self.tree
        tree.init_flags = init_flags(script.mode)
        tree.entry_valid = script.entry_valid
        tree.max_background = script.max_background
        tree.reuse = False
        tree.violations.clear()
        tree.history.clear()
        tree.build()

    def begin(self, lies: Lies, timeline: list[list[Any]]) -> None:
        """Begin a round with these lies.

        Perform each action at its time, in milliseconds from now.
        """
        self.lies = lies
        for at, *action in timeline:
            self.loop.call_later(at / 1000, partial(self.act, action))

    @property
    def features(self) -> int:
        """The virtio feature bits."""
        features = int(
            VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX
        )
        features |= VHOST_USER_F_PROTOCOL_FEATURES
        return features | VirtioFsFeature.NOTIFICATION if self.notification_queue else features

    @property
    def queue_count(self) -> int:
        """The number of queues."""
        return 2 + self.request_queues

    @property
    def config_space(self) -> bytes:
        """The device's configuration space."""
        size = NOTIFY_BUF_SIZE if self.notification_queue else 0
        return fs_config.pack(
            tag=self.tag.encode(), num_request_queues=self.request_queues, notify_buf_size=size
        )

    def ring_started(self, vring: Vring, features: int) -> None:
        """Serve a ring from now on."""
        assert vring.kick_fd is not None
        if vring.kick_is_eventfd:
            self.loop.add_eventfd(vring.kick_fd, partial(self.serve, vring.index))
        else:
            self.loop.add(vring.kick_fd, partial(self.kicked, vring))
        self.running[vring.index] = vring, features
        self.loop.call_soon(partial(self.serve, vring.index))

    def detach_memory(self) -> None:
        """Do nothing: no memory of requests in flight is kept."""

    def ring_stopped(self, vring: Vring) -> None:
        """Stop serving a ring; reset the device if it was the last one."""
        if self.running.pop(vring.index, None) is None:
            return
        if vring.kick_fd is not None:
            self.loop.remove(vring.kick_fd)
        self.held = [each for each in self.held if each.held.vring is not vring]
        self.waiting = deque(held for held in self.waiting if held.vring is not vring)
        if not self.running:
            # The device was reset: its driver has left it, with or without DESTROY.
            self.reset()

    def reset(self) -> None:
        """Forget the session."""
        self.tree.forget_session()
        self.epoch += 1
        self.payloads.clear()
        self.ended_waits = False

    # Rings.

    def kicked(self, vring: Vring) -> None:
        """Serve the ring if it was kicked."""
        if vring.read_kick() is KickState.KICKED:
            self.serve(vring.index)

    def serve(self, index: int) -> None:
        """Serve a ring, unless the device is frozen."""
        if self.frozen or index not in self.running:
            return
        vring, features = self.running[index]
        if vring.ring is None:
            return
        try:
            if index == 1 and features & VirtioFsFeature.NOTIFICATION:
                self.serve_notifications(vring)
            else:
                self.serve_requests(vring)
        except VirtqueueError as error:
            self.errors.append(f"queue {index}: {error}")
            self.ring_stopped(vring)
            vring.fail()

    def serve_all(self) -> None:
        """Serve all rings."""
        for index in list(self.running):
            self.serve(index)

    def serve_requests(self, vring: Vring) -> None:
        """Serve all available requests of a ring."""
        ring = vring.ring
        assert ring is not None
        while True:
            taken = ring.pop()
            if taken is None:
                vring.interrupt_if_needed()
                if not ring.enable_notification():
                    return
                continue
            head, chain = taken
            self.take_request(vring, head, chain)

    def take_request(self, vring: Vring, head: int, chain: Chain) -> None:
        """Handle one request, as the lies say."""
        header = in_header.unpack_from(gather(chain.readable, 0, in_header.size))
        args = gather(chain.readable, in_header.size, chain.readable_size - in_header.size)
        held = Held(vring, head, chain, header.unique)
        self.counts.requests += 1
        if header.opcode == Opcode.INIT:
            self.ended_waits = False
        if header.opcode == Opcode.FSNOTIFY_WAIT:
            self.take_wait(held, args)
            return
        lie = self.choose(self.lies_about(header.opcode))
        if header.opcode in (Opcode.INIT, Opcode.DESTROY, Opcode.FORGET, Opcode.BATCH_FORGET):
            lie = None
        if header.opcode == Opcode.FSNOTIFY:
            self.counts.fsnotify += 1
            lie = lie or Lie("true", 1.0)
            self.answer_fsnotify(held, header.nodeid, args, lie)
            return
        if header.opcode == Opcode.DESTROY:
            # DESTROY also ends WAIT requests.
            self.ended_waits = True
            self.release_waits()
        error, payload = self.answer(header.opcode, header.nodeid, args)
        if lie is not None and lie.what == "delay":
            self.later(lie.number, partial(self.reply, held, error, payload))
        elif lie is not None and lie.what in ("hold", "never"):
            self.withhold(lie, Withheld(held, error, payload))
        elif (
            lie is not None
            and lie.what == "error"
            and header.opcode in (Opcode.GETATTR, Opcode.OPEN)
        ):
            self.reply(held, -lie.number, b"")
        else:
            self.reply(held, error, payload)

    def lies_about(self, opcode: int) -> tuple[Lie, ...]:
        """Return the lies about requests of this opcode."""
        if opcode == Opcode.FSNOTIFY:
            return self.lies.fsnotify
        data = self.lies.data if opcode in (Opcode.READ, Opcode.WRITE) else ()
        return (*data, *self.lies.rest)

    def withhold(self, lie: Lie, withheld: Withheld) -> None:
        """Send no reply now, and with the lie "never" not later either."""
        if lie.what == "hold":
            self.held.append(withheld)

    def answer(self, opcode: int, nodeid: int, args: bytes) -> tuple[int, bytes | None]:
        """Return error and payload of the file system's reply."""
        try:
            return 0, self.tree.handle(opcode, nodeid, args)
        except OSError as error:
            return -(error.errno or errno.EIO), b""

    def answer_fsnotify(self, held: Held, nodeid: int, args: bytes, lie: Lie) -> None:
        """Reply to a FSNOTIFY request as the lie says.

        The belief changes only with a reply that the client can rely on.
        """
        self.tree.note(nodeid, f"FSNOTIFY {wire.fsnotify_in.unpack_from(args)}: {lie}")
        if lie.what in ("error", "short"):
            self.tree.handle(
                Opcode.FSNOTIFY, nodeid, args
            ) if nodeid not in self.tree.nodes else None
            self.tree.doubt(nodeid)
            self.reply(held, -lie.number if lie.what == "error" else 0, b"")
            return
        error, payload = self.answer(Opcode.FSNOTIFY, nodeid, args)
        if lie.what == "partial" and payload:
            asked = wire.fsnotify_in.unpack_from(args)
            payload = wire.fsnotify_out.pack(mask=asked.mask & self.random.getrandbits(14))
        if lie.what in ("hold", "never"):
            self.withhold(lie, Withheld(held, error, payload))
            return
        if lie.what == "delay":
            self.later(lie.number, partial(self.reply, held, error, payload))
            return
        self.reply(held, error, payload)

    def take_wait(self, held: Held, args: bytes) -> None:
        """Handle a WAIT request."""
        self.counts.waits += 1
        if not self.tree.initialized:
            self.tree.violate("FSNOTIFY_WAIT while there is no session")
        asked = wire.fsnotify_wait_in.unpack_from(args)
        if asked.flags or asked.reserved or asked.size < WAIT_ROOM:
            self.tree.violate(f"FSNOTIFY_WAIT with {asked}")
        lie = self.choose(self.lies.wait)
        if lie is not None and lie.what == "error":
            self.tree.ended = True
            self.reply(held, -lie.number, b"")
        elif self.ended_waits:
            self.reply(held, 0, b"")
        else:
            self.waiting.append(held)
            self.send_waiting()

    def release_waits(self) -> None:
        """Reply to all WAIT requests, without events."""
        while self.waiting:
            self.reply(self.waiting.popleft(), 0, b"")

    def choose(self, lies: tuple[Lie, ...]) -> Lie | None:
        """Return a random one of the lies, or None."""
        draw = self.random.random()
        for lie in lies:
            draw -= lie.probability
            if draw < 0:
                return lie
        return None

    def later(self, milliseconds: int, callback: Callable[[], None]) -> None:
        """Call the function after this many milliseconds, unless the device was reset."""
        epoch = self.epoch

        def call() -> None:
            if epoch == self.epoch:
                callback()

        self.loop.call_later(milliseconds / 1000, call)

    def reply(self, held: Held, error: int, payload: bytes | None) -> None:
        """Reply to a request, unless its ring has stopped.

        payload: None completes the chain with no bytes.
        """
        ring = held.vring.ring
        if ring is None:
            return
        try:
            data = b""
            if payload is not None:
                data = (
                    out_header.pack_values(out_header.size + len(payload), error, held.unique)
                    + payload
                )
                data = data[: held.chain.writable_size]
                scatter(held.chain.writable, 0, data)
            ring.add_used(held.head, len(data))
            held.vring.interrupt_if_needed()
        except VirtqueueError as broken:
            self.errors.append(str(broken))

    # Notifications.

    def notify(self, payload: bytes) -> None:
        """Send a payload as soon as there is a buffer or a WAIT request."""
        if payload and len(self.payloads) < MOST_WAITING:
            self.payloads.append(payload)
            self.flush()

    def flush(self) -> None:
        """Send the payloads for which there are buffers or WAIT requests."""
        if self.frozen:
            return
        if self.notification_queue:
            self.serve(1)
        else:
            self.send_waiting()

    def send_waiting(self) -> None:
        """Reply to WAIT requests with payloads."""
        while self.waiting and self.payloads and not self.frozen:
            self.counts.notifications += 1
            self.reply(self.waiting.popleft(), 0, self.payloads.popleft())

    def serve_notifications(self, vring: Vring) -> None:
        """Send payloads in the buffers of the notification queue."""
        ring = vring.ring
        assert ring is not None
        while self.payloads:
            taken = ring.pop()
            if taken is None:
                vring.interrupt_if_needed()
                if not ring.enable_notification():
                    return
                continue
            head, chain = taken
            payload = self.payloads.popleft()
            data = (
                out_header.pack_values(out_header.size + len(payload), wire.FUSE_NOTIFY_FSNOTIFY, 0)
                + payload
            )
            data = data[: chain.writable_size]
            scatter(chain.writable, 0, data)
            ring.add_used(head, len(data))
            self.counts.notifications += 1
        vring.interrupt_if_needed()
        ring.enable_notification()

    # The actions of a script.

    def act(self, action: list[Any]) -> None:
        """Perform one action of a script."""
        name, *words = action
        ACTIONS[name](self, *words)

    def send_records(self, kind: str, count: int, times: int = 1) -> None:
        """Send event records of this kind."""
        if kind == "watches-lost":
            self.tree.lose_watches()
        if kind in records.UNCERTAIN:
            # The client's marks are removed, or it requests them again at the next lookup.
            for nodeid in list(self.tree.beliefs):
                self.tree.doubt(nodeid)
        for _ in range(times):
            self.notify(records.payload(kind, count, self.tree, self.random))

    def send_raw_header(self, error: int) -> None:
        """Send a random notification."""
        self.notify(self.random.randbytes(8 * error))

    def freeze(self, milliseconds: int) -> None:
        """Serve nothing for a time, like a stopped daemon."""
        self.frozen = True
        self.loop.call_later(milliseconds / 1000, self.thaw)

    def thaw(self) -> None:
        """Serve again."""
        self.frozen = False
        self.serve_all()
        self.flush()

    def kill(self) -> None:
        """Close the connection, as a killed daemon does."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def restart(self, milliseconds: int) -> None:
        """Serve nothing for a time, and then watch nothing.

        This is how a daemon behaves that continues the session of another one.
        """
        self.payloads.clear()
        self.tree.lose_watches()
        self.notify(WATCHES_LOST.encode())
        self.freeze(milliseconds)

    def remove_silently(self, path: str) -> None:
        """Delete a file without an event."""
        self.tree.remove_silently(path)

    def replace_silently(self, path: str) -> None:
        """Replace a file without an event."""
        self.tree.replace_silently(path)

    def reuse(self, on: bool) -> None:
        """Reuse forgotten nodeids from now on, or no longer."""
        self.tree.reuse = on

    def settle(self) -> None:
        """End all lies, and answer all requests."""
        self.lies = Lies()
        self.thaw()
        held, self.held = self.held, []
        for each in held:
            self.reply(*each)
        if self.ended_waits:
            self.release_waits()


ACTIONS: dict[str, Callable[..., None]] = {
    "records": HostileDevice.send_records,
    "raw": HostileDevice.send_raw_header,
    "freeze": HostileDevice.freeze,
    "restart": HostileDevice.restart,
    "kill": HostileDevice.kill,
    "remove": HostileDevice.remove_silently,
    "replace": HostileDevice.replace_silently,
    "reuse": HostileDevice.reuse,
}


class VirtioServer:
    """The device as the arena uses it: every call runs in the device's thread."""

    def __init__(self, device: HostileDevice) -> None:
        self.device = device

    @property
    def gone(self) -> bool:
        """Whether the device was killed: it does not come back."""
        return self.device.server is None

    def prepare(self, script: Script) -> None:
        """Begin a script."""
        self.device.call(lambda: self.device.prepare(script))

    def begin(self, lies: Lies, timeline: list[list[Any]]) -> None:
        """Begin a round."""
        self.device.call(lambda: self.device.begin(lies, timeline))

    def settle(self) -> None:
        """End all lies, and answer all requests."""
        if not self.gone:
            self.device.call(self.device.settle)

    def known(self) -> Known:
        """Return what the server knows."""
        return self.device.call(self.device.tree.known)

    def violations(self) -> list[str]:
        """Return the rules that the client has broken."""
        return self.device.call(lambda: list(self.device.tree.violations))

    def history(self, nodeid: int) -> list[str]:
        """Return what has come and been sent about a nodeid."""
        return self.device.call(lambda: list(self.device.tree.history.get(nodeid, ())))

    def requests(self) -> int:
        """Return how many requests have come."""
        return self.device.counts.requests

    def send(self, payloads: list[bytes]) -> None:
        """Send notifications."""

        def send() -> None:
            for payload in payloads:
                self.device.notify(payload)

        self.device.call(send)

    def state(self) -> str:
        """Return in words what the device waits for."""
        waiting, payloads = self.device.call(
            lambda: (len(self.device.waiting), len(self.device.payloads))
        )
        return f"{waiting} requests wait, {payloads} notifications are not sent yet"
