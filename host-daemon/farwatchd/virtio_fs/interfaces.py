# SPDX-License-Identifier: Apache-2.0
"""What the device expects of the FUSE session, and of the source of notifications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from farwatchd.vhost_user.vring import Vring
from farwatchd.virtio_fs.headers import reply_header
from farwatchd.virtqueue import Chain, Ring
from farwatchd.wire.state import PendingReplyState


class DeferredReply:
    """A reply that is sent after ``RequestHandler.handle`` has returned.

    The handler makes one for a request and returns it; the request's chain stays in flight until
    ``complete``. For the event loop's thread.
    """

    __slots__ = ("_send", "in_thread", "unique")

    def __init__(self, unique: int, *, in_thread: bool = False) -> None:
        """Defer the reply to the request ``unique``.

        ``in_thread``: another thread works on it.
        """
        self.unique = unique
        self.in_thread = in_thread
        self._send: Callable[[bytes, bytes | memoryview], None] | None = None

    def hold(self, send: Callable[[bytes, bytes | memoryview], None]) -> None:
        """Have ``send`` called once with the reply's header and payload (for the device).

        Neither may be used after its return.
        """
        self._send = send

    def drop(self) -> None:
        """Send nothing: the chain does not belong to the device any more (for the device)."""
        self._send = None

    def complete(self, error: int = 0, payload: bytes | memoryview = b"") -> None:
        """Send an errno, or the payload, which is not used afterwards.

        A memoryview has data that was read: if the chain's ring is stopped the request is handled
        again, and the data is not kept.

        Only the first call has an effect.
        """
        send, self._send = self._send, None
        if send is None:
            return
        send(reply_header(self.unique, error, len(payload)), payload)


class PlainServer(Protocol):
    """The native part, as the device sees it."""

    def serve(self, ring: Ring, most: int, until_ns: int, /) -> int:
        """Serve the plain requests at the front of a ring; return how many.

        ``most``: the number at most. ``until_ns``: no further one when the monotonic clock is past
        it.
        The request after them is for ``RequestHandler.handle``, as all are without native part.
        """


class RequestHandler(Protocol):
    """A FUSE session, as the device sees it. All methods are for the event loop's thread."""

    @property
    def plain(self) -> PlainServer | None:
        """What serves plain requests; None without native part."""
        return None

    def handle(self, chain: Chain) -> int | DeferredReply:
        """Serve the request in ``chain.readable``, and write the reply to ``chain.writable``.

        Returns the bytes written, 0 for a request without a reply, or a ``DeferredReply``. The
        memory is the guest's, which may change it at any time. None of it may be used after
        the reply or by another thread, and a deferred reply's none after ``drain`` and ``reset``.
        An exception is a bug: the device logs it and replies EIO.
        """

    def events_available(self) -> None:
        """Complete pending WAIT requests: the notification source has events."""

    def drain(self, timeout: float) -> bool:
        """Complete what threads work on, for at most ``timeout`` seconds.

        Return false if some of it is not complete. It goes on without the memory of its request.
        """

    def detach_memory(self) -> None:
        """Release the memory of requests whose replies are deferred: it may be removed."""

    def reset(self) -> None:
        """Forget the guest: its inodes, handles, locks and watches. Takes a limited time."""


class NotificationSource(Protocol):
    """A bounded queue of notification payloads."""

    def take(self, max_bytes: int) -> bytes | None:
        """Remove and return the next payload, at most ``max_bytes`` long.

        ``None`` if the queue is empty.
        """

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        """Set the callback for new payloads; it is called in the event loop's thread."""


class InFlightChains(Protocol):
    """A record of the chains whose replies are deferred, which outlives the process."""

    def add(self, queue: int, head: int, unique: int) -> None:
        """Record that the reply to a chain is deferred."""

    def completing(self, queue: int, head: int, used: int) -> None:
        """Record that a chain is added to the used ring, whose index is ``used`` afterwards."""

    def completed(self, queue: int, head: int) -> None:
        """Record that a chain was added to the used ring."""

    def has_run(self, queue: int) -> None:
        """Record that a queue runs."""


class FormerSession(Protocol):
    """The session of a process that was killed, before its rings run again."""

    def resume(self, vrings: Sequence[Vring]) -> list[PendingReplyState] | None:
        """Become that session, and have the rings go on where they were.

        ``vrings``: those that have started. None: others have to start before. Return the chains
        in flight.
        """

    def left(self) -> bool:
        """Take note that the front-end has left before that.

        Return whether the session waits for it to come again.
        """
