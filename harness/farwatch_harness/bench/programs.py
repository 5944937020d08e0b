# SPDX-License-Identifier: Apache-2.0
"""The benchmark's C programs: compiled on the host, run in the guest."""

from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import compiler, paths

SOURCES = paths.HARNESS / "bench"
# Static, so that a program runs in any guest, which then reads this one file.
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")


@dataclass(frozen=True)
class Programs:
    """Paths of the programs; the same on the host and in the guest."""

    operations: Path
    events: Path


def compiled() -> Programs:
    """Return the programs. HarnessError: has the compiler's errors."""
    return Programs(
        compiler.program(SOURCES / "operations.c", *FLAGS),
        compiler.program(SOURCES / "events.c", *FLAGS),
    )
