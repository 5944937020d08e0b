# SPDX-License-Identifier: Apache-2.0
"""What each daemon serves without a guest: a front end on the host sends it prepared requests
(``vhost_frontend``).

All daemons run the whole time and are measured in turn, operation by operation and round by round,
so that what else the machine does in the meantime falls on all of them alike.
"""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench import vhost_frontend
from farwatch_harness.bench.daemons import Server
from farwatch_harness.bench.fuse_requests import OPERATIONS, Tree, Work, begin, fill
from farwatch_harness.bench.operations import Operation, Rate, processor_ns
from farwatch_harness.bench.vhost_frontend import FrontEnd
from farwatch_harness.util import paths, progress
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.daemon_process import Daemon, farwatchd_command

DEPTHS = (1, 16)
#: Part of each measurement that is not counted, before it: processor and daemon find what they
#: need.
WARM_UP = 0.1


@dataclass(frozen=True)
class Served:
    """What one daemon did of one operation in each round, and what the front end itself needed.

    `front_end_us` is the front end's own processor time per unit, `busy` the part of the time in
    which it worked.
    """

    rate: Rate
    front_end_us: tuple[float, ...]
    busy: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """One round: units per second; processor time per unit, in microseconds, of the daemon and of
    the front end."""

    rate: float
    cpu_us: float
    front_end_us: float


@dataclass(frozen=True)
class Contestant:
    """A daemon that runs, and its front end."""

    name: str
    daemon: Daemon
    front_end: FrontEnd
    tree: Tree


def measure(
    servers: Sequence[Server], rounds: int, seconds: float, depths: Sequence[int] = DEPTHS
) -> list[Served]:
    """Each operation for `seconds` in each of `rounds`, with each of `depths` requests at a time.

    Of the servers those that serve the device without events, which all others serve as well.
    """
    found: dict[tuple[str, Operation], list[Sample]] = {}
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
                raise HarnessError(f"{each.name} did not serve well: {traces[0]}")
    return [
        Served(
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
    """How the report calls it."""
    return Operation(f"{work.title}, {depth}", f"{work.title}{work.unit} ({depth})", "", work.units)


@contextlib.contextmanager
def contestant(server: Server, share: Path) -> Iterator[Contestant]:
    """Starts a daemon and its front end; ends both when the block does."""
    directory = server.name.replace(" ", "-")
    fill(share / directory)
    with contextlib.ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="farwatch-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        path = place / "fs"
        if server.command is None:
            words = farwatchd_command(path, share, "bench", server.options)
        else:
            words = [word.format(socket=path, shared=share, tag="bench") for word in server.command]
        daemon = Daemon.start(words, paths.LOGS / f"bench-{directory}-synthetic.log", server.ready)
        stack.callback(daemon.stop)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        front_end = FrontEnd(sock, vhost_frontend.compiled())
        stack.callback(front_end.close)
        yield Contestant(server.name, daemon, front_end, begin(front_end, directory))


def run_once(each: Contestant, work: Work, depth: int, seconds: float) -> Sample:
    """One operation for `seconds`; HarnessError when a request has another result than it
    should."""
    slots = [work.requests(each.tree, slot) for slot in range(depth)]
    group = each.daemon.process.pid
    try:
        with each.front_end.prepared(slots) as program:
            each.front_end.drive(program, WARM_UP * seconds)
            before = processor_ns(group)
            done = each.front_end.drive(program, seconds)
            used = processor_ns(group) - before
    except HarnessError as error:
        raise HarnessError(f"{work.title} with {each.name}: {error}") from None
    units = done.runs * work.units
    return Sample(1e9 * units / done.wall_ns, used / 1000 / units, done.cpu_ns / 1000 / units)
