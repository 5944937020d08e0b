# SPDX-License-Identifier: Apache-2.0
"""The guest's side of virtqueues: its memory, and the driver's half of a split ring.

The ring is right, or wrong in the way that the test chooses.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

NEXT, WRITE, INDIRECT = 1, 2, 4

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")


@dataclass(frozen=True)
class Buffer:
    """Guest memory that a descriptor points to."""

    addr: int
    length: int


@dataclass(frozen=True)
class RamRegion:
    """A part of guest memory that is shared as one region."""

    guest_addr: int
    size: int
    user_addr: int
    offset: int


class GuestRam:
    """Guest memory in a memfd, in equal adjacent regions.

    A guest address is the offset in the file + ``BASE``.
    """

    BASE = 0x10_0000
    USER_BASE = 0x7F00_0000_0000

    def __init__(self, size: int = 16 << 20, regions: int = 2) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        # One load or store each: struct takes a 16-bit number apart into bytes, and a device in
        # another process could see one of them without the other.
        self._shorts = memoryview(self._map).cast("H")
        step = size // regions
        # A gap between the regions in the front-end's space, none in the guest's.
        self.regions = [
            RamRegion(self.BASE + i * step, step, self.USER_BASE + i * (step + (1 << 20)), i * step)
            for i in range(regions)
        ]
        self._next = 0
        self.size = size

    def allocate(self, length: int, align: int = 16) -> int:
        """Return the guest address of ``length`` zeroed bytes that nobody else gets."""
        start = -(-self._next // align) * align
        if start + length > self.size:
            raise MemoryError("the test's guest memory is used up")
        self._next = start + length
        self._map[start : start + length] = bytes(length)
        return self.BASE + start

    def mark(self) -> int:
        """Return a position for ``rewind``."""
        return self._next

    def rewind(self, mark: int) -> None:
        """Free all that was allocated since ``mark``."""
        self._next = mark

    def user_addr(self, guest_addr: int) -> int:
        """Return the front-end's address of a guest address."""
        for region in self.regions:
            if region.guest_addr <= guest_addr < region.guest_addr + region.size:
                return region.user_addr + guest_addr - region.guest_addr
        raise ValueError(f"{guest_addr:#x} is no guest memory")

    def read(self, addr: int, length: int) -> bytes:
        """Return bytes of guest memory."""
        return self._map[addr - self.BASE : addr - self.BASE + length]

    def write(self, addr: int, data: bytes) -> None:
        """Change bytes of guest memory."""
        self._map[addr - self.BASE : addr - self.BASE + len(data)] = data

    def read_short(self, addr: int) -> int:
        """Return the 16-bit number at an even address, read as one."""
        return self._shorts[(addr - self.BASE) // 2]

    def write_short(self, addr: int, value: int) -> None:
        """Change the 16-bit number at an even address as one, modulo 65536."""
        self._shorts[(addr - self.BASE) // 2] = value & 0xFFFF

    def share(self) -> memoryview:
        """Return a second mapping of the memory, as the daemon would have it."""
        return memoryview(mmap.mmap(self.fd, self.size))

    def close(self) -> None:
        """Give the memory back."""
        self._shorts.release()
        self._map.close()
        os.close(self.fd)


class DriverQueue:
    """The driver's side of one split ring. ``base``: both indices begin there."""

    def __init__(self, ram: GuestRam, size: int, event_idx: bool, base: int = 0) -> None:
        self.ram = ram
        self.size = size
        self.event_idx = event_idx
        self.descriptors = ram.allocate(16 * size)
        self.available = ram.allocate(6 + 2 * size)
        self.used = ram.allocate(6 + 8 * size)
        self.base = base
        self.next_available = base
        self.next_used = base
        self._published = base
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        ram.write_short(self.available + 2, base)
        ram.write_short(self.used + 2, base)

    def set_descriptor(
        self, index: int, addr: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        """Write one descriptor of the table."""
        self.ram.write(
            self.descriptors + 16 * index, _DESCRIPTOR.pack(addr, length, flags, following)
        )

    def write_table(self, addr: int, buffers: Sequence[tuple[int, int, int, int]]) -> None:
        """Write an indirect table: (addr, length, flags, next) each."""
        self.ram.write(addr, b"".join(_DESCRIPTOR.pack(*buffer) for buffer in buffers))

    def add(
        self, readable: Sequence[Buffer], writable: Sequence[Buffer], indirect: bool = False
    ) -> int:
        """Put a chain into the ring, not yet visible (``publish``); returns its head."""
        flags = [(p, 0) for p in readable] + [(p, WRITE) for p in writable]
        entries = [
            (p.addr, p.length, f | (NEXT if i + 1 < len(flags) else 0), i + 1)
            for i, (p, f) in enumerate(flags)
        ]
        if indirect:
            table = self.ram.allocate(16 * len(entries))
            self.write_table(table, entries)
            indices = [self._free.pop(0)]
            self.set_descriptor(indices[0], table, 16 * len(entries), INDIRECT)
        else:
            indices = [self._free.pop(0) for _ in entries]
            for i, (addr, length, flag, _) in enumerate(entries):
                self.set_descriptor(
                    indices[i], addr, length, flag, indices[i + 1] if flag & NEXT else 0
                )
        self._chains[indices[0]] = indices
        self.set_available(indices[0])
        return indices[0]

    def set_available(self, head: int) -> None:
        """Put ``head`` into the available ring, not yet visible."""
        self.ram.write_short(self.available + 4 + 2 * (self.next_available % self.size), head)
        self.next_available = (self.next_available + 1) & 0xFFFF

    def publish(self) -> bool:
        """Let the device see what was added; says whether it wants a kick for it."""
        old, self._published = self._published, self.next_available
        self.ram.write_short(self.available + 2, self.next_available)
        self._fence()
        if not self.event_idx:
            return not self.ram.read_short(self.used) & 1
        event = self.ram.read_short(self.used + 4 + 8 * self.size)
        return (self.next_available - event - 1) & 0xFFFF < (self.next_available - old) & 0xFFFF

    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt at the next used chain, or for none."""
        if self.event_idx:
            event = self.next_used if wanted else self.next_used + 0x8000
            self.ram.write_short(self.available + 4 + 2 * self.size, event)
        else:
            self.ram.write_short(self.available, 0 if wanted else 1)
        self._fence()

    def _fence(self) -> None:
        # The device may be in another process: what is written here must be seen before what is
        # read next, or each side waits for the other. A lock's atomic operation is such a fence.
        with self._lock:
            pass

    def used_index(self) -> int:
        """Return the index of the used ring."""
        return self.ram.read_short(self.used + 2)

    def used_count(self) -> int:
        """Return how many used chains have not been taken."""
        return (self.ram.read_short(self.used + 2) - self.next_used) & 0xFFFF

    def take_used(self) -> tuple[int, int] | None:
        """Return (head, written) of the next used chain, and free its descriptors.

        ``None``: no chain is in the used ring.
        """
        if not self.used_count():
            return None
        where = self.used + 4 + 8 * (self.next_used % self.size)
        head, written = _USED_ELEMENT.unpack(self.ram.read(where, 8))
        self.next_used = (self.next_used + 1) & 0xFFFF
        self._free.extend(self._chains.pop(head, []))
        return head, written
