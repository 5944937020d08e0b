# SPDX-License-Identifier: Apache-2.0
"""What the transport expects of the file system behind it, and of the source of notifications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

#: What ``RequestHandler.handle`` returns for a request that waits for the notification source.
PARKED = -1


class RequestHandler(Protocol):
    """A FUSE session, as the transport sees it."""

    @property
    def parks(self) -> bool:
        """Whether requests may wait for the notification source; those that do are answered when this turns false."""

    def handle(self, readable: Sequence[memoryview], writable: Sequence[memoryview]) -> int:
        """Serve one request and return the bytes written into ``writable``, 0 for no reply.

        ``PARKED``: the transport answers the request with the next payload of the notification source.

        The segments are guest memory, which may change at any time; none may be kept after the return.
        """

    def reset(self) -> None:
        """Forget the guest: its inodes, handles and watches."""


class NotificationSource(Protocol):
    """A bounded queue of notification payloads."""

    def take(self, max_bytes: int) -> bytes | None:
        """Remove and return the next payload, at most ``max_bytes`` long; ``None`` when nothing waits."""

    def set_wakeup(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in the loop's thread, whenever there is something to take."""
