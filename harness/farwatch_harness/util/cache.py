# SPDX-License-Identifier: Apache-2.0
"""What keeps the cache honest: locks between processes, and publication in one step.

A thing in the cache is made in a temporary directory beside its place and renamed into it when it
is whole. So what stands in its place can be trusted; an interrupted step leaves a temporary
directory, which the next one removes.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from farwatch_harness.util import paths, progress

TEMPORARY = ".making-"


@contextmanager
def locked(name: str) -> Iterator[int]:
    """Holds the lock `name` of the shared cache; says so when it must wait. Yields the lock's file
    descriptor.

    The lock ends with the last process that has the descriptor: give it to a child that must not be
    overtaken.
    """
    folder = paths.cache_root() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another process that works on {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def published(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a directory that make(temporary directory) fills if it is not there; one process at
    a time."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{target.parent.name}-{target.name}"):
        if target.is_dir():
            return target
        prefix = f"{TEMPORARY}{target.name}-"
        for leftover in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        workplace = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            # mkdtemp's directory is for its owner alone; QEMU trees and kernels may be used by
            # others.
            workplace.chmod(0o755)
            make(workplace)
            workplace.rename(target)
        except BaseException:
            shutil.rmtree(workplace, ignore_errors=True)
            raise
    return target


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` as a whole, so that a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(number, "wb") as handle:
            handle.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def content_key(*parts: bytes | str) -> str:
    """16 hexadecimal digits that stand for the parts; lengths count, so that parts cannot run into
    each other."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
