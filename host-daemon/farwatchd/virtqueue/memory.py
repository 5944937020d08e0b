# SPDX-License-Identifier: Apache-2.0
"""Guest memory: the regions that are mapped here, and the one translation of guest addresses."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from farwatchd.virtqueue.errors import VirtqueueError

ADDRESS_END = 1 << 64

#: A region as it is needed to find views in it: first guest address, size, view to read, view to
#: write.
RegionView = tuple[int, int, memoryview, memoryview]


class RegionFile:
    """The file of a mapped region, by which another process maps it; owns the descriptor."""

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = offset
        weakref.finalize(self, os.close, fd).atexit = False


@dataclass(frozen=True, slots=True)
class Region:
    """Consecutive guest memory.

    ``view`` is ``size`` bytes from ``guest_addr``, or ``user_addr`` in the front-end. ``file`` is
    None for memory that was not mapped here.
    """

    guest_addr: int
    size: int
    user_addr: int
    view: memoryview
    file: RegionFile | None = None

    @classmethod
    def map(cls, fd: int, offset: int, guest_addr: int, size: int, user_addr: int) -> Region:
        """Map ``size`` bytes of ``fd`` from ``offset`` on as guest memory.

        ``fd`` stays the caller's.

        The mapping ends with the last view of it. ``ValueError`` with a text for the log when the
        description is impossible or the kernel refuses. A front-end that shrinks the file
        afterwards kills the daemon (SIGBUS): the front-end owns the memory. No core dump contains
        it.
        """
        text = f"memory region of {size:#x} bytes at file offset {offset:#x}"
        skip = offset % mmap.ALLOCATIONGRANULARITY
        if not size:
            raise ValueError(f"{text}: empty")
        try:
            mapping = mmap.mmap(
                fd,
                skip + size,
                flags=mmap.MAP_SHARED,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=offset - skip,
            )
            mapping.madvise(mmap.MADV_DONTDUMP)
            file = RegionFile(os.dup(fd), offset)
        except (OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{text} cannot be mapped: {error}") from error
        return cls(guest_addr, size, user_addr, memoryview(mapping)[skip:], file)


class GuestMemory:
    """An immutable set of regions that do not overlap.

    A change of the guest's memory makes a new one. Its views are read-only unless they are asked
    for with ``writable``: what is written by such a view must be in the front-end's log of dirty
    pages, if there is one (``logged_ring``).
    """

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        """Make a set of ``regions``.

        ``ValueError``: a region is empty, leaves the address space, or overlaps another one in the
        guest's or the front-end's addresses.
        """
        self.regions = tuple(sorted(regions, key=attrgetter("guest_addr")))
        for region in self.regions:
            if (
                region.size <= 0
                or max(region.guest_addr, region.user_addr) + region.size > ADDRESS_END
            ):
                raise ValueError(f"impossible memory region: {_describe(region)}")
            if len(region.view) != region.size:
                raise ValueError(
                    f"{len(region.view)} bytes mapped for memory region {_describe(region)}"
                )
        for low, high in pairwise(self.regions):
            if low.guest_addr + low.size > high.guest_addr:
                raise ValueError(f"memory regions overlap: {_describe(low)} and {_describe(high)}")
        by_user = sorted(self.regions, key=attrgetter("user_addr"))
        for low, high in pairwise(by_user):
            if low.user_addr + low.size > high.user_addr:
                raise ValueError(
                    f"memory regions overlap in the front-end: {_describe(low)} and"
                    f" {_describe(high)}"
                )
        self._starts = [region.guest_addr for region in self.regions]
        self._views_of_regions: list[RegionView] = [
            (region.guest_addr, region.size, region.view.toreadonly(), region.view)
            for region in self.regions
        ]

    def region_of(self, addr: int, length: int) -> RegionView | None:
        """Return the region that holds all of ``length`` > 0 bytes at guest address ``addr``.

        ``None`` when no region does.
        """
        index = bisect_right(self._starts, addr) - 1
        if index < 0 or length <= 0:
            return None
        region = self._views_of_regions[index]
        return region if addr - region[0] + length <= region[1] else None

    def append_slices(
        self, addr: int, length: int, slices: list[memoryview], writable: bool = False
    ) -> None:
        """Append views of ``length`` > 0 bytes at guest address ``addr``.

        There are several where regions meet.
        """
        index = bisect_right(self._starts, addr) - 1
        if index >= 0:
            region = self._views_of_regions[index]
            offset = addr - region[0]
            if offset + length <= region[1]:
                slices.append((region[3] if writable else region[2])[offset : offset + length])
                return
        self._append_across(index, addr, length, slices, writable)

    def slices(self, addr: int, length: int, writable: bool = False) -> list[memoryview]:
        """Return the views of ``length`` > 0 bytes at guest address ``addr``.

        Raises as ``append_slices``.
        """
        found: list[memoryview] = []
        self.append_slices(addr, length, found, writable)
        return found

    def user_view(self, addr: int, length: int, writable: bool = False) -> memoryview:
        """Return ``length`` bytes at the front-end's address ``addr``, which one region must hold.

        ``VirtqueueError`` when none does.
        """
        for region, views in zip(self.regions, self._views_of_regions, strict=True):
            offset = addr - region.user_addr
            if offset >= 0 and offset + length <= region.size:
                return (views[3] if writable else views[2])[offset : offset + length]
        raise VirtqueueError(
            f"{length} bytes at front-end address {addr:#x} are not in one memory region"
        )

    def guest_addresses(self, view: memoryview) -> tuple[int, int]:
        """Return the guest address of a writable view of this memory, and its bytes.

        ``ValueError``: it is a view of something else.
        """
        size = view.nbytes
        address = _host_address(view)
        for region in self.regions:
            offset = address - _host_address(region.view)
            if offset >= 0 and offset + size <= region.size:
                return region.guest_addr + offset, size
        raise ValueError(f"{size} bytes that are not the guest's")

    def _append_across(
        self, index: int, addr: int, length: int, slices: list[memoryview], writable: bool
    ) -> None:
        position, rest = addr, length
        while rest:
            if not 0 <= index < len(self._views_of_regions):
                break
            region = self._views_of_regions[index]
            start, size = region[:2]
            if not start <= position < start + size:
                break
            step = min(rest, start + size - position)
            slices.append(
                (region[3] if writable else region[2])[position - start : position - start + step]
            )
            position += step
            rest -= step
            index += 1
        if rest:
            raise VirtqueueError(
                f"{length} bytes at guest address {addr:#x} are outside the guest's memory"
            )


def _host_address(view: memoryview) -> int:
    """Return where the first byte of a writable view is in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _describe(region: Region) -> str:
    return f"guest {region.guest_addr:#x}, front-end {region.user_addr:#x}, {region.size:#x} bytes"
