# SPDX-License-Identifier: Apache-2.0
"""Maps the memory regions that a front end shares."""

from __future__ import annotations

import mmap
from typing import Any

from farwatchd.virtqueue import Region


def map_region(fd: int, wanted: Any) -> Region:
    """Map one region as a ``MEMORY_REGION`` describes it; ``fd`` stays the caller's.

    The mapping ends with the last view of it. ``ValueError`` with a text for the log when the
    description is impossible or the kernel refuses. A front end that shrinks the file afterwards
    kills the daemon (SIGBUS): it owns the memory.
    """
    text = f"memory region of {wanted.size:#x} bytes at file offset {wanted.mmap_offset:#x}"
    skip = wanted.mmap_offset % mmap.ALLOCATIONGRANULARITY
    if not wanted.size:
        raise ValueError(f"{text}: empty")
    try:
        mapping = mmap.mmap(
            fd,
            skip + wanted.size,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=wanted.mmap_offset - skip,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{text} cannot be mapped: {error}") from error
    return Region(wanted.guest_addr, wanted.size, wanted.user_addr, memoryview(mapping)[skip:])
