# SPDX-License-Identifier: Apache-2.0
"""The FUSE headers that the transport itself writes: of notifications, and of replies to requests
that hit a bug."""

from __future__ import annotations

from collections.abc import Sequence

from farwatchd.iovec import gather, scatter
from farwatchd.wire.fsnotify import FUSE_NOTIFY_FSNOTIFY
from farwatchd.wire.fuse import in_header, out_header

OUT_HEADER_SIZE = out_header.size


def notification(payload: bytes) -> bytes:
    """Return a FUSE_NOTIFY_FSNOTIFY notification with its header."""
    return out_header.pack_values(OUT_HEADER_SIZE + len(payload), FUSE_NOTIFY_FSNOTIFY, 0) + payload


def error_reply(readable: Sequence[memoryview], writable: Sequence[memoryview], error: int) -> int:
    """Answer the request with ``errno`` value ``error``; returns the bytes written, 0 where an
    answer is impossible."""
    request = gather(readable, 0, in_header.size)
    if len(request) < in_header.size or sum(map(len, writable)) < OUT_HEADER_SIZE:
        return 0
    scatter(
        writable,
        0,
        out_header.pack_values(OUT_HEADER_SIZE, -error, in_header.unpack_from(request).unique),
    )
    return OUT_HEADER_SIZE
