# SPDX-License-Identifier: Apache-2.0
"""Random operations on one file, compared with a model in memory, as fsx does.

Usage: python3 random_io.py FILE SEED STEPS WAY...

WAY is buffered, mapped, direct, sizes, space, copy or again. The program prints "agrees" with size
and CRC-32 of the file's content at the end, or the difference and the last steps. It uses the
standard library only.
"""

import ctypes
import errno
import mmap
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable
from random import Random

LARGEST = 256 * 1024
#: The most bytes that one call reads or writes.
LARGEST_TRANSFER = 64 * 1024
BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE, ZERO = 1, 2, 16
LIBC = ctypes.CDLL(None, use_errno=True)


class Differs(Exception):  # noqa: N818
    """The file differs from the model."""


class ModelledFile:
    """A file, and the content that it must have."""

    def __init__(self, path: str, random: Random) -> None:
        self.path = path
        self.random = random
        self.model = bytearray()
        self.fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self.direct = -1
        self.buffer = mmap.mmap(-1, LARGEST_TRANSFER + BLOCK)

    def span(self, within: int, align: int = 1) -> tuple[int, int]:
        """Return an offset of at most `within`, and a length."""
        start = self.random.randrange(within + 1) // align * align
        length = self.random.choice(
            (
                1,
                10,
                511,
                BLOCK,
                BLOCK + 1,
                LARGEST_TRANSFER,
                self.random.randrange(1, LARGEST_TRANSFER),
            )
        )
        return start, max(align, length // align * align)

    def data(self, length: int) -> bytes:
        """Return bytes to write."""
        return self.random.randbytes(length)

    def store(self, start: int, data: bytes) -> None:
        """Write to the model."""
        if start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    def check(self, start: int, found: bytes, length: int) -> None:
        """Compare bytes that were read with the model. Differs: they are not equal."""
        expected = bytes(self.model[start : start + length])
        if found != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None
            )
            where = (
                f"first at {start + at}"
                if at is not None
                else f"{len(found)} bytes instead of {len(expected)}"
            )
            raise Differs(f"{length} bytes from {start}: {where}; the size is {len(self.model)}")

    # What is done

    def write(self) -> str:
        start, length = self.span(LARGEST - LARGEST_TRANSFER)
        data = self.data(length)
        done = os.pwrite(self.fd, data, start)
        self.store(start, data[:done])
        return f"write {start} {length}"

    def write_vectors(self) -> str:
        start, length = self.span(LARGEST - LARGEST_TRANSFER)
        data = self.data(length)
        cut = self.random.randrange(length + 1)
        done = os.pwritev(self.fd, [data[:cut], data[cut:]], start)
        self.store(start, data[:done])
        return f"write vectors {start} {cut} {length - cut}"

    def append(self) -> str:
        if len(self.model) > LARGEST - LARGEST_TRANSFER:
            return "append nothing"
        data = self.data(self.random.randrange(1, 2000))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.store(len(self.model), data)
        return f"append {len(data)}"

    def read(self) -> str:
        start, length = self.span(LARGEST)
        self.check(start, os.pread(self.fd, length, start), length)
        return f"read {start} {length}"

    def read_mapped(self) -> str:
        if not self.model:
            return "read nothing mapped"
        start, length = self.span(len(self.model) - 1)
        with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as view:
            self.check(start, view[start : start + length], length)
        return f"read mapped {start} {length}"

    def write_mapped(self) -> str:
        if not self.model:
            return "write nothing mapped"
        start, length = self.span(len(self.model) - 1)
        data = self.data(min(length, len(self.model) - start))
        with mmap.mmap(self.fd, len(self.model)) as view:
            view[start : start + len(data)] = data
            if self.random.random() < 0.3:
                view.flush()
        self.store(start, data)
        return f"write mapped {start} {len(data)}"

    def read_direct(self) -> str:
        start, length = self.span(LARGEST, BLOCK)
        view = memoryview(self.buffer)[:length]
        done = os.preadv(self.direct, [view], start)
        self.check(start, bytes(view[:done]), length)
        return f"read direct {start} {length}"

    def write_direct(self) -> str:
        start, length = self.span(LARGEST - LARGEST_TRANSFER, BLOCK)
        data = self.data(length)
        self.buffer[:length] = data
        done = os.pwritev(self.direct, [memoryview(self.buffer)[:length]], start)
        self.store(start, data[:done])
        return f"write direct {start} {length}"

    def truncate(self) -> str:
        size = self.random.choice((0, len(self.model), self.random.randrange(LARGEST)))
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        self.resize(size)
        return f"truncate {size}"

    def resize(self, size: int) -> None:
        """Change the size of the model."""
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def allocate(self) -> str:
        start, length = self.span(LARGEST - LARGEST_TRANSFER)
        mode, name = self.random.choice(
            (
                (0, "allocate"),
                (KEEP_SIZE, "allocate and keep"),
                (KEEP_SIZE | PUNCH_HOLE, "punch"),
                (ZERO, "zero"),
            )
        )
        if LIBC.fallocate(self.fd, mode, ctypes.c_int64(start), ctypes.c_int64(length)) < 0:
            if ctypes.get_errno() != errno.EOPNOTSUPP:
                raise OSError(ctypes.get_errno(), "fallocate")
            return f"{name} is not supported"
        end = start + length
        if mode in (0, ZERO) and end > len(self.model):
            self.resize(end)
        if mode not in (0, KEEP_SIZE):
            here = self.model[start:end]
            self.model[start : start + len(here)] = bytes(len(here))
        return f"{name} {start} {length}"

    def copy(self) -> str:
        if len(self.model) < 2:
            return "copy nothing"
        length = self.random.randrange(1, min(LARGEST_TRANSFER, len(self.model) // 2) + 1)
        source = self.random.randrange(len(self.model) - length + 1)
        target = self.random.randrange(LARGEST - LARGEST_TRANSFER)
        if abs(source - target) < length:
            return "copy nothing onto itself"
        done = os.copy_file_range(self.fd, self.fd, length, source, target)
        self.store(target, bytes(self.model[source : source + done]))
        return f"copy {length} from {source} to {target}"

    def reopen(self) -> str:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)
        return "reopen"

    def sync(self) -> str:
        os.fsync(self.fd)
        return "fsync"

    def size(self) -> str:
        found = (
            os.fstat(self.fd).st_size,
            os.stat(self.path).st_size,
            os.lseek(self.fd, 0, os.SEEK_END),
        )
        if set(found) != {len(self.model)}:
            raise Differs(f"sizes are {found} instead of {len(self.model)}")
        return "size"


def ways_of(file: ModelledFile) -> dict[str, list[Callable[[], str]]]:
    """Return the operations of each way."""
    return {
        "buffered": [file.write, file.write_vectors, file.append, file.read, file.read],
        "mapped": [file.read_mapped, file.write_mapped],
        "direct": [file.read_direct, file.write_direct],
        "sizes": [file.truncate, file.size],
        "space": [file.allocate],
        "copy": [file.copy],
        "again": [file.reopen, file.sync],
    }


def main() -> None:
    """Perform the steps, then compare the whole file."""
    path, seed, steps, *ways = sys.argv[1:]
    random = Random(int(seed))
    file = ModelledFile(path, random)
    if "direct" in ways:
        file.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    operations = [operation for way in ways for operation in ways_of(file)[way]]
    done: deque[str] = deque(maxlen=30)
    try:
        for number in range(int(steps)):
            done.append(f"{number}: {random.choice(operations)()}")
        file.check(0, os.pread(file.fd, 2 * LARGEST, 0), 2 * LARGEST)
    except Differs as difference:
        sys.exit("\n".join([f"differs: {difference}", *done]))
    os.close(file.fd)
    print(f"agrees {len(file.model)} {zlib.crc32(file.model):08x}")


main()
