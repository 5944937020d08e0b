# SPDX-License-Identifier: Apache-2.0
"""The FUSE headers that the device itself writes.

These are headers of notifications, of deferred replies, and of replies to requests that hit a bug.
"""

from __future__ import annotations

from farwatchd.iovec import gather, scatter
from farwatchd.virtqueue import Chain
from farwatchd.wire.fsnotify import FUSE_NOTIFY_FSNOTIFY
from farwatchd.wire.fuse import in_header, out_header

OUT_HEADER_SIZE = out_header.size


def notification(payload: bytes) -> bytes:
    """Return a FUSE_NOTIFY_FSNOTIFY notification with its header."""
    return out_header.pack_values(OUT_HEADER_SIZE + len(payload), FUSE_NOTIFY_FSNOTIFY, 0) + payload


def reply_header(unique: int, error: int, length: int) -> bytes:
    """Return the header of a reply with an errno, or with a payload of ``length`` bytes."""
    return out_header.pack_values(OUT_HEADER_SIZE + length, -error, unique)


def write_error_reply(chain: Chain, error: int) -> int:
    """Write a reply with an errno.

    Return the bytes written, 0 where the chain is too short for a request or a reply.
    """
    request = gather(chain.readable, 0, in_header.size)
    if len(request) < in_header.size or chain.writable_size < OUT_HEADER_SIZE:
        return 0
    scatter(chain.writable, 0, reply_header(in_header.unpack_from(request).unique, error, 0))
    return OUT_HEADER_SIZE
