# SPDX-License-Identifier: Apache-2.0
"""Cases: which set-id bits a change of a file's contents leaves, by mode, caller and operation."""

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from posix_cases.kit import STRANGER, Cases, Identity, Observation, done, elsewhere

CASES = Cases()
OWNER, GROUP = 1001, 2002
CALLERS = (
    Identity("root", 0, 0, ()),
    Identity("owner", OWNER, OWNER, ()),
    Identity("owner in the group", OWNER, GROUP, ()),
    Identity("owner with the group", OWNER, OWNER, (GROUP,)),
    Identity("member", STRANGER, GROUP, ()),
    Identity("stranger", STRANGER, STRANGER, ()),
)
#: All may write. 2 is the group's bit without the group's right to execute, and so on.
MODES = (0o4666, 0o2666, 0o6666, 0o4777, 0o2777, 0o6777, 0o2676)
SIZE = 8192
#: Begins the observations of the set-group-ID bit, which has rules of its own.
GROUP_BIT = "set-group-ID of"


def with_open(flags: int, change: Callable[[int], object]) -> Callable[[Path], object]:
    """Return an operation on an open file."""

    def run(path: Path) -> None:
        fd = os.open(path, flags)
        try:
            change(fd)
        finally:
            os.close(fd)

    return run


def write_mapped(fd: int) -> None:
    """Change a byte through a shared mapping."""
    with mmap.mmap(fd, SIZE) as memory:
        memory[0] = ord("y")
        memory.flush()


def write_directly(fd: int) -> None:
    """Write an aligned page."""
    with mmap.mmap(-1, 4096) as page:
        os.pwritev(fd, [page], 0)


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "write": with_open(os.O_RDWR, lambda fd: os.write(fd, b"y")),
    "append": with_open(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"y")),
    "write directly": with_open(os.O_RDWR | os.O_DIRECT, write_directly),
    "write mapped": with_open(os.O_RDWR, write_mapped),
    "open to truncate": with_open(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "truncate": lambda path: os.truncate(path, 3),
    "truncate, open": with_open(os.O_RDWR, lambda fd: os.ftruncate(fd, 3)),
    "extend": lambda path: os.truncate(path, SIZE + 1),
    "allocate": with_open(os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 2 * SIZE)),
    "copy": with_open(os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 10, 0, 4096)),
}


@CASES.add
def set_id_bits_by_mode_caller_and_operation(at: Path) -> Iterator[Observation]:
    if os.getuid():
        # Only root can be all of the callers.
        return
    at.chmod(0o777)
    for bits in MODES:
        for caller in CALLERS:
            for what, operation in OPERATIONS.items():
                path = at / "f"
                path.write_bytes(b"x" * SIZE)
                os.chown(path, OWNER, GROUP)
                path.chmod(bits)
                outcome = elsewhere(partial(done, operation, path), caller)
                left = stat.S_IMODE(path.lstat().st_mode)
                yield f"{bits:o} {caller.name}: {what}", (outcome, f"{left & ~stat.S_ISGID:o}")
                yield f"{GROUP_BIT} {bits:o} {caller.name}: {what}", bool(left & stat.S_ISGID)
                path.unlink()
