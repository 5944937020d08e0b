# SPDX-License-Identifier: Apache-2.0
"""Cases: contents of files: reading, writing, sizes, holes, copying, mapping."""

import ctypes
import errno
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from posix_cases.kit import Cases, Observation, attempt, done, elsewhere, opened

CASES = Cases()
LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32


def digest(path: Path) -> str:
    """Return size and CRC-32 of a file's content."""
    data = path.read_bytes()
    return f"{len(data)} {zlib.crc32(data):08x}"


def called(call: Callable[..., int], *args: object) -> str:
    """Call a function of the C library; return "ok", or the name of its errno."""
    return "ok" if call(*args) == 0 else errno.errorcode[ctypes.get_errno()]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, release or zero a range."""
    if LIBC.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def pattern(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not repeat soon."""
    return Random(seed).randbytes(size)


@CASES.add
def reading_and_writing_at_any_place(at: Path) -> Iterator[Observation]:
    path = at / "f"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    yield "write", attempt(os.write, fd, b"0123456789")
    yield "position", os.lseek(fd, 0, os.SEEK_CUR)
    yield "pwrite beyond", attempt(os.pwrite, fd, b"end", 100_000)
    yield "hole", os.pread(fd, 20, 50_000) == bytes(20)
    yield "read at the end", attempt(os.pread, fd, 10, 100_003)
    yield "read over the end", attempt(os.pread, fd, 10, 100_000)
    yield "negative", (attempt(os.pread, fd, 1, -1), attempt(os.pwrite, fd, b"x", -1))
    yield "far", attempt(os.pwrite, fd, b"x", (1 << 63) - 1)
    yield "very far", attempt(os.pread, fd, 1, 1 << 45)
    yield "nothing", (attempt(os.write, fd, b""), attempt(os.read, fd, 0))
    yield "vectors", attempt(os.pwritev, fd, [b"a", b"bc", b"", b"d" * 5000], 3)
    parts = [bytearray(2), bytearray(0), bytearray(4096), bytearray(100)]
    yield (
        "read vectors",
        (attempt(os.preadv, fd, parts, 3), bytes(parts[0]), parts[2] == b"c" + b"d" * 4095),
    )
    yield "end", os.lseek(fd, 0, os.SEEK_END)
    yield "before the beginning", attempt(os.lseek, fd, -1, os.SEEK_SET)
    yield "whence", attempt(os.lseek, fd, 0, 9)
    os.close(fd)
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    yield "write to a reader", attempt(os.write, reader, b"x")
    yield "read from a writer", attempt(os.read, writer, 1)
    yield "truncate a reader", done(os.ftruncate, reader, 0)
    os.close(reader)
    os.close(writer)
    yield "all", digest(path)


@CASES.add
def appending_goes_to_the_end(at: Path) -> Iterator[Observation]:
    path = at / "f"
    first = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    second = os.open(path, os.O_RDWR)
    os.write(first, b"one ")
    os.pwrite(second, b"two ", 4)
    os.write(first, b"three ")
    yield "content", os.pread(second, 100, 0)
    yield "pwrite appends", (attempt(os.pwrite, first, b"four", 0), os.pread(second, 100, 0))
    os.ftruncate(second, 2)
    os.write(first, b"5")
    yield "after truncation", os.pread(second, 100, 0)
    os.close(first)
    os.close(second)

    def append(letter: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(50):
            os.write(fd, letter * 10)
        os.close(fd)

    path.write_bytes(b"")
    child = os.fork()
    if not child:
        append(b"a")
        os._exit(0)
    append(b"b")
    os.waitpid(child, 0)
    data = path.read_bytes()
    yield (
        "by two processes concurrently",
        (len(data), {data[i : i + 10] for i in range(0, len(data), 10)} == {b"a" * 10, b"b" * 10}),
    )


@CASES.add
def sizes_are_set(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(pattern(10_000))
    for size in (10_000, 5000, 0, 1, 4096, 4097, 3_000_000, 100):
        yield f"truncate {size}", (done(os.truncate, path, size), digest(path))
    fd = os.open(path, os.O_RDWR)
    for size in (50, 7000, -1, 1 << 62):
        yield f"ftruncate {size}", done(os.ftruncate, fd, size)
    yield "size", os.fstat(fd).st_size
    os.close(fd)
    (at / "d").mkdir()
    (at / "l").symlink_to("f")
    os.mkfifo(at / "fifo")
    for name in ("d", "l", "fifo", "none"):
        yield f"of {name}", done(os.truncate, at / name, 3)
    yield "negative", done(os.truncate, path, -1)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"tail", 100)
    os.ftruncate(fd, 50)
    os.ftruncate(fd, 200)
    yield "the part beyond the new size is empty", os.pread(fd, 4, 100)
    os.close(fd)


@CASES.add
def holes_are_found(at: Path) -> Iterator[Observation]:
    fd = os.open(at / "f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 8 * MIB)
    os.pwrite(fd, b"x" * MIB, 2 * MIB)
    os.pwrite(fd, b"y" * MIB, 5 * MIB)
    os.fsync(fd)
    for offset in (
        0,
        MIB,
        2 * MIB,
        2 * MIB + 5,
        3 * MIB,
        5 * MIB,
        7 * MIB,
        8 * MIB - 1,
        8 * MIB,
        9 * MIB,
        -1,
    ):
        for whence, name in ((os.SEEK_DATA, "data"), (os.SEEK_HOLE, "hole")):
            yield f"{name} from {offset}", attempt(os.lseek, fd, offset, whence)
    os.close(fd)


@CASES.add
def space_is_allocated_and_released(at: Path) -> Iterator[Observation]:
    ways = {
        "plain": (0, 100_000, 200_000),
        "keep size": (KEEP_SIZE, 100_000, 400_000),
        "punch": (KEEP_SIZE | PUNCH_HOLE, 65536, 65536),
        "punch unaligned": (KEEP_SIZE | PUNCH_HOLE, 65530, 1000),
        "punch beyond": (KEEP_SIZE | PUNCH_HOLE, 1 << 30, 4096),
        "punch without keeping": (PUNCH_HOLE, 0, 4096),
        "zero": (ZERO, 65536, 65536),
        "zero and keep": (ZERO | KEEP_SIZE, 200_000, 500_000),
        "collapse": (COLLAPSE, 65536, 65536),
        "collapse unaligned": (COLLAPSE, 100, 4096),
        "insert": (INSERT, 65536, 65536),
        "nothing": (0, 0, 0),
        "negative": (0, -1, 10),
        "length": (0, 0, -1),
        "too far": (0, (1 << 62), 1 << 62),
        "unknown": (1 << 20, 0, 10),
    }
    for what, (mode, offset, length) in ways.items():
        path = at / what
        path.write_bytes(pattern(300_000))
        fd = os.open(path, os.O_RDWR)
        yield what, (done(fallocate, fd, mode, offset, length), digest(path))
        os.close(fd)
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    yield "read only", done(fallocate, fd, 0, 0, 10)
    os.close(fd)
    fd = os.open(at, os.O_RDONLY)
    yield "a directory", done(fallocate, fd, 0, 0, 10)
    os.close(fd)


@CASES.add
def ranges_are_copied(at: Path) -> Iterator[Observation]:
    source, target = at / "source", at / "target"
    source.write_bytes(pattern(200_000))
    target.write_bytes(b"t" * 1000)
    read, write = os.open(source, os.O_RDWR), os.open(target, os.O_RDWR)
    for count, start, to in (
        (100, 0, 0),
        (1 << 20, 100_000, 50),
        (10, 200_000, 0),
        (10, 300_000, 0),
        (0, 0, 0),
    ):
        yield (
            f"{count} from {start} to {to}",
            attempt(os.copy_file_range, read, write, count, start, to),
        )
    yield "target", digest(target)
    os.lseek(read, 7, os.SEEK_SET)
    os.lseek(write, 3, os.SEEK_SET)
    yield "at the positions", attempt(os.copy_file_range, read, write, 50)
    yield "positions after", (os.lseek(read, 0, os.SEEK_CUR), os.lseek(write, 0, os.SEEK_CUR))
    yield "in one file", attempt(os.copy_file_range, read, read, 1000, 0, 150_000)
    yield "overlapping", attempt(os.copy_file_range, read, read, 1000, 0, 500)
    yield "source", digest(source)
    append = os.open(target, os.O_WRONLY | os.O_APPEND)
    reader = os.open(target, os.O_RDONLY)
    folder = os.open(at, os.O_RDONLY)
    yield "to append", attempt(os.copy_file_range, read, append, 10, 0, 0)
    yield "to a reader", attempt(os.copy_file_range, read, reader, 10, 0, 0)
    yield "from a writer", attempt(os.copy_file_range, append, write, 10, 0, 0)
    yield "from a directory", attempt(os.copy_file_range, folder, write, 10, 0, 0)
    yield "negative", attempt(os.copy_file_range, read, write, 10, -1, 0)
    yield "sendfile", attempt(os.sendfile, write, read, 0, 5000)
    yield "sendfile wrote", digest(target)
    for fd in (read, write, append, reader, folder):
        os.close(fd)


@CASES.add
def unnamed_files_can_be_linked(at: Path) -> Iterator[Observation]:
    fd = os.open(at, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    yield "links", os.fstat(fd).st_nlink
    yield "listed", os.listdir(at)
    yield "linked", done(os.link, f"/proc/self/fd/{fd}", at / "named", follow_symlinks=True)
    yield "found", attempt((at / "named").read_bytes)
    yield "links now", os.fstat(fd).st_nlink
    os.close(fd)
    fd = os.open(at, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    yield "exclusive", done(os.link, f"/proc/self/fd/{fd}", at / "never", follow_symlinks=True)
    os.close(fd)
    yield "read only", opened(at, os.O_TMPFILE | os.O_RDONLY)
    yield "on a file", opened(at / "named", os.O_TMPFILE | os.O_RDWR)
    yield "left", os.listdir(at)


@CASES.add
def files_are_mapped(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"0" * 10_000)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 10_000) as shared:
        shared[100:104] = b"here"
        yield "seen by read", os.pread(fd, 4, 100)
        os.pwrite(fd, b"there", 5000)
        yield "seen in the map", shared[5000:5005]
        shared.flush()
        yield "seen by another", path.read_bytes()[100:104]
        os.ftruncate(fd, 20_000)
        yield "grown", os.pread(fd, 4, 15_000)
    with mmap.mmap(fd, 10_000, mmap.MAP_PRIVATE) as private:
        private[0:2] = b"xx"
        yield "private", (private[0:2], os.pread(fd, 2, 0))
    reader = os.open(path, os.O_RDONLY)
    yield (
        "writable of a reader",
        attempt(lambda: mmap.mmap(reader, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE) and None),
    )
    yield (
        "readable of a reader",
        attempt(lambda: mmap.mmap(reader, 10, mmap.MAP_SHARED, mmap.PROT_READ)[100 - 100 : 4]),
    )
    os.close(reader)

    def beyond() -> None:
        view = mmap.mmap(fd, 20_000)
        os.ftruncate(fd, 10)
        view[15_000]

    yield "beyond the end", elsewhere(beyond)
    os.ftruncate(fd, 20_000)
    mapped = mmap.mmap(fd, 20_000)
    os.unlink(path)
    os.close(fd)
    mapped[19_999] = 65
    yield "after unlink and close", mapped[19_999]
    mapped.close()


@CASES.add
def direct_access_reads_what_was_written(at: Path) -> Iterator[Observation]:
    path = at / "f"
    data = pattern(256 * 1024)
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    yield "write", attempt(os.pwrite, fd, buffer, 0)
    other = os.open(path, os.O_RDWR)
    yield "seen through the cache", os.pread(other, len(data), 0) == data
    os.pwrite(other, b"changed", 8192)
    into = mmap.mmap(-1, 16384)
    yield "read", attempt(os.preadv, fd, [into], 4096)
    yield "sees what was written through the cache", bytes(into[4096:4103])
    yield "at the end", attempt(os.preadv, fd, [into], len(data) - 4096)
    yield "beyond", attempt(os.preadv, fd, [into], len(data))
    os.close(other)
    os.close(fd)
    yield "all", digest(path)


@CASES.add
def syncing_succeeds(at: Path) -> Iterator[Observation]:
    # syncfs(2) has the error of any file that could not be written since the open: none of an
    # earlier case, whose files are deleted, has anything left to write then.
    os.sync()
    path = at / "f"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 5000)
    yield "fsync", done(os.fsync, fd)
    yield "fdatasync", done(os.fdatasync, fd)
    yield "syncfs", called(LIBC.syncfs, fd)
    part = (ctypes.c_int64(0), ctypes.c_int64(4096), 7)
    yield "sync_file_range", called(LIBC.sync_file_range, fd, *part)
    yield "advise", done(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
    yield "allocate", done(os.posix_fallocate, fd, 0, 10_000)
    yield "size", os.fstat(fd).st_size
    os.close(fd)
    for flags in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(path, os.O_WRONLY | flags)
        yield f"synchronous {flags:o}", attempt(os.write, fd, b"y")
        os.close(fd)
