# SPDX-License-Identifier: Apache-2.0
"""The start of a daemon: until its socket is there, until it is ready, and what it takes then.

A VM manager starts the daemon, waits for the socket and connects; some wait for less than a second.
"""

import dataclasses
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.daemons import MeasuredDaemon
from farwatch_harness.bench.operations import cpu_ns_of
from farwatch_harness.util import paths, progress
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.virtiofs_daemon import START_LIMIT, Daemon, farwatchd_command

INTERVAL = 0.001


@dataclass(frozen=True)
class StartCost:
    """The starts of one daemon, one for each round.

    socket_ms, ready_ms: time until the socket is there, and until the daemon has logged that it is
        ready.
    socket_cpu_ms, ready_cpu_ms: CPU time of its processes until then.
    resident: resident bytes of each of its processes when it is ready, the greatest first.
    own: what all of them take together, in bytes: each process's private memory, and its part of
        what several processes share.
    """

    server: str
    socket_ms: tuple[float, ...] = ()
    socket_cpu_ms: tuple[float, ...] = ()
    ready_ms: tuple[float, ...] = ()
    ready_cpu_ms: tuple[float, ...] = ()
    resident: tuple[int, ...] = ()
    own: int = 0


def measure(servers: Sequence[MeasuredDaemon], rounds: int) -> list[StartCost]:
    """Start each daemon `rounds` times, in turn."""
    plain = [server for server in servers if server.device is QemuDevice.PLAIN]
    costs = [StartCost(server.name) for server in plain]
    with progress.step(f"starting {len(plain)} daemons, {rounds} rounds"):
        for _ in range(rounds):
            costs = [start_once(server, cost) for server, cost in zip(plain, costs, strict=True)]
    return costs


def start_once(server: MeasuredDaemon, cost: StartCost) -> StartCost:
    """Start a daemon and end it; return its cost with this round.

    HarnessError: it did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="farwatch-"))
    share, path = folder / "share", folder / "fs"
    share.mkdir()
    try:
        if server.command is None:
            words = farwatchd_command(path, share, "bench", server.options)
        else:
            words = [word.format(socket=path, shared=share, tag="bench") for word in server.command]
        began = time.monotonic()
        daemon = Daemon(words, paths.LOGS / "bench-start.log")
        try:
            wait_for_socket(daemon, path)
            at_socket, cpu_at_socket = time.monotonic(), cpu_ns_of(daemon.process.pid)
            daemon.wait_for_line(server.ready, START_LIMIT)
            at_ready, cpu_at_ready = time.monotonic(), cpu_ns_of(daemon.process.pid)
            resident, own = memory_of(daemon.process.pid)
        finally:
            daemon.stop()
    finally:
        shutil.rmtree(folder)
    return dataclasses.replace(
        cost,
        socket_ms=(*cost.socket_ms, 1e3 * (at_socket - began)),
        socket_cpu_ms=(*cost.socket_cpu_ms, cpu_at_socket / 1e6),
        ready_ms=(*cost.ready_ms, 1e3 * (at_ready - began)),
        ready_cpu_ms=(*cost.ready_cpu_ms, cpu_at_ready / 1e6),
        resident=resident,
        own=own,
    )


def wait_for_socket(daemon: Daemon, path: Path) -> None:
    """Wait until the socket is there. HarnessError: the daemon has ended, or the limit is over."""
    deadline = time.monotonic() + START_LIMIT
    while not path.exists():
        if not daemon.running or time.monotonic() > deadline:
            raise HarnessError(f"the daemon made no socket (see {daemon.log})")
        time.sleep(INTERVAL)


def memory_of(group: int) -> tuple[tuple[int, ...], int]:
    """Return the resident bytes of each process of a group, and their proportional ones in all."""
    resident, own = [], 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.getpgid(int(process.name)) == group:
                text = (process / "smaps_rollup").read_text()
                resident.append(kib_of(text, "Rss") * 1024)
                own += kib_of(text, "Pss") * 1024
        except (ProcessLookupError, FileNotFoundError):
            continue
    return tuple(sorted(resident, reverse=True)), own


def kib_of(text: str, name: str) -> int:
    """Return a number of smaps_rollup, in KiB; 0 if it is missing."""
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
