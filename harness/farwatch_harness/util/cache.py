# SPDX-License-Identifier: Apache-2.0
"""The shared cache: locks between processes, and entries that appear in one step.

An entry is made in a temporary directory beside its path, and renamed to that path when it is
complete. An entry that exists is therefore complete. An interrupted step leaves its temporary
directory, and the next step for the same entry removes it.
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
    """Hold the lock `name` of the shared cache; yield the lock's file descriptor.

    If another process has the lock, say so and wait without a limit. The kernel releases the lock
    when the last process has closed the descriptor: pass it to a child that must finish before
    anyone else gets the lock. This context manager closes its own descriptor.
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
    """Return the directory `target`; fill it first if it does not exist.

    make: fills the temporary directory that it gets. One process at a time calls it.
    """
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
            # Only its owner may use mkdtemp's directory; other users may use QEMU trees and
            # kernels.
            workplace.chmod(0o755)
            make(workplace)
            workplace.rename(target)
        except BaseException:
            shutil.rmtree(workplace, ignore_errors=True)
            raise
    return target


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file as a whole: a reader sees the old content or the new content."""
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
    """Return 16 hexadecimal digits that identify the parts.

    The digest covers the length of each part: ("ab", "c") and ("a", "bc") have different keys.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
