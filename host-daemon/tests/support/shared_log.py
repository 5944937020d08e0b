# SPDX-License-Identifier: Apache-2.0
"""The front-end's side of dirty logging: the log, and a copy of the guest's memory made by it."""

from __future__ import annotations

import mmap
import os

from farwatchd.virtqueue.dirty_log import PAGE_SIZE
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.vhost_user import VHOST_F_LOG_ALL
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.driver import GuestRam
from tests.support.frontend import FrontEnd


class Log:
    """A log in a memfd, of ``size`` bytes from ``offset`` on."""

    def __init__(self, size: int, offset: int = 0) -> None:
        self.size = size
        self.offset = offset
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + size)
        self._map = mmap.mmap(self.fd, offset + size)

    def payload(self) -> bytes:
        """Return the payload of SET_LOG_BASE."""
        return wire.log_base.pack(size=self.size, offset=self.offset)

    def take(self) -> set[int]:
        """Return the addresses of the pages that are marked, and clear their bits."""
        found = set()
        for position in range(self.offset, self.offset + self.size):
            byte = self._map[position]
            if byte:
                self._map[position] = 0
                first = (position - self.offset) * 8
                found |= {(first + bit) * PAGE_SIZE for bit in range(8) if byte >> bit & 1}
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.fd)


class ShadowedRam(GuestRam):
    """Guest memory with a copy that has what the driver writes; the rest comes by the log."""

    def __init__(self, size: int, regions: int) -> None:
        super().__init__(size, regions)
        self.shadow = bytearray(size)

    def allocate(self, length: int, align: int = 16) -> int:
        addr = super().allocate(length, align)
        start = addr - self.BASE
        self.shadow[start : start + length] = bytes(length)
        return addr

    def write(self, addr: int, data: bytes) -> None:
        super().write(addr, data)
        self.shadow[addr - self.BASE : addr - self.BASE + len(data)] = data

    def write_short(self, addr: int, value: int) -> None:
        super().write_short(addr, value)
        self.shadow[addr - self.BASE : addr - self.BASE + 2] = (value & 0xFFFF).to_bytes(
            2, "little"
        )

    def copy_all(self) -> None:
        """Make the copy the same."""
        self.shadow[:] = self._map[:]

    def copy_pages(self, pages: set[int]) -> None:
        """Copy pages of guest memory."""
        for addr in pages:
            start = addr - self.BASE
            if 0 <= start < self.size:
                self.shadow[start : start + PAGE_SIZE] = self._map[start : start + PAGE_SIZE]

    def different_pages(self) -> list[int]:
        """Return the addresses of the pages that are not the same in the copy."""
        if self.shadow == self._map[:]:
            return []
        return [
            start + self.BASE
            for start in range(0, self.size, PAGE_SIZE)
            if self.shadow[start : start + PAGE_SIZE] != self._map[start : start + PAGE_SIZE]
        ]


def log_size(ram: GuestRam) -> int:
    """Return the bytes of a log for all of the guest's memory."""
    end = max(each.guest_addr + each.size for each in ram.regions)
    return -(-end // (8 * PAGE_SIZE))


def share_log(front_end: FrontEnd, log: Log) -> int:
    """Send SET_LOG_BASE; return what the reply has."""
    front_end.send(Request.SET_LOG_BASE, log.payload(), [log.fd])
    return int(wire.number.unpack_from(front_end.receive(Request.SET_LOG_BASE)).value)


def set_logging(front_end: FrontEnd, logging: bool) -> int:
    """Begin or end logging as QEMU does, while rings run; return the acknowledgement."""
    features = front_end.acked | (VHOST_F_LOG_ALL if logging else 0)
    refused = front_end.try_set(Request.SET_FEATURES, wire.number.pack(value=features))
    if not refused:
        for index in range(len(front_end.channels)):
            front_end.set(Request.SET_VRING_ADDR, ring_address(front_end, index, logging))
    return refused


def ring_address(front_end: FrontEnd, index: int, logging: bool) -> bytes:
    """Return the payload of SET_VRING_ADDR."""
    queue, ram = front_end.channels[index].queue, front_end.ram
    return wire.vring_addr.pack(
        index=index,
        flags=wire.VRING_LOG if logging else 0,
        descriptor=ram.user_addr(queue.descriptors),
        available=ram.user_addr(queue.available),
        used=ram.user_addr(queue.used),
        log=queue.used if logging else 0,
    )
