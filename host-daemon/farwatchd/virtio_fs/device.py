# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device: passes requests to the FUSE session, and notifications to the driver."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple

from farwatchd.event_loop import Loop
from farwatchd.iovec import scatter
from farwatchd.vhost_user.device_state import StateTransfer
from farwatchd.vhost_user.vring import KickState, RingMaker, Vring
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.deferred import PendingReplies
from farwatchd.virtio_fs.headers import OUT_HEADER_SIZE, notification, write_error_reply
from farwatchd.virtio_fs.interfaces import (
    DeferredReply,
    FormerSession,
    InFlightChains,
    NotificationSource,
    RequestHandler,
)
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue import Chain, Ring, SplitRing, VirtqueueError
from farwatchd.wire.fsnotify import record
from farwatchd.wire.state import PendingReplyState
from farwatchd.wire.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from farwatchd.wire.virtio import VirtioFeature
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE, VirtioFsFeature, fs_config

_log = logging.getLogger(__name__)

#: Chains served before other queues and descriptors get their turn.
CHAINS_PER_TURN = 64
#: A reply waits at most about this long for the next ones, so that one interrupt announces all.
INTERRUPT_DELAY_NS = 100_000
#: The smallest usable notification buffer: a header and a record without names.
MIN_NOTIFICATION_BUFFER = OUT_HEADER_SIZE + record.size
#: Seconds that the front-end waits for requests which wait for a disk or a network. QEMU's main
#: loop waits for the reply to GET_VRING_BASE, and with it the whole VM.
DRAIN_LIMIT = 1.0
#: Seconds from the begin of a vain wait to the next one.
DRAIN_PAUSE = 5.0


class QueueRole(Enum):
    """What a queue is for (Virtio 1.2, 5.11.2)."""

    HIPRIO = "hiprio"
    NOTIFICATION = "notification"
    REQUEST = "request"


class _Running(NamedTuple):
    """A started ring; ``serve`` returns whether there is more to do."""

    vring: Vring
    role: QueueRole
    serve: Callable[[Vring, Ring], bool]


class Device:
    """Serves the rings that the back-end started. Implements ``DeviceModel``."""

    def __init__(
        self,
        loop: Loop,
        handler: RequestHandler,
        config: DeviceConfig,
        source: NotificationSource | None = None,
        busy_poll: BusyPoll | None = None,
        make_ring: RingMaker = SplitRing,
    ) -> None:
        """Make a device.

        ``source``: has the notifications. ``busy_poll``: polls for requests before sleeping; None
        disables polling. ``make_ring``: makes the rings that it serves.
        """
        self.make_ring = make_ring
        self._loop = loop
        self._handler = handler
        self._config = config
        self._source = source
        self._running: dict[int, _Running] = {}
        self._scheduled: set[int] = set()
        self._busy_poll = busy_poll if busy_poll is not None else BusyPoll(0, loop.has_work)
        self._pending = PendingReplies()
        #: When to wait again for what threads do (seconds of the monotonic clock): a front-end that
        #: stops many rings waits once.
        self._next_drain = 0.0
        self._failures_seen: set[tuple[type[BaseException], str, int]] = set()
        self._small_buffer_reported = False
        self._former: FormerSession | None = None
        #: Transfers the state when the front-end migrates the guest; None: it cannot.
        self.state_transfer: StateTransfer | None = None
        if source is not None:
            source.set_wakeup(self._wake_notifications)

    @property
    def features(self) -> int:
        """Feature bits offered to the driver."""
        features = int(
            VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX
        )
        features |= VHOST_USER_F_PROTOCOL_FEATURES
        return features | VirtioFsFeature.NOTIFICATION if self._config.notification else features

    @property
    def pending_replies(self) -> int:
        """How many requests have a deferred reply."""
        return len(self._pending)

    @property
    def queue_count(self) -> int:
        """Number of queues: hiprio, notification, requests.

        Without notifications the last one is unused, but a front-end may set up as many as with
        them.
        """
        return 2 + self._config.num_request_queues

    @property
    def config_space(self) -> bytes | None:
        """``struct virtio_fs_config``; None without a tag: then the front-end has it.

        QEMU's vhost-user-fs device has the tag itself. It warns about a back-end that offers the
        configuration space, and QEMU 7.1 to 8.0 crashes.
        """
        if self._config.tag is None:
            return None
        return fs_config.pack(
            tag=self._config.tag.encode(),
            num_request_queues=self._config.num_request_queues,
            notify_buf_size=NOTIFY_BUF_SIZE if self._config.notification else 0,
        )

    def ring_started(self, vring: Vring, features: int) -> None:
        """Serve ``vring`` from now on.

        The acked ``features`` decide its role (Virtio 1.2, 5.11.2).
        """
        role = _role(vring.index, features)
        if vring.kick_fd is not None:
            if vring.kick_is_eventfd:
                self._loop.add_eventfd(vring.kick_fd, partial(self._serve, vring.index))
            else:
                self._loop.add(vring.kick_fd, partial(self._kicked, vring))
        serve = (
            self._serve_notifications if role is QueueRole.NOTIFICATION else self._serve_requests
        )
        self._running[vring.index] = _Running(vring, role, serve)
        _log.debug("queue %d (%s) started", vring.index, role.value)
        if self._pending.record is not None:
            self._pending.record.has_run(vring.index)
        if self._former is None:
            self._go_on(vring)
        else:
            self._resume_former(self._former)

    def _resume_former(self, former: FormerSession) -> None:
        records = former.resume([each.vring for each in self._running.values()])
        if records is None:
            return
        self._former = None
        self._pending.restore_state(records)
        for each in list(self._running.values()):
            self._go_on(each.vring)

    def _go_on(self, vring: Vring) -> None:
        for head in self._pending.resume(vring):
            self._handle_again(vring, head)
        self._schedule(vring.index)

    def running_queues(self) -> list[int]:
        """Return the queues that are served."""
        return list(self._running)

    def record_in_flight(self, record: InFlightChains, before_reply: Callable[[int], None]) -> None:
        """Record the chains in flight.

        ``before_reply`` is called with a request's number before its deferred reply is complete.
        """
        self._pending.record = record
        self._pending.before_reply = before_reply

    def expect_former(self, former: FormerSession) -> None:
        """Serve no ring before the session of a former process has resumed."""
        self._former = former

    @property
    def former(self) -> FormerSession | None:
        """The session that was expected last, before it has resumed."""
        return self._former

    def ring_stopped(self, vring: Vring) -> None:
        """Stop serving ``vring``, if it was served.

        The tasks of threads for it are completed within a limit.
        """
        if self._running.pop(vring.index, None) is None:
            return
        if vring.kick_fd is not None:
            self._loop.remove(vring.kick_fd)
        if self._pending.in_threads and not self._drain():
            _log.warning(
                "queue %d stops with requests that wait for a disk or a network; their replies are"
                " sent when it starts again",
                vring.index,
            )
        _log.debug("queue %d stopped", vring.index)

    def detach_memory(self) -> None:
        """Use no memory of requests in flight, so that it may be removed."""
        self._handler.detach_memory()

    def reset(self) -> None:
        """Forget the guest. Chains that are pending are not completed."""
        self._small_buffer_reported = False
        self._pending.release()
        if self._former is not None:
            # That session is not begun yet. The front-end may come again.
            if self._former.left():
                return
            self._former = None
        self._handler.reset()

    def export_state(self) -> list[PendingReplyState]:
        """Return the chains in flight. No ring runs, and no thread works on a reply."""
        return self._pending.export_state()

    def restore_state(self, records: list[PendingReplyState]) -> None:
        """Keep the chains in flight of a state until their rings run."""
        self._pending.restore_state(records)

    def _drain(self) -> bool:
        """Complete what threads do, within a limit; return false if some of it is not complete."""
        now = time.monotonic()
        if self._handler.drain(DRAIN_LIMIT if now >= self._next_drain else 0):
            return True
        self._next_drain = max(self._next_drain, now + DRAIN_PAUSE)
        return False

    def _kicked(self, vring: Vring) -> None:
        if vring.read_kick() is KickState.CLOSED:
            self._fail(vring, "the front-end closed its kick descriptor")
            return
        self._serve(vring.index)

    def _wake_notifications(self) -> None:
        self._loop.call_soon(self._handler.events_available)
        for index, running in self._running.items():
            if running.role is QueueRole.NOTIFICATION:
                self._schedule(index)

    def _schedule(self, index: int) -> None:
        if index not in self._scheduled:
            self._scheduled.add(index)
            self._loop.call_soon(partial(self._serve_scheduled, index))

    def _serve_scheduled(self, index: int) -> None:
        self._scheduled.discard(index)
        self._serve(index)

    def _serve(self, index: int) -> None:
        running = self._running.get(index)
        if running is None:
            return
        if self._former is not None:
            # Of a new guest, which may have fewer queues, the first request may have come.
            self._resume_former(self._former)
            return
        vring, _, serve = running
        ring = vring.ring
        if ring is None:
            return
        try:
            again = serve(vring, ring)
        except VirtqueueError as error:
            self._fail(vring, str(error))
            return
        if again:
            self._schedule(index)

    def _fail(self, vring: Vring, reason: str) -> None:
        _log.error("queue %d stopped: %s", vring.index, reason)
        self.ring_stopped(vring)
        vring.fail()

    # Requests

    def _serve_requests(self, vring: Vring, ring: Ring) -> bool:
        """Serve the available chains; return whether there may be more."""
        ring.disable_notification()
        pop, add_used, handle = ring.pop, ring.add_used, self._handler.handle
        plain = self._handler.plain
        clock = time.monotonic_ns
        now = clock()
        self._busy_poll.record_wakeup(now)
        interrupt_at = now + INTERRUPT_DELAY_NS
        left = CHAINS_PER_TURN
        while left > 0:
            if plain is not None:
                left -= plain.serve(ring, left, interrupt_at)
                if not left:
                    break
                if clock() > interrupt_at:
                    vring.interrupt_if_needed()
                    interrupt_at = clock() + INTERRUPT_DELAY_NS
                    continue
            left -= 1
            popped = pop()
            if popped is None:
                if self._poll_for_more(vring, ring):
                    interrupt_at = clock() + INTERRUPT_DELAY_NS
                    continue
                more, interrupt = ring.go_idle()
                if interrupt:
                    vring.interrupt()
                if not more:
                    return False
                continue
            head, chain = popped
            try:
                written = handle(chain)
            except Exception as error:
                self._report(error)
                written = write_error_reply(chain, errno.EIO)
            if isinstance(written, DeferredReply):
                self._pending.hold(written, vring, head)
                continue
            if written > chain.writable_size:
                _log.error(
                    "bug: a reply of %d bytes in a buffer of %d", written, chain.writable_size
                )
                written = write_error_reply(chain, errno.EIO)
            add_used(head, written)
            if clock() > interrupt_at:
                vring.interrupt_if_needed()
                interrupt_at = clock() + INTERRUPT_DELAY_NS
        vring.interrupt_if_needed()
        return True

    def _handle_again(self, vring: Vring, head: int) -> None:
        """Serve a request that another process has popped and not completed."""
        ring = vring.ring
        if ring is None:
            return
        try:
            chain = ring.chain(head)
            try:
                written = self._handler.handle(chain)
            except Exception as error:
                self._report(error)
                written = write_error_reply(chain, errno.EIO)
            if isinstance(written, DeferredReply):
                self._pending.hold(written, vring, head)
                return
            self._pending.add_used(vring, ring, head, written)
            vring.interrupt_if_needed()
        except VirtqueueError as error:
            self._fail(vring, str(error))

    def _poll_for_more(self, vring: Vring, ring: Ring) -> bool:
        """Poll for the next chain where that is worth it; return whether there is one."""
        # A thread that works on a reply would have to wait for the interpreter.
        if self._pending.in_threads or not self._busy_poll.should_poll():
            return False
        vring.interrupt_if_needed()
        return self._busy_poll.poll(ring.has_more)

    def _report(self, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        location = (
            (type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno)
            if trace
            else (type(error), "", 0)
        )
        if location in self._failures_seen:
            _log.error("bug: a request failed again with %s", repr(error))
        else:
            self._failures_seen.add(location)
            _log.error("bug: a request failed", exc_info=error)

    # Notifications

    def _serve_notifications(self, vring: Vring, ring: Ring) -> bool:
        """Send pending notifications while there are buffers.

        Return whether there may be more to do.
        """
        for _ in range(CHAINS_PER_TURN):
            popped = ring.pop()
            if popped is None:
                vring.interrupt_if_needed()
                if not ring.enable_notification():
                    return False
                continue
            head, chain = popped
            if chain.writable_size < MIN_NOTIFICATION_BUFFER:
                self._return_small_buffer(ring, head, chain)
                continue
            payload = self._take_payload(
                min(chain.writable_size, NOTIFY_BUF_SIZE) - OUT_HEADER_SIZE
            )
            if payload is None:
                ring.go_to_previous_position()
                # There are buffers enough: the driver need not announce more until they are used.
                ring.disable_notification()
                vring.interrupt_if_needed()
                return False
            framed = notification(payload)
            scatter(chain.writable, 0, framed)
            ring.add_used(head, len(framed))
        vring.interrupt_if_needed()
        return True

    def _take_payload(self, room: int) -> bytes | None:
        if self._source is None:
            return None
        payload = self._source.take(room)
        if payload is not None and len(payload) > room:
            raise ValueError(f"bug: a notification of {len(payload)} bytes, {room} were available")
        return payload

    def _return_small_buffer(self, ring: Ring, head: int, chain: Chain) -> None:
        ring.add_used(head, 0)
        if not self._small_buffer_reported:
            self._small_buffer_reported = True
            _log.warning(
                "the guest gave a notification buffer of %d bytes, returned unused: at least %d are"
                " needed",
                chain.writable_size,
                MIN_NOTIFICATION_BUFFER,
            )


def _role(index: int, features: int) -> QueueRole:
    if index == 0:
        return QueueRole.HIPRIO
    if index == 1 and features & VirtioFsFeature.NOTIFICATION:
        return QueueRole.NOTIFICATION
    return QueueRole.REQUEST
