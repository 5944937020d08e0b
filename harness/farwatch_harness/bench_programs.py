# SPDX-License-Identifier: Apache-2.0
"""The benchmark's small C programs: compiled on the host, run in the guest, which sees them in its root."""

from dataclasses import dataclass
from pathlib import Path

from farwatch_harness import commands, needs, paths

SOURCES = paths.CHECKOUT / "guest-tests"
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
    needs.install(["gcc", "libc6-dev"], paths.LOGS / "apt-bench.log")
    return Programs(compile_one("bench_ops"), compile_one("bench_events"))


def compile_one(name: str) -> Path:
    TARGET.mkdir(parents=True, exist_ok=True)
    program = TARGET / name
    commands.run(["gcc", *FLAGS, "-o", program, SOURCES / f"{name}.c"])
    return program
