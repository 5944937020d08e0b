# SPDX-License-Identifier: Apache-2.0
"""The journal's bytes: two files, of which one is valid.

They are written through shared memory: what was stored is in the file when the process is killed,
and that is all that is needed, since no guest outlives its host. A journal is compacted by writing
the other file, and making that one valid.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from farwatchd.wire.journal import END_AT, GENERATION_AT, MAGIC, MAX_SIZE, VERSION, header
from farwatchd.wire.state import StateError

#: Bytes that a file has at first.
_FIRST_SIZE = 1 << 18


def boot_id() -> bytes:
    """Return the id of the host's boot, 16 bytes. Call it before the sandbox is entered."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))


class _File:
    """One of the files, mapped. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None
        self.view = memoryview(b"")
        self.words = self.view.cast("Q")
        self.size = 0

    def start(self, boot: bytes) -> None:
        """Make the file empty and invalid; ``OSError``."""
        self.unmap()
        os.ftruncate(self.fd, 0)
        self.grow(_FIRST_SIZE)
        self.view[: header.size] = header.pack(magic=MAGIC, version=VERSION, boot=boot)

    def grow(self, size: int) -> None:
        """Give the file at least this size, with blocks on the disk; ``OSError``."""
        wanted, size = size, max(self.size, _FIRST_SIZE)
        while size < wanted:
            size *= 2
        # Without blocks on the disk, a store to memory could fail, and that ends the process.
        os.posix_fallocate(self.fd, 0, size)
        self.unmap()
        self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)
        self.words = self.view.cast("Q")
        self.size = size

    def unmap(self) -> None:
        """Unmap the file."""
        self.words.release()
        self.view.release()
        if self._map is not None:
            self._map.close()
            self._map = None
        self.view = memoryview(b"")
        self.words = self.view.cast("Q")
        self.size = 0


class JournalFiles:
    """The two files. Owns their descriptors."""

    def __init__(self, fds: tuple[int, int], boot: bytes) -> None:
        self._files = [_File(fd) for fd in fds]
        self._boot = boot
        self._current = 0
        self._generation = 0
        self._loaded = 0
        self._next_end = 0
        #: Gets a view of the valid file as far as it may be written, or None: see ``lend``.
        self._borrow: Callable[[memoryview | None], object] = _borrow_nothing
        self._most_lent = 0

    @property
    def fds(self) -> list[int]:
        """The descriptors."""
        return [each.fd for each in self._files]

    @property
    def size(self) -> int:
        """Bytes of the transactions."""
        words = self._files[self._current].words
        return words[END_AT] if words else 0

    def lend_to(self, borrow: Callable[[memoryview | None], object]) -> None:
        """Have ``lend`` call ``borrow`` with a view of the valid file, and with None to end that.

        The borrower appends, too: it stores a transaction, and then where all of them end. It
        releases the view when it is called again.
        """
        self._borrow = borrow

    def lend(self, most: int) -> None:
        """Have the borrower append while the transactions have at most ``most`` bytes."""
        self._most_lent = most
        file = self._files[self._current]
        self._borrow(file.view[: header.size + most] if most and file.size else None)

    def load(self) -> bytes:
        """Return the transactions of the valid file, empty if there is none; ``StateError``.

        ``OSError``. To append to it, call ``attach``.
        """
        best = b""
        for number, file in enumerate(self._files):
            size = os.fstat(file.fd).st_size
            head = os.pread(file.fd, header.size, 0)
            if len(head) < header.size:
                continue
            found = header.unpack_from(head)
            if not found.generation or found.generation <= self._generation:
                continue
            if found.magic != MAGIC:
                raise StateError("its journal does not begin as one does")
            if found.version != VERSION:
                raise StateError(f"it has version {found.version}, {VERSION} is supported")
            if found.boot != self._boot:
                raise StateError("it is of the time before the host was started")
            if found.end > min(size - header.size, MAX_SIZE):
                raise StateError("its journal is longer than its file")
            self._current, self._generation, self._loaded = number, found.generation, found.end
            best = _read(file.fd, found.end)
        return best

    def attach(self) -> None:
        """Go on with the file that ``load`` has found, or with a new one; ``OSError``."""
        if not self._generation:
            self.rewrite([])
            return
        self._files[self._current].grow(header.size + self._loaded)

    def check_room(self) -> None:
        """Raise ``OSError`` if there is no room for a new journal."""
        os.posix_fallocate(self._files[1 - self._current].fd, 0, _FIRST_SIZE)

    def append(self, data: bytes) -> None:
        """Add a transaction; it is in the file when this returns. ``OSError``."""
        file = self._files[self._current]
        start = header.size + file.words[END_AT]
        end = start + len(data)
        if end > file.size:
            if end > MAX_SIZE:
                raise OSError(None, "the journal is too large")
            self._borrow(None)
            file.grow(end)
            self.lend(self._most_lent)
        file.view[start:end] = data
        file.words[END_AT] = end - header.size

    def rewrite(self, transactions: Iterable[bytes]) -> None:
        """Have these transactions be all; ``OSError``. Until it returns the former ones are."""
        self.begin_next()
        for data in transactions:
            self.append_to_next(data)
        self.use_next()

    def begin_next(self) -> None:
        """Begin the other file, empty; ``OSError``."""
        self._files[1 - self._current].start(self._boot)
        self._next_end = header.size

    def append_to_next(self, data: bytes) -> None:
        """Add a transaction to the other file; ``OSError``."""
        file = self._files[1 - self._current]
        end = self._next_end + len(data)
        if end > file.size:
            file.grow(end)
        file.view[self._next_end : end] = data
        self._next_end = end

    def use_next(self) -> None:
        """Have the transactions of the other file be all; ``OSError``."""
        former, file = self._files[self._current], self._files[1 - self._current]
        file.words[END_AT] = self._next_end - header.size
        self._generation += 1
        file.words[GENERATION_AT] = self._generation
        self._current = 1 - self._current
        self.lend(0)
        former.unmap()
        os.ftruncate(former.fd, 0)

    def invalidate(self) -> None:
        """Have no journal."""
        self.lend(0)
        for file in self._files:
            file.unmap()
            # Also on a disk without room.
            with contextlib.suppress(OSError):
                os.ftruncate(file.fd, 0)
        self._generation = 0


def _borrow_nothing(_: memoryview | None) -> None:
    pass


def _read(fd: int, size: int) -> bytes:
    parts = []
    position = 0
    while position < size and (part := os.pread(fd, size - position, header.size + position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)
