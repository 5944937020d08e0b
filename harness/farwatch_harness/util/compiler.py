# SPDX-License-Identifier: Apache-2.0
"""C programs of one source file, compiled on the host and run on the host or in a guest.

A guest sees the host's root, and in it the cache.
"""

from pathlib import Path

from farwatch_harness.util import apt, cache, paths, subprocesses


def program(source: Path, *flags: str) -> Path:
    """Return the program of `source`, compiled with the flags and cached by both.

    Processes may call it concurrently: a program is complete when its path exists, and is never
    written again. HarnessError: has the compiler's errors.
    """
    key = cache.content_key(source.read_bytes(), *flags)
    folder = paths.cache_root() / "programs" / f"{source.stem}-{key}"

    def make(target: Path) -> None:
        apt.install(["gcc", "libc6-dev"], paths.LOGS / "apt-compiler.log")
        subprocesses.run(["gcc", *flags, "-o", target / source.stem, source])

    return cache.published(folder, make) / source.stem
