# SPDX-License-Identifier: Apache-2.0
"""The FUSE headers that the transport itself writes: of notifications, and of replies to requests that hit a bug."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from farwatchd.wire.fsnotify import FUSE_NOTIFY_FSNOTIFY

#: ``struct fuse_out_header``: len, error, unique.
_OUT_HEADER = struct.Struct("<IiQ")
#: Where ``struct fuse_in_header`` holds ``unique``, after len and opcode.
_UNIQUE = struct.Struct("<8xQ")
OUT_HEADER_SIZE = _OUT_HEADER.size


def notification(payload: bytes) -> bytes:
    """Return a FUSE_NOTIFY_FSNOTIFY notification with its header."""
    return _OUT_HEADER.pack(OUT_HEADER_SIZE + len(payload), FUSE_NOTIFY_FSNOTIFY, 0) + payload


def error_reply(readable: Sequence[memoryview], writable: Sequence[memoryview], error: int) -> int:
    """Answer the request with ``errno`` value ``error``; returns the bytes written, 0 where an answer is impossible."""
    request = gather(readable, _UNIQUE.size)
    if len(request) < _UNIQUE.size or sum(map(len, writable)) < OUT_HEADER_SIZE:
        return 0
    return scatter(writable, _OUT_HEADER.pack(OUT_HEADER_SIZE, -error, _UNIQUE.unpack(request)[0]))


def gather(segments: Sequence[memoryview], length: int) -> bytes:
    """Return the first ``length`` bytes of ``segments``, fewer when they have fewer."""
    parts = []
    for segment in segments:
        if length <= 0:
            break
        parts.append(bytes(segment[:length]))
        length -= len(parts[-1])
    return b"".join(parts)


def scatter(segments: Sequence[memoryview], data: bytes) -> int:
    """Write ``data`` into ``segments``, which have room for it; returns its length."""
    position = 0
    for segment in segments:
        step = min(len(segment), len(data) - position)
        if not step:
            break
        segment[:step] = data[position : position + step]
        position += step
    return position
