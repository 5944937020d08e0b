# SPDX-License-Identifier: Apache-2.0
"""The options of the device: what the driver reads of it, and how its queues are polled."""

from __future__ import annotations

from dataclasses import dataclass

from farwatchd.config import number, option

#: ``tag`` of ``struct virtio_fs_config``, in bytes.
MAX_TAG_SIZE = 36
MAX_REQUEST_QUEUES = 64


def _tag(text: str) -> str:
    size = len(text.encode())
    if not 0 < size <= MAX_TAG_SIZE or "\0" in text:
        raise ValueError(
            f"the tag {text!r} has {size} bytes; it must have 1 to {MAX_TAG_SIZE}, none of them NUL"
        )
    return text


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The options of the device.

    ``notification``: offer the notification queue; off without events.
    """

    tag: str | None = option(
        "tag",
        "the name by which the guest mounts, where QEMU does not know it: with a generic"
        " vhost-user device (default: QEMU's tag)",
        None,
        _tag,
    )
    num_request_queues: int = option(
        "num-request-queues",
        "queues for requests (default: %(default)s)",
        1,
        number(1, MAX_REQUEST_QUEUES),
        metavar="N",
    )
    busy_poll: int = option(
        "busy-poll",
        "poll the queues for up to this long before sleeping, while requests follow each other:"
        " faster, for more CPU time; 0: sleep immediately, as a daemon with one CPU always does"
        " (default: %(default)s)",
        200,
        number(0, 1000),
        metavar="MICROSECONDS",
    )
    notification: bool = True

    def __post_init__(self) -> None:
        """Check the tag and the number of queues; ``ValueError`` with a text for the user."""
        if self.tag is not None:
            _tag(self.tag)
        number(1, MAX_REQUEST_QUEUES)(str(self.num_request_queues))
