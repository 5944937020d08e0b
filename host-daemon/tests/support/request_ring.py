# SPDX-License-Identifier: Apache-2.0
"""A ring with one request at a time, in memory of this process, without a front-end."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from farwatchd.virtio_fs.interfaces import DeferredReply, RequestHandler
from farwatchd.virtqueue import GuestMemory, Region, RingAddress, RingMemory
from tests.support.driver import NEXT, WRITE
from tests.support.native_part import make_ring
from tests.support.request_shapes import FILLER

SIZE = 16
_MEMORY = 4 << 20
_ADDRESS = 1 << 32
_AVAILABLE, _USED, _BUFFERS = 4096, 8192, 12288
_DESCRIPTOR = struct.Struct("<QIHH")
#: Later than any request.
_NEVER = (1 << 63) - 1


class RequestRing:
    """Serves requests as the device does: plain ones by the native part, if the handler has one."""

    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self.memory = memoryview(mmap.mmap(-1, _MEMORY))
        region = Region(_ADDRESS, _MEMORY, _ADDRESS, self.memory)
        memory = GuestMemory([region])
        places = RingAddress(_ADDRESS, _ADDRESS + _AVAILABLE, _ADDRESS + _USED)
        parts = RingMemory.at_user_addresses(memory, SIZE, places, True)
        self.ring = make_ring(memory, parts, 0, True, True)
        self._index = 0
        #: Requests that the native part has served.
        self.served = 0

    def send(
        self, readable: Sequence[bytes], rooms: Sequence[int]
    ) -> tuple[int | DeferredReply, bytes]:
        """Send a request in such buffers; return what was written, and all the writable memory."""
        at = self._describe(readable, rooms)
        struct.pack_into("<H", self.memory, _AVAILABLE + 4 + 2 * (self._index % SIZE), 0)
        self._index = (self._index + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, _AVAILABLE + 2, self._index)
        plain = self._handler.plain
        if plain is not None and plain.serve(self.ring, 1, _NEVER):
            self.served += 1
        else:
            popped = self.ring.pop()
            assert popped is not None
            written = self._handler.handle(popped[1])
            if isinstance(written, DeferredReply):
                # The memory has another use next. The reply goes nowhere.
                self.ring.add_used(0, 0)
                return written, b""
            self.ring.add_used(0, written)
        slot = _USED + 4 + 8 * ((self.ring.used - 1) % SIZE)
        head, written = struct.unpack_from("<II", self.memory, slot)
        assert head == 0
        return written, bytes(self.memory[at : at + sum(rooms)])

    def _describe(self, readable: Sequence[bytes], rooms: Sequence[int]) -> int:
        """Write the chain and its readable memory; return where its writable memory begins."""
        at = _BUFFERS
        buffers = []
        for data in readable:
            self.memory[at : at + len(data)] = data
            buffers.append((at, len(data), 0))
            # A gap, so that no two buffers are adjacent.
            at += len(data) + 1
        start = at
        for room in rooms:
            self.memory[at : at + room] = bytes([FILLER]) * room
            buffers.append((at, room, WRITE))
            at += room
        # An empty one for a request without any: the descriptor has the one before otherwise.
        buffers = [buffer for buffer in buffers if buffer[1]] or [(start, 0, 0)]
        for index, (place, size, flags) in enumerate(buffers):
            more = NEXT if index + 1 < len(buffers) else 0
            _DESCRIPTOR.pack_into(
                self.memory, 16 * index, _ADDRESS + place, size, flags | more, index + 1
            )
        return start
