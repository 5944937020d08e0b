# SPDX-License-Identifier: Apache-2.0
"""Bytes that lie in several pieces of guest memory: cutting, gathering, scattering."""

from __future__ import annotations

from collections.abc import Sequence


def cut(segments: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """Return views of ``length`` bytes from ``start`` on, fewer when there are fewer; nothing is
    copied."""
    first = 0
    while first < len(segments) and start >= len(segments[first]):
        start -= len(segments[first])
        first += 1
    rest = segments[first:]
    if not start and sum(map(len, rest)) == length:
        # Whole segments, as mostly.
        return list(rest)
    views = []
    for segment in rest:
        size = len(segment)
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
    if len(segments) > 1 and len(segments[0]) == start and len(segments[1]) == length:
        return segments[1].tobytes()
    return b"".join(cut(segments, start, length))


def scatter(segments: Sequence[memoryview], start: int, data: bytes | bytearray) -> None:
    """Write ``data`` from ``start`` on; the segments must have room for it."""
    if len(segments) == 2 and len(segments[0]) == start and len(data) <= len(segments[1]):
        segments[1][: len(data)] = data
        return
    position = 0
    for view in cut(segments, start, len(data)):
        view[:] = data[position : position + len(view)]
        position += len(view)
