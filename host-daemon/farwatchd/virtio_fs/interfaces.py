# SPDX-License-Identifier: Apache-2.0
"""What the transport expects of the file system behind it, and of the source of notifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from farwatchd.virtqueue import Chain

#: What ``RequestHandler.handle`` returns for a request that waits for the notification source.
PARKED = -1


class RequestHandler(Protocol):
    """A FUSE session, as the transport sees it."""

    @property
    def parks(self) -> bool:
        """Whether requests may wait for the notification source; those that do are answered when
        this turns false."""

    def handle(self, chain: Chain) -> int:
        """Serve one request and return the bytes written into what is writable, 0 for no reply.

        ``PARKED``: the transport answers the request with the next payload of the notification
        source. Less than that: ``late(ticket)``, the request is answered later, see
        ``LateReplies``.

        The segments are guest memory, which may change at any time; none may be kept after the
        reply.
        """

    def reset(self) -> None:
        """Forget the guest: its inodes, handles and watches."""


def late(ticket: int) -> int:
    """What ``RequestHandler.handle`` returns for a request that is answered later, and the ticket
    for what it returned.

    A ticket is a positive number that is used once.
    """
    return PARKED - ticket


class LateReplies(Protocol):
    """Where replies come from that are given later, each by its ticket."""

    def set_answer(self, answer: Callable[[int, bytes, int], None]) -> None:
        """Have ``answer`` called, in the loop's thread, with the ticket, the reply and its length.

        What the length goes beyond the reply is in the writable segments already.
        """

    def abandon(self, ticket: int) -> None:
        """Answer now: afterwards there is no way to do it."""


class NotificationSource(Protocol):
    """A bounded queue of notification payloads."""

    def take(self, max_bytes: int) -> bytes | None:
        """Remove and return the next payload, at most ``max_bytes`` long; ``None`` when nothing
        waits."""

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in the loop's thread, whenever there is something to take."""
