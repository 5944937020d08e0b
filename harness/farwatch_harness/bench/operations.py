# SPDX-License-Identifier: Apache-2.0
"""File operations per second of each daemon, all measured in the same run.

Each daemon has its own guest. All of them run the whole time, and are measured in turn, operation
by operation and round by round, so that other load of the machine affects all of them alike.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.daemons import MeasuredDaemon
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import Step, step
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.testbed import Testbed, start_testbed

LISTED = 1000
DATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Operation:
    """An operation of operations.c; one run of it performs `units` of what `unit` names."""

    key: str
    title: str
    unit: str = ""
    units: int = 1


OPERATIONS = (
    Operation("getattr", "getattr"),
    Operation("open+close", "open + close"),
    Operation("lookup-missing", "lookup, missing"),
    Operation("create+unlink", "create + unlink"),
    Operation("mkdir+rmdir", "mkdir + rmdir"),
    Operation("rename", "rename"),
    Operation("read-4k", "direct read 4 KiB"),
    Operation("write-4k", "direct write 4 KiB"),
    Operation("read-1m", "direct read 1 MiB", ", MiB"),
    Operation("write-1m", "direct write 1 MiB", ", MiB"),
    Operation("list", f"ls -l of {LISTED}", ", files", LISTED),
)


@dataclass(frozen=True)
class Rate:
    """One daemon's rates of one operation.

    rounds: units per second in each round.
    cpu_us: the daemon's CPU time per unit in each round, in microseconds.
    """

    server: str
    operation: Operation
    rounds: tuple[float, ...]
    cpu_us: tuple[float, ...]


@dataclass(frozen=True)
class OperationRound:
    """One round: units per second, and the daemon's CPU time per unit in microseconds."""

    rate: float
    cpu_us: float


def measure(
    environment: Environment,
    programs: Programs,
    servers: Sequence[MeasuredDaemon],
    rounds: int,
    seconds: float,
) -> list[Rate]:
    """Return the rates of all daemons, each operation for `seconds` in each of `rounds`."""
    found: dict[tuple[str, Operation], list[OperationRound]] = {}
    with contextlib.ExitStack() as stack:
        share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-bench-")))
        testbeds: list[tuple[MeasuredDaemon, Testbed]] = []
        for server in servers:
            fill(share / server.name)
            with step(f"booting a guest for {server.name}"):
                testbeds.append(
                    (
                        server,
                        stack.enter_context(start_testbed(server.testbed_spec(environment, share))),
                    )
                )
        with step(f"measuring {len(OPERATIONS)} operations, {rounds} rounds") as progress:
            for number in range(rounds):
                for operation in OPERATIONS:
                    for server, testbed in testbeds:
                        show(progress, number, operation, server)
                        sample = run_once(programs, testbed, server, operation, seconds)
                        found.setdefault((server.name, operation), []).append(sample)
        for server, testbed in testbeds:
            if problems := testbed.problems():
                raise HarnessError(f"{server.name}: {problems[0]}")
    return [
        Rate(
            name,
            operation,
            tuple(each.rate for each in samples),
            tuple(each.cpu_us for each in samples),
        )
        for (name, operation), samples in found.items()
    ]


def fill(directory: Path) -> None:
    """Create the files that operations.c uses."""
    (directory / "list").mkdir(parents=True)
    (directory / "data").write_bytes(b"x" * DATA_BYTES)
    (directory / "name").touch()
    for number in range(LISTED):
        (directory / "list" / f"file-{number}").touch()


def show(progress: Step, number: int, operation: Operation, server: MeasuredDaemon) -> None:
    """Show how far the measurement is."""
    progress.update(f"round {number + 1}, {operation.title}, {server.name}")


def run_once(
    programs: Programs,
    testbed: Testbed,
    server: MeasuredDaemon,
    operation: Operation,
    seconds: float,
) -> OperationRound:
    """Run one operation for `seconds`. HarnessError: it failed in the guest."""
    directory = testbed.mount_point / server.name
    group = testbed.daemon.process.pid
    before = cpu_ns_of(group)
    done = testbed.guest.run(
        programs.operations, directory, str(seconds), operation.key, limit=60 + 10 * seconds
    )
    used = cpu_ns_of(group) - before
    if done.status or done.timed_out:
        words = done.stderr.strip() or f"status {done.status}"
        raise HarnessError(f"{operation.title} with {server.name}: {words}")
    count, taken = done.stdout.split()
    units = int(count) * operation.units
    return OperationRound(units / float(taken), used / 1000 / units)


def cpu_ns_of(group: int) -> int:
    """Return the CPU time of all threads of a process group, in ns.

    A daemon and its children are a process group.
    """
    total = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.getpgid(int(process.name)) == group:
                total += sum(
                    int((task / "schedstat").read_text().split()[0])
                    for task in (process / "task").iterdir()
                )
        except (ProcessLookupError, FileNotFoundError):
            # The thread has ended in the meantime.
            continue
    return total
