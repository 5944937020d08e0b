# SPDX-License-Identifier: Apache-2.0
"""The benchmark's C programs: compiled on the host, run in the guest.

The guest sees the host's root, and the programs in it.
"""

from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import apt, paths, subprocesses

SOURCES = paths.HARNESS / "bench"
TARGET = paths.CHECKOUT / "build" / "bench"
# Static, so that a program runs in any guest, which then reads this one file.
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")


@dataclass(frozen=True)
class Programs:
    """Paths of the programs; the same on the host and in the guest."""

    operations: Path
    events: Path


def compiled() -> Programs:
    """Compile the programs. HarnessError: has the compiler's errors."""
    apt.install(["gcc", "libc6-dev"], paths.LOGS / "apt-bench.log")
    return Programs(compile_one("operations"), compile_one("events"))


def compile_one(name: str) -> Path:
    """Compile one program; return its path."""
    TARGET.mkdir(parents=True, exist_ok=True)
    program = TARGET / f"bench_{name}"
    subprocesses.run(["gcc", *FLAGS, "-o", program, SOURCES / f"{name}.c"])
    return program
