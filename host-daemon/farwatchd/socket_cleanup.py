# SPDX-License-Identifier: Apache-2.0
"""Removes the daemon's socket and the file with its process id when it ends, however it does.

A small process of its own waits for that, outside the sandbox: the daemon keeps no way to reach
where they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def removed_at_end(paths: Sequence[Path]) -> Iterator[None]:
    """Have the files removed at the end of the block, or when the process is killed in it."""
    identities = [_identity(path) for path in paths]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(writer)
            _wait(reader)
            for path, identity in zip(paths, identities, strict=True):
                # Another daemon may have taken the place.
                if _identity(path) == identity:
                    path.unlink(missing_ok=True)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield
    finally:
        os.close(writer)
        # In a sandbox with a PID namespace it is the supervisor's child, which waits for it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _wait(reader: int) -> None:
    """Wait until the daemon has ended, holding nothing of it but the pipe."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    # The pipe may have the number of a standard descriptor.
    reader = fcntl.fcntl(reader, fcntl.F_DUPFD, 3)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    reader = os.dup2(reader, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.read(reader, 1)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    # The number of an inode is soon another one's.
    return status.st_dev, status.st_ino, status.st_mtime_ns
