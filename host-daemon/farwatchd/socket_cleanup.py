# SPDX-License-Identifier: Apache-2.0
"""Removes the daemon's socket and the file with its process id when it ends, however it does.

A small process of its own waits for that, outside the sandbox: the daemon keeps no way to reach
where they are. A daemon that replaces another one has its own such process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ARM, _DISARM = b"+", b"-"
#: Device, inode number and time of the last change of a file; None for a missing one.
_Identity = tuple[int, int, int] | None


class Cleanup:
    """The process that removes the files, or none."""

    def __init__(self, writer: int | None = None) -> None:
        """``writer``: the pipe to the process, which stays the caller's."""
        self._writer = writer

    def arm(self) -> None:
        """Have the files removed at the end: they are this daemon's."""
        self._send(_ARM)

    def disarm(self) -> None:
        """Leave the files alone at the end: they are another daemon's."""
        self._send(_DISARM)

    def _send(self, command: bytes) -> None:
        if self._writer is not None:
            # The process may have been killed.
            with contextlib.suppress(OSError):
                os.write(self._writer, command)


@contextlib.contextmanager
def removed_at_end(
    paths: Sequence[Path], claim: Callable[[], None] | None = None
) -> Iterator[Cleanup]:
    """Have the files removed at the end of the block, or when the process is killed in it.

    ``claim``: they are another daemon's until ``Cleanup.arm``. The process calls this first
    then, outside the sandbox.
    """
    identities = [_identity(path) for path in paths]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(writer)
            _remove_at_end(_detach(reader), paths, identities, claim)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield Cleanup(writer)
    finally:
        os.close(writer)
        # In a sandbox with a PID namespace it is the supervisor's child, which waits for it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _remove_at_end(
    reader: int,
    paths: Sequence[Path],
    identities: list[_Identity],
    claim: Callable[[], None] | None,
) -> None:
    armed = claim is None
    while command := os.read(reader, 1):
        armed = command == _ARM
        if armed and claim is not None:
            claim()
            claim = None
            identities = [_identity(path) for path in paths]
    if not armed:
        return
    for path, identity in zip(paths, identities, strict=True):
        # Another daemon may have taken the place.
        if _identity(path) == identity:
            path.unlink(missing_ok=True)


def _detach(reader: int) -> int:
    """Hold nothing of the daemon but the pipe; return its new descriptor."""
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
    return reader


def _identity(path: Path) -> _Identity:
    try:
        status = path.lstat()
    except OSError:
        return None
    # The number of an inode is soon another one's.
    return status.st_dev, status.st_ino, status.st_mtime_ns
