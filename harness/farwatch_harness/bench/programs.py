# SPDX-License-Identifier: Apache-2.0
"""The benchmark's small C programs: compiled on the host, run in the guest, which sees them in its
root."""

from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import apt, paths, subprocesses

SOURCES = paths.HARNESS / "bench"
TARGET = paths.CHECKOUT / "build" / "bench"
# Static: the guest reads the program and nothing else, and it runs in any guest.
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")


@dataclass(frozen=True)
class Programs:
    """Paths of the programs; the same on the host and in the guest."""

    operations: Path
    events: Path


def compiled() -> Programs:
    """Compiles them; HarnessError gives the compiler's words."""
    apt.install(["gcc", "libc6-dev"], paths.LOGS / "apt-bench.log")
    return Programs(compile_one("operations"), compile_one("events"))


def compile_one(name: str) -> Path:
    TARGET.mkdir(parents=True, exist_ok=True)
    program = TARGET / f"bench_{name}"
    subprocesses.run(["gcc", *FLAGS, "-o", program, SOURCES / f"{name}.c"])
    return program
