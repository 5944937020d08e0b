# SPDX-License-Identifier: Apache-2.0
"""Rates of each daemon without a guest: a front-end on the host sends it prepared requests.

The front-end is in vhost_frontend. All daemons run the whole time, and are measured in turn,
operation by operation and round by round, so that other load of the machine affects all of them
alike.
"""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench import vhost_frontend
from farwatch_harness.bench.daemons import MeasuredDaemon
from farwatch_harness.bench.fuse_requests import OPERATIONS, RequestTargets, Work, begin, fill
from farwatch_harness.bench.operations import Operation, Rate, cpu_ns_of
from farwatch_harness.bench.vhost_frontend import SyntheticFrontEnd
from farwatch_harness.util import paths, progress
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.virtiofs_daemon import Daemon, farwatchd_command

DEPTHS = (1, 16)
#: The part of the measurement's time for which each operation runs beforehand, uncounted.
WARM_UP = 0.1


@dataclass(frozen=True)
class SyntheticRate:
    """One daemon's rates of one operation, and the front-end's share.

    front_end_us: the front-end's own CPU time per unit in each round, in microseconds.
    busy: the part of the time in which the front-end worked.
    """

    rate: Rate
    front_end_us: tuple[float, ...]
    busy: tuple[float, ...]


@dataclass(frozen=True)
class SyntheticRound:
    """One round of one daemon.

    rate: units per second.
    cpu_us, front_end_us: CPU time per unit of daemon and front-end, in microseconds.
    """

    rate: float
    cpu_us: float
    front_end_us: float


@dataclass(frozen=True)
class Contestant:
    """A running daemon, and its front-end."""

    name: str
    daemon: Daemon
    front_end: SyntheticFrontEnd
    targets: RequestTargets


def measure(
    servers: Sequence[MeasuredDaemon], rounds: int, seconds: float, depths: Sequence[int] = DEPTHS
) -> list[SyntheticRate]:
    """Measure each operation for `seconds` in each of `rounds`, with each of `depths`.

    servers: those with the device without events are measured, because virtiofsd serves that one
    only.
    depths: the numbers of concurrent requests.
    """
    found: dict[tuple[str, Operation], list[SyntheticRound]] = {}
    with contextlib.ExitStack() as stack:
        share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-bench-")))
        plain = [server for server in servers if server.device is QemuDevice.PLAIN]
        contestants = [stack.enter_context(contestant(server, share)) for server in plain]
        with progress.step(
            f"measuring {len(OPERATIONS)} operations without a guest, {rounds} rounds"
        ) as step:
            for number in range(rounds):
                for work in OPERATIONS:
                    for depth in depths:
                        operation = operation_of(work, depth)
                        for each in contestants:
                            step.update(f"round {number + 1}, {operation.title}, {each.name}")
                            sample = run_once(each, work, depth, seconds)
                            found.setdefault((each.name, operation), []).append(sample)
        for each in contestants:
            if traces := each.daemon.tracebacks():
                raise HarnessError(f"{each.name}: {traces[0]}")
    return [
        SyntheticRate(
            Rate(
                name,
                operation,
                tuple(each.rate for each in samples),
                tuple(each.cpu_us for each in samples),
            ),
            tuple(each.front_end_us for each in samples),
            tuple(each.front_end_us * each.rate / 1e6 for each in samples),
        )
        for (name, operation), samples in found.items()
    ]


def operation_of(work: Work, depth: int) -> Operation:
    """Return the operation with the name that the report has for it."""
    return Operation(f"{work.title}, {depth}", f"{work.title}{work.unit} ({depth})", "", work.units)


@contextlib.contextmanager
def contestant(server: MeasuredDaemon, share: Path) -> Iterator[Contestant]:
    """Start a daemon and its front-end; end both when the block ends."""
    directory = server.name.replace(" ", "-")
    fill(share / directory)
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="farwatch-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "fs"
        if server.command is None:
            words = farwatchd_command(path, share, "bench", server.options)
        else:
            words = [word.format(socket=path, shared=share, tag="bench") for word in server.command]
        daemon = Daemon.start(words, paths.LOGS / f"bench-{directory}-synthetic.log", server.ready)
        stack.callback(daemon.stop)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        front_end = SyntheticFrontEnd(sock, vhost_frontend.compiled())
        stack.callback(front_end.close)
        yield Contestant(server.name, daemon, front_end, begin(front_end, directory))


def run_once(each: Contestant, work: Work, depth: int, seconds: float) -> SyntheticRound:
    """Run one operation for `seconds`.

    HarnessError: a request had another result than expected.
    """
    slots = [work.requests(each.targets, slot) for slot in range(depth)]
    group = each.daemon.process.pid
    try:
        with each.front_end.prepared(slots) as program:
            each.front_end.drive(program, WARM_UP * seconds)
            before = cpu_ns_of(group)
            done = each.front_end.drive(program, seconds)
            used = cpu_ns_of(group) - before
    except HarnessError as error:
        raise HarnessError(f"{work.title} with {each.name}: {error}") from None
    units = done.runs * work.units
    return SyntheticRound(
        1e9 * units / done.wall_ns, used / 1000 / units, done.cpu_ns / 1000 / units
    )
