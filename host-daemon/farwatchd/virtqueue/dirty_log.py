# SPDX-License-Identifier: Apache-2.0
"""The log of dirty pages that a front-end shares while it migrates the guest.

See "Migration" in QEMU's docs/interop/vhost-user.rst. Each page of guest memory has a bit, which
the back-end sets after it has written there. The front-end and other back-ends change other bits of
the same word at the same time, so this is an atomic operation.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

from farwatchd.linux.futex import set_bit
from farwatchd.virtqueue.memory import GuestMemory

#: ``VHOST_LOG_PAGE``: bytes of guest memory that a bit is for.
PAGE_SIZE = 0x1000
_PAGES_OF_BYTE = 8
_BYTE_PAGES = _PAGES_OF_BYTE * PAGE_SIZE
_WORD = 4


class DirtyLog:
    """The mapped log, of ``size`` bytes from ``offset`` of its file. Owns a duplicate of that."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        """Map the log; ``fd`` stays the caller's. ``ValueError`` with a text for the log."""
        text = f"a dirty log of {size:#x} bytes at file offset {offset:#x}"
        if not size or offset % _WORD:
            raise ValueError(f"{text}: empty, or not aligned")
        skip = offset % mmap.ALLOCATIONGRANULARITY
        try:
            if os.fstat(fd).st_size < offset + size:
                raise ValueError(f"{text}: its file is shorter")
            # Words are changed, and a mapping has whole pages.
            mapping = mmap.mmap(fd, skip + size, mmap.MAP_SHARED, offset=offset - skip)
            self.fd = os.dup(fd)
        except (OSError, OverflowError) as error:
            raise ValueError(f"{text} cannot be mapped: {error}") from error
        self.offset = offset
        self.size = size
        #: An eventfd that is written after the log; borrowed.
        self.event_fd: int | None = None
        self._bytes = memoryview(mapping)[skip:]
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        self._fence = threading.Lock()

    def close(self) -> None:
        """Close the descriptor. The mapping ends with the last use of it."""
        os.close(self.fd)

    def covers(self, memory: GuestMemory) -> bool:
        """Return whether each page of the memory has its bit."""
        end = max((each.guest_addr + each.size for each in memory.regions), default=0)
        return self.covers_range(0, end)

    def covers_range(self, addr: int, size: int) -> bool:
        """Return whether each page of ``size`` bytes at guest address ``addr`` has its bit."""
        return addr + size <= self.size * _BYTE_PAGES

    def mark(self, addr: int, size: int) -> None:
        """Set the bits of ``size`` > 0 bytes at guest address ``addr``, which were written.

        The log must cover them.
        """
        # A bit that is set already may have been set for what was there before. The front-end
        # reads a page after it has cleared its bit, so the page must be written before the bit
        # is read. A lock's atomic operation orders these.
        self._fence.acquire()
        self._fence.release()
        for page in range(addr // PAGE_SIZE, (addr + size - 1) // PAGE_SIZE + 1):
            position, bit = divmod(page, _PAGES_OF_BYTE)
            if not self._bytes[position] >> bit & 1:
                word, within = divmod(position, _WORD)
                set_bit(self._address + word * _WORD, within * _PAGES_OF_BYTE + bit)

    def mark_all(self, memory: GuestMemory) -> None:
        """Set the bits of all of the memory, which the log must cover."""
        for region in memory.regions:
            end = region.guest_addr + region.size
            # Bytes whose bits are all of this region: no bit of others is lost by an assignment.
            first = -(-region.guest_addr // _BYTE_PAGES)
            last = max(first, end // _BYTE_PAGES)
            self._bytes[first:last] = b"\xff" * (last - first)
            for start, stop in (
                (region.guest_addr, min(first * _BYTE_PAGES, end)),
                (max(last * _BYTE_PAGES, region.guest_addr), end),
            ):
                if start < stop:
                    self.mark(start, stop - start)
        self.announce()

    def announce(self) -> None:
        """Report to the front-end that the log has changed, if it wants that."""
        if self.event_fd is not None:
            try:
                os.eventfd_write(self.event_fd, 1)
            except OSError:
                # It is saturated, so its owner has been notified, or it is no eventfd.
                return
