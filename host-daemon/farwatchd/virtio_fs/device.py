# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device: takes requests from the rings to the file system, and notifications the
other way."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple

from farwatchd.event_loop import Loop
from farwatchd.fuse.wait_requests import Parking
from farwatchd.iovec import scatter
from farwatchd.vhost_user.vring import KickState, Vring
from farwatchd.virtio_fs.busy_poll import BusyPoll
from farwatchd.virtio_fs.deferred import Outstanding
from farwatchd.virtio_fs.headers import OUT_HEADER_SIZE, error_reply, notification
from farwatchd.virtio_fs.interfaces import (
    PARKED,
    LateReplies,
    NotificationSource,
    RequestHandler,
    late,
)
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtqueue import Chain, SplitRing, VirtqueueError
from farwatchd.wire.fsnotify import record
from farwatchd.wire.virtio_fs import NOTIFY_BUF_SIZE, Feature, fs_config

log = logging.getLogger(__name__)

#: Chains served before other queues and descriptors get their turn.
CHAINS_PER_TURN = 64
#: Replies wait at most about this long for the next ones, so that one interrupt tells of all.
SIGNAL_AFTER_NS = 100_000
#: The smallest notification buffer that can carry anything: a header and a record without names.
MIN_NOTIFICATION_BUFFER = OUT_HEADER_SIZE + record.size


class QueueRole(Enum):
    """What a queue is for."""

    HIPRIO = "hiprio"
    NOTIFICATION = "notification"
    REQUEST = "request"


class _Running(NamedTuple):
    """A ring that is served; ``serve`` says whether there is more to do."""

    vring: Vring
    role: QueueRole
    serve: Callable[[Vring, SplitRing], bool]


class Device:
    """Serves the rings that the back end started. One handler and one notification source for its
    whole life."""

    def __init__(
        self,
        loop: Loop,
        handler: RequestHandler,
        config: DeviceConfig,
        source: NotificationSource | None = None,
        late_replies: LateReplies | None = None,
        busy: BusyPoll | None = None,
    ) -> None:
        """``busy``: looks for requests before they are waited for; without it nobody does."""
        self._loop = loop
        self._handler = handler
        self._config = config
        self._source = source
        self._running: dict[int, _Running] = {}
        self._scheduled: set[int] = set()
        self._busy = busy if busy is not None else BusyPoll(0, loop.has_work)
        self._parking = Parking(handler, source)
        self._outstanding = Outstanding(late_replies)
        self._failures_seen: set[tuple[type[BaseException], str, int]] = set()
        self._small_buffer_reported = False
        if source is not None:
            source.set_wakeup(self._wake_notifications)

    @property
    def features(self) -> int:
        """Feature bits offered to the driver."""
        features = (
            Feature.VERSION_1
            | Feature.RING_INDIRECT_DESC
            | Feature.RING_EVENT_IDX
            | Feature.VHOST_USER_PROTOCOL_FEATURES
        )
        return int(features | Feature.FS_NOTIFICATION if self._config.notification else features)

    @property
    def queue_count(self) -> int:
        """Number of queues: hiprio, notification, requests.

        Without notifications the last one has no job, but a front end may set up as many as with
        them.
        """
        return 2 + self._config.num_request_queues

    @property
    def config_space(self) -> bytes:
        """``struct virtio_fs_config``."""
        return fs_config.pack(
            tag=self._config.tag.encode(),
            num_request_queues=self._config.num_request_queues,
            notify_buf_size=NOTIFY_BUF_SIZE if self._config.notification else 0,
        )

    def ring_started(self, vring: Vring, features: int) -> None:
        """Serve ``vring`` from now on; ``features``, as acked, say what it is for (Virtio 1.2,
        5.11.2)."""
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
        log.debug("queue %d (%s) started", vring.index, role.value)
        self._schedule(vring.index)

    def ring_stopped(self, vring: Vring) -> None:
        """Leave ``vring`` alone, if it was served."""
        if self._running.pop(vring.index, None) is None:
            return
        if vring.kick_fd is not None:
            self._loop.remove(vring.kick_fd)
        self._parking.release(vring)
        self._outstanding.release(vring)
        log.debug("queue %d stopped", vring.index)

    def reset(self) -> None:
        """Forget the guest."""
        self._small_buffer_reported = False
        self._handler.reset()

    def _kicked(self, vring: Vring) -> None:
        if vring.read_kick() is KickState.CLOSED:
            self._fail(vring, "the front end closed its kick descriptor")
            return
        self._serve(vring.index)

    def _wake_notifications(self) -> None:
        if self._parking.parked:
            self._loop.call_soon(self._parking.answer)
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
        vring, _, serve = running
        ring = vring.ring
        if ring is None:
            return
        try:
            again = serve(vring, ring)
        except VirtqueueError as error:
            self._fail(vring, str(error))
            return
        # There may be something to tell to requests that wait, or they must wait no longer.
        if self._parking.parked:
            self._parking.answer()
        if again:
            self._schedule(index)

    def _fail(self, vring: Vring, reason: str) -> None:
        log.error("queue %d stopped: %s", vring.index, reason)
        self.ring_stopped(vring)
        vring.fail()

    # Requests

    def _serve_requests(self, vring: Vring, ring: SplitRing) -> bool:
        """Serve the available chains; says whether there may be more."""
        ring.disable_kicks()
        pop, push, handle, clock = ring.pop, ring.push, self._handler.handle, time.monotonic_ns
        now = clock()
        self._busy.woken(now)
        tell_at = now + SIGNAL_AFTER_NS
        for _ in range(CHAINS_PER_TURN):
            taken = pop()
            if taken is None:
                if self._look_for_more(vring, ring):
                    tell_at = clock() + SIGNAL_AFTER_NS
                    continue
                more, signal = ring.rest()
                if signal:
                    vring.signal()
                if not more:
                    return False
                continue
            head, chain = taken
            try:
                written = handle(chain)
            except Exception as error:
                self._report(error)
                written = error_reply(chain.readable, chain.writable, errno.EIO)
            if not 0 <= written <= chain.writable_size:
                if written < 0:
                    self._keep(written, vring, head, chain)
                    continue
                log.error(
                    "bug: a reply of %d bytes in a buffer of %d", written, chain.writable_size
                )
                written = error_reply(chain.readable, chain.writable, errno.EIO)
            push(head, written)
            if clock() > tell_at:
                vring.signal_if_wanted()
                tell_at = clock() + SIGNAL_AFTER_NS
        vring.signal_if_wanted()
        return True

    def _look_for_more(self, vring: Vring, ring: SplitRing) -> bool:
        """Look for the next chain where that is worth it; says whether there is one."""
        # Who works on a reply would have to wait for the interpreter.
        if self._outstanding or not self._busy.ends():
            return False
        vring.signal_if_wanted()
        if self._parking.parked:
            self._parking.answer()
        return self._busy.finds(ring.has_more)

    def _keep(self, written: int, vring: Vring, head: int, chain: Chain) -> None:
        """Keep a chain that the handler has not replied to: ``written`` says who will."""
        if written == PARKED:
            self._parking.park(vring, head, chain)
        else:
            self._outstanding.hold(late(written), vring, head, chain)

    def _report(self, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (
            (type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno)
            if trace
            else (type(error), "", 0)
        )
        if place in self._failures_seen:
            log.error("bug: a request failed again with %s", repr(error))
        else:
            self._failures_seen.add(place)
            log.error("bug: a request failed", exc_info=error)

    # Notifications

    def _serve_notifications(self, vring: Vring, ring: SplitRing) -> bool:
        """Send what waits, as long as there are buffers; says whether there may be more to do."""
        for _ in range(CHAINS_PER_TURN):
            found = ring.peek()
            if found is None:
                vring.signal_if_wanted()
                if not ring.enable_kicks():
                    return False
                continue
            head, chain = found
            if chain.writable_size < MIN_NOTIFICATION_BUFFER:
                self._give_back_small(ring, head, chain)
                continue
            payload = self._take_payload(
                min(chain.writable_size, NOTIFY_BUF_SIZE) - OUT_HEADER_SIZE
            )
            if payload is None:
                # There are buffers enough: new ones need not be announced until these are used up.
                ring.disable_kicks()
                vring.signal_if_wanted()
                return False
            ring.take()
            framed = notification(payload)
            scatter(chain.writable, 0, framed)
            ring.push(head, len(framed))
        vring.signal_if_wanted()
        return True

    def _take_payload(self, room: int) -> bytes | None:
        if self._source is None:
            return None
        payload = self._source.take(room)
        if payload is not None and len(payload) > room:
            raise ValueError(
                f"bug: a notification of {len(payload)} bytes where {room} were asked for"
            )
        return payload

    def _give_back_small(self, ring: SplitRing, head: int, chain: Chain) -> None:
        ring.take()
        ring.push(head, 0)
        if not self._small_buffer_reported:
            self._small_buffer_reported = True
            log.warning(
                "the guest gave a notification buffer of %d bytes, given back unused: at least %d"
                " are needed",
                chain.writable_size,
                MIN_NOTIFICATION_BUFFER,
            )


def _role(index: int, features: int) -> QueueRole:
    if index == 0:
        return QueueRole.HIPRIO
    if index == 1 and features & Feature.FS_NOTIFICATION:
        return QueueRole.NOTIFICATION
    return QueueRole.REQUEST
