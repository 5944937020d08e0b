# SPDX-License-Identifier: Apache-2.0
"""Cases: record locks and flock(2), between processes of the guest."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from posix_cases.kit import Cases, Child, Observation, attempt, done, elsewhere

CASES = Cases()
READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
KINDS = {READ: "read", WRITE: "write", NONE: "none"}
FLOCK = struct.Struct("@hhqqi4x")


def lock(fd: int, kind: int, start: int = 0, length: int = 0, command: int = fcntl.F_SETLK) -> Any:
    """Set a record lock; return "ok", or the name of the errno."""
    outcome = attempt(fcntl.fcntl, fd, command, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    return "EAGAIN" if outcome == "EACCES" else outcome if str(outcome).startswith("E") else "ok"


def holder(fd: int, kind: int, start: int = 0, length: int = 0) -> tuple[str, int, int, int]:
    """Return the kind, start, length and process of a conflicting lock, from F_GETLK."""
    found = FLOCK.unpack(
        fcntl.fcntl(fd, fcntl.F_GETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    )
    return KINDS[found[0]], found[2], found[3], found[4]


def by_another(path: Path, flags: int, call: Callable[[int], Any]) -> Any:
    """Return the result of `call` for the file as another process opens it."""

    def run() -> Any:
        fd = os.open(path, flags)
        try:
            return call(fd)
        finally:
            os.close(fd)

    return elsewhere(run)


@CASES.add
def record_locks_exclude_other_processes(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    yield "taken", lock(fd, WRITE, 10, 10)
    yield "mine again", lock(fd, WRITE, 5, 10)
    for start, length in ((0, 5), (0, 6), (15, 5), (20, 10), (0, 0), (25, 0)):
        for kind in (READ, WRITE):
            outcome = by_another(
                path, os.O_RDWR, partial(lock, kind=kind, start=start, length=length)
            )
            yield f"{KINDS[kind]} {start} {length}", outcome
    found = by_another(path, os.O_RDWR, lambda other: holder(other, WRITE))
    yield "holder", (found[:3], found[3] == os.getpid())
    yield "no holder", holder(fd, WRITE)[0]
    yield (
        "shared",
        (lock(fd, READ, 0, 0), by_another(path, os.O_RDWR, lambda other: lock(other, READ, 50, 5))),
    )
    yield "not exclusive", by_another(path, os.O_RDWR, lambda other: lock(other, WRITE, 50, 5))
    yield "hole", lock(fd, NONE, 40, 20)
    yield "in the hole", by_another(path, os.O_RDWR, lambda other: lock(other, WRITE, 40, 20))
    yield "beside the hole", by_another(path, os.O_RDWR, lambda other: lock(other, WRITE, 39, 20))
    second = os.open(path, os.O_RDONLY)
    os.close(second)
    yield "closing any descriptor", by_another(path, os.O_RDWR, lambda other: lock(other, WRITE))
    os.close(fd)


@CASES.add
def record_locks_need_access_and_sense(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"x")
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    yield "write lock of a reader", lock(reader, WRITE)
    yield "read lock of a writer", lock(writer, READ)
    yield "right ones", (lock(reader, READ), lock(writer, WRITE))
    yield "negative length", lock(reader, READ, 10, -5)
    yield "before the beginning", lock(reader, READ, 2, -5)
    yield "negative start", lock(reader, READ, -1, 5)
    yield "kind", lock(reader, 9)
    yield "overflow", lock(reader, READ, (1 << 63) - 1, 5)
    yield "unlocking nothing", lock(reader, NONE, 1000, 5)
    os.close(reader)
    os.close(writer)


@CASES.add
def record_locks_are_not_inherited_and_end_with_the_process(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    lock(fd, WRITE)
    yield "the child's own", elsewhere(lambda: lock(fd, WRITE))
    yield (
        "the child closes",
        (elsewhere(lambda: os.close(fd)), by_another(path, os.O_RDWR, lambda o: lock(o, WRITE))),
    )
    lock(fd, NONE)
    child = Child(lambda: lock(os.open(path, os.O_RDWR), WRITE))
    yield "a child has it", (child.first, lock(fd, READ), holder(fd, READ)[3] == child.pid)
    child.end()
    yield "the child has gone", lock(fd, WRITE)
    os.close(fd)


@CASES.add
def waiting_for_a_record_lock_ends_with_it(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    child = Child(lambda: lock(os.open(path, os.O_RDWR), WRITE), lambda: (at / "last").touch())
    waiter = os.getpid()
    go = os.fork()
    if not go:
        # This ends the child's wait once this process waits.
        while Path(f"/proc/{waiter}/stat").read_text().rpartition(")")[2].split()[0] not in "SD":
            os.sched_yield()
        os.close(child.go)
        os._exit(0)
    os.close(child.go)
    yield "had in the end", (lock(fd, WRITE, command=fcntl.F_SETLKW), (at / "last").exists())
    os.waitpid(go, 0)
    os.waitpid(child.pid, 0)
    os.close(fd)


@CASES.add
def flock_belongs_to_the_open_file(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.touch()
    first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    same = os.dup(first)
    exclusive, shared, quick = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB
    yield "taken", done(fcntl.flock, first, exclusive | quick)
    yield "by a duplicate", done(fcntl.flock, same, exclusive | quick)
    yield "by another open file", done(fcntl.flock, second, shared | quick)
    yield "by a child", elsewhere(lambda: done(fcntl.flock, first, exclusive | quick))
    yield (
        "by a child's own",
        by_another(path, os.O_RDWR, lambda fd: done(fcntl.flock, fd, exclusive | quick)),
    )
    yield (
        "made shared",
        (done(fcntl.flock, first, shared | quick), done(fcntl.flock, second, shared | quick)),
    )
    yield "not made exclusive", done(fcntl.flock, first, exclusive | quick)
    os.close(first)
    yield "the duplicate still has one", done(fcntl.flock, second, exclusive | quick)
    os.close(same)
    yield "none is left", done(fcntl.flock, second, exclusive | quick)
    yield "record locks do not mind", lock(second, WRITE)
    yield "without sense", done(fcntl.flock, second, 0)
    yield "unlock", done(fcntl.flock, second, fcntl.LOCK_UN)
    os.close(second)
    folder = os.open(at, os.O_RDONLY)
    yield "a directory", done(fcntl.flock, folder, exclusive | quick)
    os.close(folder)


@CASES.add
def open_file_description_locks(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.write_bytes(b"x")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    yield "taken", lock(first, WRITE, 0, 10, fcntl.F_OFD_SETLK)
    yield "by another open file", lock(second, WRITE, 5, 10, fcntl.F_OFD_SETLK)
    yield "by a process's lock", lock(second, WRITE, 5, 10)
    yield "beside it", lock(second, WRITE, 10, 10, fcntl.F_OFD_SETLK)
    os.close(first)
    yield "after closing", lock(second, WRITE, 0, 0, fcntl.F_OFD_SETLK)
    os.close(second)
