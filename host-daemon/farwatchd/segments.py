# SPDX-License-Identifier: Apache-2.0
"""Bytes that lie in several pieces of guest memory: cutting, gathering, scattering."""

from __future__ import annotations

from collections.abc import Sequence


def cut(segments: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """Return views of ``length`` bytes from ``start`` on, fewer when there are fewer; nothing is copied."""
    views = []
    for segment in segments:
        size = len(segment)
        if start >= size:
            start -= size
            continue
        if start or size > length:
            segment = segment[start : start + length]
            size = len(segment)
            start = 0
            if not size:
                break
        views.append(segment)
        length -= size
    return views


def gather(segments: Sequence[memoryview], start: int, length: int) -> bytes:
    """Return a copy of ``length`` bytes from ``start`` on, fewer when there are fewer."""
    return b"".join(cut(segments, start, length))


def scatter(segments: Sequence[memoryview], start: int, data: bytes | bytearray) -> None:
    """Write ``data`` from ``start`` on; the segments must have room for it."""
    position = 0
    for view in cut(segments, start, len(data)):
        view[:] = data[position : position + len(view)]
        position += len(view)
