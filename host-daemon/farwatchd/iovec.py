# SPDX-License-Identifier: Apache-2.0
"""Slices of an iovec, a list of memory ranges as readv(2) takes it; gathering and scattering."""

from __future__ import annotations

from collections.abc import Sequence


def slices(iovec: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """Return views of ``length`` bytes from ``start`` on, fewer when there are fewer.

    Nothing is copied.
    """
    first = 0
    while first < len(iovec) and start >= len(iovec[first]):
        start -= len(iovec[first])
        first += 1
    rest = iovec[first:]
    if not start and sum(map(len, rest)) == length:
        # Whole views, as in most requests.
        return list(rest)
    views = []
    for view in rest:
        size = len(view)
        if start or size > length:
            view = view[start : start + length]
            size = len(view)
            start = 0
            if not size:
                break
        views.append(view)
        length -= size
    return views


def gather(iovec: Sequence[memoryview], start: int, length: int) -> bytes:
    """Return a copy of ``length`` bytes from ``start`` on, fewer when there are fewer."""
    if len(iovec) > 1 and len(iovec[0]) == start and len(iovec[1]) == length:
        return iovec[1].tobytes()
    return b"".join(slices(iovec, start, length))


def scatter(iovec: Sequence[memoryview], start: int, data: bytes | bytearray | memoryview) -> None:
    """Write ``data`` from ``start`` on; ``iovec`` must be long enough."""
    if len(iovec) == 2 and len(iovec[0]) == start and len(data) <= len(iovec[1]):
        iovec[1][: len(data)] = data
        return
    position = 0
    for view in slices(iovec, start, len(data)):
        view[:] = data[position : position + len(view)]
        position += len(view)
