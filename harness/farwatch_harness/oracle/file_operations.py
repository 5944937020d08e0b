# SPDX-License-Identifier: Apache-2.0
"""File operations as data, for scripts that run alike on the host and in the guest.

An operation is a list: its kind, and its arguments, which are names relative to the script's base
directory. An operation that fails, because a name exists, is missing or is a directory, is left out
on both sides alike.

As a program this is a script runner. Each line of its input is a JSON list of [base, operations],
which it performs in that order; then it prints DONE. It ends at the end of its input. Its argument
is the directory outside of the share, if there is one. It uses the standard library only, because
the guest runs it, too.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

FileOperation = list[str]

DONE = "done"
#: The files that exist before a script begins, and those of them that are watched.
INITIAL_FILES: Sequence[FileOperation] = (
    ["mkdir", "d"],
    ["mkdir", "e"],
    ["mkdir", "d/sub"],
    ["write", "d/f"],
    ["write", "e/g"],
    ["symlink", "d/f", "link"],
)
WATCHED = (".", "d", "e", "d/sub", "d/f", "e/g")
#: The names of random operations: they exist at first, may be created, or can never exist.
NAMES = ("d", "e", "d/f", "d/n", "d/sub", "d/sub/f", "e/g", "e/d", "e/d/f", "e/sub", "top", "link")
#: The names that are files at first, directories, and free.
FILES = ("d/f", "e/g", "link")
DIRECTORIES = ("d", "e", "d/sub", ".")
FREE = ("d/n", "e/d", "d/sub/f", "top")

XATTR = "user.farwatch"
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
LIBC = ctypes.CDLL(None, use_errno=True)


def put(path: str, flags: int, data: bytes = b"") -> None:
    """Open, write if there is something to write, close."""
    fd = os.open(path, flags, 0o644)
    try:
        if data:
            os.write(fd, data)
    finally:
        os.close(fd)


def read(path: str) -> None:
    """Open, read, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.read(fd, 100)
    finally:
        os.close(fd)


def write_mapped(path: str) -> None:
    """Change the first byte through a shared mapping, which raises no event by itself."""
    fd = os.open(path, os.O_RDWR)
    try:
        if os.fstat(fd).st_size:
            with mmap.mmap(fd, 1) as memory:
                memory[0] = ord("m")
                memory.flush()
    finally:
        os.close(fd)


def write_unnamed(directory: str, name: str | None = None) -> None:
    """Write a file that has no name (O_TMPFILE).

    name: the name that the file gets before it is closed; None for none.
    """
    fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o644)
    try:
        os.write(fd, b"unnamed")
        if name is not None:
            # Python passes AT_SYMLINK_FOLLOW only together with a descriptor, which the kernel
            # ignores for an absolute path.
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


def rename(old: str, new: str, flags: int) -> None:
    """Call renameat2(2)."""
    names = os.fsencode(old), os.fsencode(new)
    if LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), old)


def link_briefly(old: str, new: str) -> None:
    """Give a file another name, and remove that again."""
    os.link(old, new)
    os.unlink(new)  # noqa: PTH108


def rename_by_link(old: str, new: str) -> None:
    """Give a file another name, and remove the first one."""
    os.link(old, new)
    os.unlink(old)  # noqa: PTH108


def rename_back(old: str, new: str) -> None:
    """Rename there and back."""
    os.rename(old, new)  # noqa: PTH104
    os.rename(new, old)  # noqa: PTH104


def lease(path: str) -> None:
    """Write under a lease, during which an open is refused that would not wait."""
    fd = os.open(path, os.O_WRONLY)
    # The open has the kernel send it, which would end the process.
    former = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(fd, b"leased")
        with contextlib.suppress(BlockingIOError):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        signal.signal(signal.SIGIO, former)
        os.close(fd)


#: The kinds with one name and those with two.
ONE: Mapping[str, Callable[[str], Any]] = {
    "create": lambda path: put(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "write": lambda path: put(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"written"),
    "append": lambda path: put(path, os.O_WRONLY | os.O_APPEND, b"appended"),
    "write mapped": write_mapped,
    "write unnamed": write_unnamed,
    "truncate": lambda path: os.truncate(path, 1),
    "read": read,
    "open": lambda path: put(path, os.O_RDONLY | os.O_NONBLOCK),
    "chmod": lambda path: os.chmod(path, 0o755),  # noqa: PTH101
    "private": lambda path: os.chmod(path, 0o700),  # noqa: PTH101
    "utimes": lambda path: os.utime(path, (1, 2)),
    "setxattr": lambda path: os.setxattr(path, XATTR, b"value"),
    "removexattr": lambda path: os.removexattr(path, XATTR),
    "mkdir": lambda path: os.mkdir(path, 0o755),  # noqa: PTH102
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "list": os.listdir,
}
TWO: Mapping[str, Callable[[str, str], Any]] = {
    "rename": os.rename,
    "rename new": lambda old, new: rename(old, new, RENAME_NOREPLACE),
    "exchange": lambda old, new: rename(old, new, RENAME_EXCHANGE),
    "rename back": rename_back,
    "link": os.link,
    "link briefly": link_briefly,
    "rename by link": rename_by_link,
    # The first name is the target: it is used as it is, not below the base.
    "symlink": os.symlink,
    "link unnamed": write_unnamed,
}
KINDS = (*ONE, *TWO)
#: The kinds that only the host has: a lease, and renames out of the share and back into it.
LEASE, LEAVE, RETURN = "lease", "leave", "return"
HOST_KINDS = (*KINDS, LEASE, LEAVE, RETURN)
#: For each kind and each of its arguments, the names with which it succeeds at first. The other
#: kinds take all NAMES.
FITTING: Mapping[str, Sequence[Sequence[str]]] = {
    "create": (FREE,),
    "write": (FILES,),
    "append": (FILES,),
    "write mapped": (FILES,),
    "write unnamed": (DIRECTORIES,),
    "truncate": (FILES,),
    "read": (FILES,),
    "setxattr": (FILES,),
    "removexattr": (FILES,),
    "mkdir": (FREE,),
    "rmdir": (("d/sub", "e/d"),),
    "unlink": (FILES,),
    "list": (DIRECTORIES,),
    "rename new": (NAMES, FREE),
    "link": (FILES, FREE),
    "link briefly": (FILES, FREE),
    "rename by link": (FILES, FREE),
    LEASE: (FILES,),
    LEAVE: (("d", "e", "d/sub", "d/f"),),
    RETURN: (("d", "e", "d/sub", "d/f", *FREE),),
    "symlink": (NAMES, FREE),
    "link unnamed": (DIRECTORIES, FREE),
}


def choices(kind: str) -> list[list[str]]:
    """Return for each argument of a kind the names to choose from.

    They are all NAMES, and the fitting ones twice more. Few leave the share, so that they return.
    """
    if kind in (LEAVE, RETURN):
        return [list(names) for names in FITTING[kind]]
    fitting = FITTING.get(kind, (NAMES, NAMES)[: 1 if kind in ONE else 2])
    return [[*names, *names, *NAMES] for names in fitting]


def leave(path: str, place: str) -> None:
    """Move something to the directory `place`, outside of the share."""
    os.makedirs(place, exist_ok=True)  # noqa: PTH103
    os.rename(path, f"{place}/{time.monotonic_ns()}")  # noqa: PTH104


def come_back(path: str, place: str) -> None:
    """Move what left first back into the share."""
    first = min(os.listdir(place), key=int)  # noqa: PTH208
    os.rename(f"{place}/{first}", path)  # noqa: PTH104


def perform(base: str, operation: FileOperation, outside: str = "") -> bool:
    """Run one operation below `base`; return whether it succeeded.

    outside: a directory outside of the share; "" if there is none.
    """
    kind, *names = operation
    paths = [
        name if (kind, at) == ("symlink", 0) else f"{base}/{name}" for at, name in enumerate(names)
    ]
    place = f"{outside}/{base.replace('/', '%')}"
    try:
        if kind == LEASE:
            lease(paths[0])
        elif kind == LEAVE:
            leave(paths[0], place)
        elif kind == RETURN:
            come_back(paths[0], place)
        elif kind in ONE:
            ONE[kind](*paths)
        else:
            TWO[kind](*paths)
    except (OSError, ValueError):
        return False
    return True


def random_script(random: Random, length: int, kinds: Sequence[str] = KINDS) -> list[FileOperation]:
    """Return a script of `length` operations; all kinds are equally likely."""
    chosen = random.choices(kinds, k=length)
    return [[kind, *(random.choice(names) for names in choices(kind))] for kind in chosen]


def main() -> None:
    """Perform the scripts from standard input until it ends."""
    outside = sys.argv[1] if len(sys.argv) > 1 else ""
    for line in sys.stdin:
        for base, script in json.loads(line):
            for operation in script:
                perform(base, operation, outside)
        print(DONE, flush=True)


if __name__ == "__main__":
    main()
