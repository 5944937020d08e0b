# SPDX-License-Identifier: Apache-2.0
"""The stress test: the oracle under load for a given time.

In each round these run concurrently, in directories of their own: processes on the host and in the
guest write numbered streams (soak.stream), watchers in the guest stay or come and go (soak.guest),
and the oracle compares random scripts (soak.oracle). Between two rounds there is no watcher, the
guest drops its caches, and the daemon is measured (soak.result).
"""

import argparse
import contextlib
import dataclasses
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from farwatch_harness.soak.load import Load
from farwatch_harness.soak.oracle import Oracle
from farwatch_harness.soak.replacing import Replacements
from farwatch_harness.soak.result import (
    FEWEST_SAMPLES,
    ResourceSample,
    StressResult,
    faults,
    summary,
)
from farwatch_harness.soak.stream import Tally
from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.util.progress import duration, say, step
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.environment import Environment, patches_of_series, prepare_environment
from farwatch_harness.vm.testbed import (
    Share,
    Testbed,
    TestbedSpec,
    dropped_notifications,
    start_testbed,
)
from farwatch_harness.vm.virtiofs_daemon import Daemon

MODES = ("others", "remote", "wait")
ROUNDS = 12
SHORTEST_ROUND, LONGEST_ROUND = 6.0, 30.0
# Seconds without a change after which the daemon counts as idle, and the longest wait for that.
SETTLED, SETTLE_LIMIT, INTERVAL = 0.5, 20.0, 0.05


@dataclass(frozen=True)
class StressPlan:
    """What to run: `seconds` altogether, in rounds of `length` seconds."""

    mode: str
    seconds: float
    seed: str
    replace: bool = False

    @property
    def length(self) -> float:
        """The length of a round, in seconds."""
        return min(max(self.seconds / ROUNDS, SHORTEST_ROUND), LONGEST_ROUND)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="N", help="how long (%(default)s)"
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help="how events reach the guest (%(default)s)"
    )
    parser.add_argument("--seed", metavar="S", help="repeats the scripts of the run that named it")
    parser.add_argument(
        "--replace", action="store_true", help="replace the daemon every few seconds"
    )


def plan_of(options: argparse.Namespace) -> StressPlan:
    """Return the plan that the options ask for. HarnessError: the time is too short."""
    if options.minutes < 1:
        raise HarnessError("soak: --minutes must be 1 or more: less shows no growth of memory")
    seed = options.seed or secrets.token_hex(4)
    return StressPlan(options.mode, options.minutes * 60, seed, options.replace)


def testbed_spec(environment: Environment, mode: str, shared: Path) -> TestbedSpec:
    """Return the spec of a testbed in this mode."""
    spec = dataclasses.replace(environment.testbed_spec(f"soak-{mode}", shared), cpus=2)
    if mode == "wait":
        return dataclasses.replace(spec, device=QemuDevice.PLAIN, daemon_options=("--xattr",))
    return dataclasses.replace(spec, daemon_options=("--xattr", f"--fsnotify={mode}"))


def soak(plan: StressPlan) -> None:
    """Run the plan and print a summary.

    HarnessError: there was a fault; the text has the seed.
    """
    environment = prepare_environment(patches_of_series())
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-soak-")))
            shared = folder / "share"
            shared.mkdir()
            replacements = stack.enter_context(Replacements(Random(plan.seed)))
            with step(f"booting a guest in mode {plan.mode}"):
                testbed = stack.enter_context(
                    start_testbed(testbed_spec(environment, plan.mode, shared))
                )
            random = Random(plan.seed)
            root = Share(testbed.shared, testbed.mount_point)
            load = stack.enter_context(
                contextlib.closing(Load(testbed.guest, root, Random(random.random())))
            )
            oracle = stack.enter_context(
                contextlib.closing(Oracle(testbed.guest, root, plan.mode, folder, random))
            )
            if plan.replace:
                replacements.start(testbed)
            found = guarded(testbed, plan, load, oracle, replacements)
    except GuestLostError as error:
        raise HarnessError(
            f"the stress test --mode {plan.mode} --seed {plan.seed} lost its guest: {error}"
        ) from None
    wrong = faults(found)
    print(f"soak --mode {plan.mode} --seed {plan.seed}, {duration(plan.seconds)}:")
    for line in [*summary(found), *wrong]:
        print(f"  {line}")
    if wrong:
        raise HarnessError(
            f"the stress test failed ({len(wrong)} faults); --mode {plan.mode} --seed {plan.seed}"
            " repeats it"
        )
    say("  no event was lost or reported twice, and the daemon did not grow")


def guarded(
    testbed: Testbed, plan: StressPlan, load: Load, oracle: Oracle, replacements: Replacements
) -> StressResult:
    """Run all rounds; fail immediately if the daemon ends, instead of at the guest's limits."""

    def give_up() -> None:
        ended = None
        while ended is not testbed.daemon:
            ended = testbed.daemon
            ended.process.wait()
            with replacements.lock:
                pass
        testbed.guest.mark_lost()

    threading.Thread(target=give_up, name="end of the daemon", daemon=True).start()
    try:
        found = rounds(testbed, plan, load, oracle, replacements)
        replacements.stop()
        if plan.replace:
            say(f"  the daemon was replaced {replacements.count} times")
        return dataclasses.replace(found, problems=(*found.problems, *replacements.problems))
    except GuestLostError:
        if testbed.daemon.running:
            raise
        words = subprocesses.last_lines("\n".join(testbed.daemon.lines))
        raise HarnessError(
            f"the daemon ended with {testbed.daemon.process.returncode}: {words} (see"
            f" {testbed.daemon.log}); --mode {plan.mode} --seed {plan.seed} repeats it"
        ) from None


def rounds(
    testbed: Testbed, plan: StressPlan, load: Load, oracle: Oracle, replacements: Replacements
) -> StressResult:
    """Run rounds until the time is over and there are enough samples."""
    steady, passing = Tally(), Tally()
    problems: list[str] = []
    notes: list[str] = []
    samples: list[ResourceSample] = []
    since = testbed.log_position()
    with step(f"stress test in mode {plan.mode}") as progress:
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end or len(samples) < FEWEST_SAMPLES:
            with load.round(plan.length) as outcome:
                oracle.run(time.monotonic() + plan.length, progress)
            steady += outcome.steady
            passing += outcome.passing
            problems += outcome.problems
            notes += [f"round {len(samples)}, {note}" for note in outcome.notes]
            with replacements.lock:
                samples.append(sample(testbed))
            progress.update(f"{steady.seen + passing.seen} events, {oracle.scripts} scripts")
    return StressResult(
        steady,
        passing,
        oracle.scripts,
        tuple(oracle.differences),
        tuple(samples),
        dropped_notifications(testbed.guest),
        tuple(testbed.daemon.warnings(testbed.lines_before(since))),
        (*problems, *testbed.problems(since)),
        tuple(notes),
    )


def sample(testbed: Testbed) -> ResourceSample:
    """Measure the daemon after the guest has dropped its caches and the daemon is idle."""
    testbed.guest.write_file("/proc/sys/vm/drop_caches", b"3")
    deadline = time.monotonic() + SETTLE_LIMIT
    now, since = measured(testbed.daemon), time.monotonic()
    while time.monotonic() < min(deadline, since + SETTLED):
        # FORGET requests have no reply, and nothing marks the last one.
        time.sleep(INTERVAL)
        if (then := measured(testbed.daemon)) != now:
            now, since = then, time.monotonic()
    return now


def measured(daemon: Daemon) -> ResourceSample:
    """Measure the daemon."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    # RssAnon leaves out the guest's memory, which the daemon maps.
    memory = next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")
    )
    return ResourceSample(daemon.descriptors(), memory, daemon.host_watches())
