# SPDX-License-Identifier: Apache-2.0
"""Descriptor chains: checked, and turned into views of guest memory (Virtio 1.2, 2.7.5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory, RegionView

DESC_NEXT = 1
DESC_WRITE = 2
DESC_INDIRECT = 4

#: Descriptors of one indirect table; Linux stays below the ring's size, other drivers go up to
#: this.
MAX_INDIRECT = 1024
#: A chain's lengths add up to less than this, so that any used length fits 32 bits.
MAX_CHAIN_BYTES = 1 << 32

_DESCRIPTOR = struct.Struct("<QIHH")
_DESCRIPTOR_SIZE = _DESCRIPTOR.size
_unpack, _unpack_all = _DESCRIPTOR.unpack_from, _DESCRIPTOR.iter_unpack
_MAX_TABLE = MAX_INDIRECT * _DESCRIPTOR_SIZE
#: Bytes of the tables whose chains are cached: 8192 descriptors, whose views take 1.5 MiB.
_MAX_CACHED = 8192 * _DESCRIPTOR_SIZE
_NO_REGION: RegionView = (0, 0, memoryview(b""), memoryview(b""))


@dataclass(slots=True)
class Chain:
    """One checked descriptor chain: its readable and its writable memory, as views.

    The former are read-only.
    """

    readable: Sequence[memoryview]
    readable_size: int
    writable: Sequence[memoryview]
    writable_size: int

    @classmethod
    def of(cls, readable: Sequence[memoryview], writable: Sequence[memoryview]) -> Chain:
        """Make a chain of these views of bytes."""
        return cls(readable, sum(map(len, readable)), writable, sum(map(len, writable)))


class ChainReader:
    """Reads the chains of one ring: ``descriptors`` is its table of ``size``."""

    def __init__(
        self, memory: GuestMemory, size: int, descriptors: memoryview, indirect: bool
    ) -> None:
        self._memory = memory
        self._size = size
        self._descriptors = descriptors
        self._indirect = indirect
        self._region = _NO_REGION
        self._cached: dict[bytes, Chain] = {}
        self._cached_bytes = 0

    def chain(self, head: int) -> Chain:
        """Return the chain that begins with descriptor ``head``.

        ``VirtqueueError`` when it breaks the rules.
        """
        if self._indirect and head < self._size:
            addr, length, flags, _ = _unpack(self._descriptors, head * _DESCRIPTOR_SIZE)
            if flags == DESC_INDIRECT and length <= _MAX_TABLE:
                chain = self._chain_of_table(addr, length)
                if chain is not None:
                    return chain
        return self._any_chain(head)

    def _chain_of_table(self, addr: int, length: int) -> Chain | None:
        """Return the chain of the indirect table at ``addr``.

        None when the table is unusual or wrong.

        A driver uses the same memory again and again, so most tables equal an earlier one.
        """
        low, size, view, _ = self._region
        start, end = addr - low, addr - low + length
        if not 0 <= start < end <= size:
            region = self._memory.region_of(addr, length)
            if region is None:
                return None
            low, size, view, _ = self._region = region
            start, end = addr - low, addr - low + length
        table = view[start:end].tobytes()
        chain = self._cached.get(table)
        if chain is None:
            chain = self._usual_chain(table)
            if chain is not None:
                self._remember(table, chain)
        return chain

    def _remember(self, table: bytes, chain: Chain) -> None:
        self._cached_bytes += len(table)
        if self._cached_bytes > _MAX_CACHED:
            self._cached.clear()
            self._cached_bytes = len(table)
        self._cached[table] = chain

    def _usual_chain(self, table: bytes) -> Chain | None:
        """Return the chain of a table as Linux writes it; None for another one.

        In such a table each descriptor's next is the one after it.
        """
        count = len(table) // _DESCRIPTOR_SIZE
        if len(table) != count * _DESCRIPTOR_SIZE:
            return None
        starts: list[int] = []
        ends: list[int] = []
        end, total, flags = -1, 0, 0
        first_writable = readable_size = -1
        for position, (addr, length, flags, following) in enumerate(_unpack_all(table), 1):
            if flags & DESC_WRITE:
                if first_writable < 0:
                    first_writable, readable_size, end = len(starts), total, -1
            elif first_writable >= 0:
                return None
            if addr != end:
                starts.append(addr)
                ends.append(addr)
            ends[-1] = end = addr + length
            total += length
            if not length or (
                (following != position or flags & ~DESC_WRITE != DESC_NEXT) and position != count
            ):
                return None
        if flags & ~DESC_WRITE or total >= MAX_CHAIN_BYTES:
            return None
        if first_writable < 0:
            return Chain(self._views(starts, ends), total, (), 0)
        readable = self._views(starts[:first_writable], ends[:first_writable])
        writable = self._views(starts[first_writable:], ends[first_writable:], writable=True)
        return Chain(readable, readable_size, writable, total - readable_size)

    def _views(
        self, starts: list[int], ends: list[int], writable: bool = False
    ) -> tuple[memoryview, ...]:
        """Return the memory from each of ``starts`` to that of ``ends``.

        ``VirtqueueError``: some of it is outside the guest's memory.
        """
        if not starts:
            return ()
        region = self._region
        low, size, view = region[0], region[1], region[3] if writable else region[2]
        if min(starts) >= low and max(ends) <= low + size:
            return tuple(
                [view[start - low : end - low] for start, end in zip(starts, ends, strict=True)]
            )
        slices: list[memoryview] = []
        for start, end in zip(starts, ends, strict=True):
            self._memory.append_slices(start, end - start, slices, writable)
        return tuple(slices)

    def _any_chain(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        table, count, index, left = self._descriptors, self._size, head, self._size
        in_indirect = False
        side = readable
        total = writable_size = 0
        # Buffers that are adjacent in memory, as large ones mostly are, become one slice.
        start, size = -1, 0
        while True:
            if index >= count:
                raise VirtqueueError(f"chain {head}: descriptor {index} of a table of {count}")
            if not left:
                raise VirtqueueError(
                    f"chain {head}: more descriptors than the table has ({count}): a loop"
                )
            left -= 1
            addr, length, flags, following = _unpack(table, index * _DESCRIPTOR_SIZE)
            if flags & DESC_INDIRECT:
                if in_indirect:
                    raise VirtqueueError(
                        f"chain {head}: an indirect table inside an indirect table"
                    )
                table = self._indirect_table(head, addr, length, flags)
                in_indirect, count, index, left = True, length // 16, 0, length // 16
                continue
            total += length
            if flags & DESC_WRITE:
                writable_size += length
                if side is readable:
                    if size:
                        self._memory.append_slices(start, size, readable)
                    side, start, size = writable, -1, 0
            elif side is writable:
                raise VirtqueueError(f"chain {head}: a readable descriptor after a writable one")
            if addr == start + size and size:
                size += length
            elif length:
                if size:
                    self._memory.append_slices(start, size, side, side is writable)
                start, size = addr, length
            if not flags & DESC_NEXT:
                break
            index = following
        if size:
            self._memory.append_slices(start, size, side, side is writable)
        if total >= MAX_CHAIN_BYTES:
            raise VirtqueueError(f"chain {head}: {total} bytes in one chain")
        return Chain(readable, total - writable_size, writable, writable_size)

    def _indirect_table(self, head: int, addr: int, length: int, flags: int) -> memoryview:
        if not self._indirect:
            raise VirtqueueError(f"chain {head}: an indirect descriptor, which was not negotiated")
        if flags & DESC_NEXT:
            raise VirtqueueError(f"chain {head}: an indirect descriptor that has a next one")
        if not length or length % 16 or length > 16 * max(MAX_INDIRECT, self._size):
            raise VirtqueueError(f"chain {head}: an indirect table of {length} bytes")
        slices = self._memory.slices(addr, length)
        if len(slices) == 1:
            return slices[0]
        return memoryview(b"".join(slices))
