# SPDX-License-Identifier: Apache-2.0
"""Which chains are in flight, and what is being changed, in a file that is shared memory.

A chain that is served immediately needs no entry: the ring goes on after those that were added to
the used ring, and those that have an entry here. An entry is made when a reply is deferred, and
removed when it is in the used ring. So most requests cost nothing.

Before something is changed that cannot be changed twice, the intent is recorded: what the names
meant before.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import NamedTuple

from farwatchd.wire.state import StateError

_MAGIC = int.from_bytes(b"FWRINGS\0", "little")
VERSION = 1
#: Entries. A guest can have more chains in flight with large rings; then nothing is known of them.
ENTRIES = 16384
# Positions in units of 8 bytes.
_MAGIC_AT, _VERSION_AT, _OVERFULL_AT, _COMPLETING_AT, _USED_AT, _INTENT_AT, _MESSAGE_AT = range(7)
_QUEUES_AT = 8
#: The queues that have run, one bit each.
_QUEUE_WORDS = 16
_FIRST = 512
_ENTRY = 3
_SIZE = (_FIRST + _ENTRY * ENTRIES) * 8
#: Where an intent is, in bytes: two times in nanoseconds, lengths of two identities, a number;
#: these.
_INTENT_BYTES_AT = 32 * 8
_UNTIL_AT = _INTENT_BYTES_AT // 8 + 1
_INTENT = struct.Struct("<QQIIQ")
_INTENT_ROOM = _FIRST * 8 - _INTENT_BYTES_AT - _INTENT.size

#: CLOCK_REALTIME_COARSE: the clock that files get their times of.
_REALTIME_COARSE = 5


class InFlightChain(NamedTuple):
    """A chain whose reply was deferred, with the number of its request."""

    queue: int
    head: int
    unique: int


class Intent(NamedTuple):
    """What the request ``unique`` was about to change, at ``time_ns`` (since the epoch).

    The process that recorded it has ended before ``until_ns``, unless that is 0.
    ``first``, ``second``: identities of the inodes that its names had; empty for none, or if they
    cannot be known without waiting for a server. ``number``: the size of a file that is appended
    to, or whether an attribute was set.
    """

    unique: int
    time_ns: int
    until_ns: int
    first: bytes
    second: bytes
    number: int


class InFlight:
    """The table, for the event loop's thread. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        """Map the file ``fd``; ``OSError`` if there is no room for it."""
        self.fd = fd
        #: Whether the file had something else than a table, so that nothing is known.
        self.damaged = False
        self._load(os.fstat(fd).st_size)

    def _load(self, size: int) -> None:
        os.posix_fallocate(self.fd, 0, _SIZE)
        os.ftruncate(self.fd, _SIZE)
        self._view = memoryview(mmap.mmap(self.fd, _SIZE))
        self._words = self._view.cast("Q")
        self._order = 0
        self._free: list[int] = []
        self._slots: dict[tuple[int, int], int] = {}
        words = self._words
        if size != _SIZE or (words[_MAGIC_AT], words[_VERSION_AT]) != (_MAGIC, VERSION):
            self.damaged = bool(size)
            self.clear()
            return
        for slot in range(ENTRIES - 1, -1, -1):
            at = _FIRST + slot * _ENTRY
            if not words[at]:
                self._free.append(slot)
                continue
            self._order = max(self._order, words[at])
            self._slots[words[at + 2] >> 16, words[at + 2] & 0xFFFF] = slot

    @property
    def view(self) -> memoryview:
        """The table's memory, for what else records intents."""
        return self._view

    def clear(self) -> None:
        """Forget everything: no chain is in flight, no queue has run."""
        words = self._words
        # First what makes all else valid.
        within = words[_MESSAGE_AT]
        words[_MAGIC_AT] = 0
        self._view[8:] = bytes(_SIZE - 8)
        words[_MESSAGE_AT] = within
        words[_VERSION_AT] = VERSION
        words[_MAGIC_AT] = _MAGIC
        self._order = 0
        self._slots.clear()
        self._free = list(range(ENTRIES - 1, -1, -1))

    # Chains

    def add(self, queue: int, head: int, unique: int) -> None:
        """Record that the reply to a chain is deferred. A chain that is recorded stays so."""
        if (queue, head) in self._slots:
            return
        words = self._words
        if not self._free:
            words[_OVERFULL_AT] = 1
            return
        slot = self._free.pop()
        self._slots[queue, head] = slot
        self._order += 1
        at = _FIRST + slot * _ENTRY
        words[at + 1] = unique
        words[at + 2] = queue << 16 | head
        words[at] = self._order

    def completing(self, queue: int, head: int, used: int) -> None:
        """Record that a chain is added to the used ring, whose index is ``used`` afterwards."""
        slot = self._slots.get((queue, head))
        if slot is not None:
            self._words[_USED_AT] = used & 0xFFFF
            self._words[_COMPLETING_AT] = slot + 1

    def completed(self, queue: int, head: int) -> None:
        """Record that a chain was added to the used ring."""
        slot = self._slots.pop((queue, head), None)
        if slot is not None:
            self._words[_FIRST + slot * _ENTRY] = 0
            self._words[_COMPLETING_AT] = 0
            self._free.append(slot)

    def settle(self, queue: int, used: int) -> None:
        """Remove the chain that a former process has just completed, by a ring's used index."""
        completing = self._words[_COMPLETING_AT]
        for (of, head), slot in self._slots.items():
            if slot == completing - 1 and of == queue:
                if self._words[_USED_AT] == used:
                    self.completed(queue, head)
                # It is true of this index only.
                self._words[_COMPLETING_AT] = 0
                return

    def chains(self) -> list[InFlightChain]:
        """Return the chains in flight, in the order of their requests; ``StateError``."""
        words = self._words
        if words[_OVERFULL_AT]:
            raise StateError("more requests were in flight than are recorded")
        slots = sorted((words[_FIRST + slot * _ENTRY], key) for key, slot in self._slots.items())
        return [
            InFlightChain(*key, words[_FIRST + self._slots[key] * _ENTRY + 1]) for _, key in slots
        ]

    # Queues

    def has_run(self, queue: int) -> None:
        """Record that a queue runs."""
        word, bit = divmod(queue, 64)
        if word < _QUEUE_WORDS:
            self._words[_QUEUES_AT + word] |= 1 << bit

    def queues(self) -> set[int]:
        """Return the queues that have run."""
        return {
            word * 64 + bit
            for word in range(_QUEUE_WORDS)
            for bit in range(64)
            if self._words[_QUEUES_AT + word] >> bit & 1
        }

    # Messages of the front-end

    @property
    def within_message(self) -> bool:
        """Whether a message of the front-end was being handled."""
        return bool(self._words[_MESSAGE_AT])

    @within_message.setter
    def within_message(self, within: bool) -> None:
        self._words[_MESSAGE_AT] = within

    # Intents

    def intend(self, unique: int, first: bytes = b"", second: bytes = b"", number: int = 0) -> None:
        """Record the intent of a request."""
        words, view = self._words, self._view
        words[_INTENT_AT] = 0
        at = _INTENT_BYTES_AT
        now = time.clock_gettime_ns(_REALTIME_COARSE)
        _INTENT.pack_into(view, at, now, 0, len(first), len(second), number)
        names = (first + second)[:_INTENT_ROOM]
        at += _INTENT.size
        view[at : at + len(names)] = names
        words[_INTENT_AT] = unique

    def intent(self) -> Intent | None:
        """Return the last intent."""
        unique = self._words[_INTENT_AT]
        if not unique:
            return None
        at = _INTENT_BYTES_AT
        time_ns, until_ns, first, second, number = _INTENT.unpack_from(self._view, at)
        at += _INTENT.size
        names = bytes(self._view[at : at + _INTENT_ROOM])
        second_name = names[first : first + second]
        return Intent(unique, time_ns, until_ns, names[:first], second_name, number)

    def bound_intent(self, ended_ns: int) -> None:
        """Record when the process that recorded the intent had ended, unless that is known."""
        if not self._words[_UNTIL_AT]:
            self._words[_UNTIL_AT] = ended_ns
