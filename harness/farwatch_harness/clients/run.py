# SPDX-License-Identifier: Apache-2.0
"""`make clients`: each watcher natively and on a share, the same changes on the host, compared."""

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from farwatch_harness.clients import catalog, scenario
from farwatch_harness.clients.catalog import DIRECTORY, WatchProgram
from farwatch_harness.util import progress
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.testbed import Testbed, start_testbed

#: Seconds without a line after which a watcher has reported all of a step.
QUIET = 1.5
QUIET_IN_GUEST = 4.0
#: Seconds for a watcher to start; an emulated guest takes long to start node or Java.
START_LIMIT = 240.0
#: Seconds that the guest's watcher has to report what all native runs reported.
STEP_LIMIT = 60.0
#: Native runs: what a watcher reports may differ from run to run.
NATIVE_RUNS = 3
RESULT = catalog.FOLDER / "results.json"

#: The lines of each step, sorted, without repetitions.
Report = dict[str, tuple[str, ...]]
#: Wait for a line: seconds in, a line out; None if none has come, or the watcher has ended.
NextLine = Callable[[float], str | None]


class Difference(NamedTuple):
    """The lines of one step that only native runs had, and that only the guest's run had."""

    missing: tuple[str, ...]
    more: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The steps in which a watcher reported something else on the share than natively."""

    name: str
    version: str
    differences: dict[str, Difference]


def normalized(lines: Sequence[str], directory: str) -> tuple[str, ...]:
    """Return lines without the directory's path, sorted and without repetitions.

    Watchers join changes by the time between them, so order and number differ natively as well.
    """
    return tuple(sorted({line.replace(directory, "DIR").strip() for line in lines} - {""}))


def differences(native: Sequence[Report], guest: Report) -> dict[str, Difference]:
    """Return the steps in which the guest's watcher reported something else than natively.

    What every native run reported must be there, and nothing that no native run reported.
    """
    found = {}
    wanted = common(native)
    for step, lines in guest.items():
        missing = set(wanted[step]) - set(lines)
        more = set(lines).difference(*(run[step] for run in native))
        if missing or more:
            found[step] = Difference(tuple(sorted(missing)), tuple(sorted(more)))
    return found


def common(native: Sequence[Report]) -> Report:
    """Return for each step the lines that all native runs had."""
    return {
        step: tuple(sorted(set(native[0][step]).intersection(*(run[step] for run in native))))
        for step in native[0]
    }


def observe(
    client: WatchProgram,
    shared: Path,
    seen: str,
    quiet: float,
    next_line: NextLine,
    wanted: Report | None = None,
) -> Report:
    """Wait until a watcher is ready, do all steps in ``shared``, and return its report.

    seen: the path by which the watcher knows the directory.
    wanted: lines of each step that are awaited, for STEP_LIMIT seconds.
    """
    said: list[str] = []
    while not said or client.ready not in said[-1]:
        line = next_line(START_LIMIT)
        if line is None:
            raise HarnessError(f"{client.name} does not watch; it said: {' / '.join(said[-3:])}")
        said.append(line)
    report: Report = {}
    settled(quiet, next_line)
    for step in scenario.STEPS:
        step.act(shared)
        awaited = set() if wanted is None else set(wanted[step.name])
        end = time.monotonic() + STEP_LIMIT
        lines = settled(quiet, next_line)
        while not awaited.issubset(normalized(lines, seen)) and time.monotonic() < end:
            lines += settled(quiet, next_line)
        report[step.name] = normalized(lines, seen)
    return report


def settled(quiet: float, next_line: NextLine) -> list[str]:
    """Return all lines until none has come for ``quiet`` seconds."""
    lines = []
    while (line := next_line(quiet)) is not None:
        lines.append(line)
    return lines


def command(client: WatchProgram, directory: str) -> list[str]:
    """Return the command line of a watcher."""
    return [word.replace(DIRECTORY, directory) for word in client.argv]


def native_report(client: WatchProgram, directory: Path) -> Report:
    """Run a watcher on the host, and return its report."""
    directory.mkdir()
    scenario.prepare(directory)
    with native_lines(command(client, str(directory))) as next_line:
        return observe(client, directory, str(directory), QUIET, next_line)


@contextmanager
def native_lines(argv: list[str]) -> Iterator[NextLine]:
    """Run a program in a session of its own; yield what returns its next line."""
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()

    def next_line(limit: float) -> str | None:
        try:
            return lines.get(timeout=limit)
        except queue.Empty:
            return None

    try:
        yield next_line
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def guest_report(client: WatchProgram, testbed: Testbed, name: str, wanted: Report) -> Report:
    """Run a watcher in the guest, and return its report of changes on the host."""
    shared, seen = testbed.shared / name, f"{testbed.mount_point}/{name}"
    shared.mkdir()
    scenario.prepare(shared)
    process = testbed.guest.spawn(*command(client, seen))
    try:

        def next_line(limit: float) -> str | None:
            if not waiting:
                waiting.extend(process.lines(limit=limit, count=1))
            return waiting.popleft() if waiting else None

        waiting: deque[str] = deque()
        return observe(client, shared, seen, QUIET_IN_GUEST, next_line, wanted)
    finally:
        process.stop(9)


def compare(environment: Environment, names: Sequence[str]) -> list[Outcome]:
    """Run the chosen watchers, or all, on both sides; write and return what they reported."""
    clients = [one for one in catalog.install() if not names or one.name in names]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="farwatch-clients-", dir="/var/tmp") as top:
        shared = Path(top, "share")
        shared.mkdir()
        with start_testbed(environment.testbed_spec("clients", shared)) as testbed:
            for number, client in enumerate(clients):
                with progress.step(client.name):
                    folders = [Path(top, f"{number}-{run}") for run in range(NATIVE_RUNS)]
                    with ThreadPoolExecutor() as pool:
                        native = list(pool.map(partial(native_report, client), folders))
                    guest = guest_report(client, testbed, str(number), common(native))
                    found = differences(native, guest)
                outcomes.append(Outcome(client.name, client.version(), found))
                RESULT.write_text(json.dumps([vars(one) for one in outcomes], indent=1))
            problems = testbed.problems()
    if problems:
        raise HarnessError(f"the guest's kernel or the daemon has complained: {problems}")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = ["| watcher | version | on a share |", "| -- | -- | -- |"]
    for one in outcomes:
        steps = ", ".join(one.differences)
        result = f"different: {steps}" if steps else "as natively"
        lines.append(f"| {one.name} | {one.version} | {result} |")
    return "\n".join(lines)
