# SPDX-License-Identifier: Apache-2.0
"""The soak: the oracle under load for a given time, with a verdict.

Round after round, all at once in directories of their own: processes on the host and in the guest
write numbered streams (soak_stream), watchers in the guest stay or come and go (soak_guest), and
the oracle compares random scripts. Between two rounds nobody watches, the guest drops its caches
and the daemon is measured (soak_verdict).
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
from farwatch_harness.vm.daemon_process import Daemon
from farwatch_harness.vm.environment import Environment, patches_of_series, prepare_environment
from farwatch_harness.vm.testbed import Share, Testbed, TestbedSpec, start_testbed

MODES = ("others", "remote", "wait")
ROUNDS = 12
SHORTEST_ROUND, LONGEST_ROUND = 6.0, 30.0
DROPPED = "/sys/fs/virtiofs/*/notify_dropped"
# Seconds without a change after which the daemon has let go of what the guest does not need, and
# for that at most.
SETTLED, SETTLE_LIMIT, INTERVAL = 0.5, 20.0, 0.05


@dataclass(frozen=True)
class StressPlan:
    """What to do: `seconds` altogether, in rounds of `length` seconds."""

    mode: str
    seconds: float
    seed: str

    @property
    def length(self) -> float:
        return min(max(self.seconds / ROUNDS, SHORTEST_ROUND), LONGEST_ROUND)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="N", help="how long (%(default)s)"
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help="how events reach the guest (%(default)s)"
    )
    parser.add_argument("--seed", metavar="S", help="repeats the scripts of the run that named it")


def plan_of(options: argparse.Namespace) -> StressPlan:
    """The plan that the options ask for; HarnessError when it makes no sense."""
    if options.minutes < 1:
        raise HarnessError("soak: --minutes must be 1 or more, or growth cannot be told")
    return StressPlan(options.mode, options.minutes * 60, options.seed or secrets.token_hex(4))


def testbed_spec(environment: Environment, mode: str, shared: Path) -> TestbedSpec:
    """A machine of that mode."""
    spec = dataclasses.replace(environment.testbed_spec(f"soak-{mode}", shared), cpus=2)
    if mode == "wait":
        return dataclasses.replace(spec, device=QemuDevice.PLAIN, daemon_options=("--xattr",))
    return dataclasses.replace(spec, daemon_options=("--xattr", f"--fsnotify={mode}"))


def soak(plan: StressPlan) -> None:
    """Runs the plan and prints a summary; HarnessError with the seed when anything was wrong."""
    environment = prepare_environment(patches_of_series())
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-soak-")))
            shared = folder / "share"
            shared.mkdir()
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
            found = guarded(testbed, plan, load, oracle)
    except GuestLostError as error:
        raise HarnessError(
            f"the soak --mode {plan.mode} --seed {plan.seed} lost its guest: {error}"
        ) from None
    wrong = faults(found)
    print(f"soak --mode {plan.mode} --seed {plan.seed}, {duration(plan.seconds)}:")
    for line in [*summary(found), *wrong]:
        print(f"  {line}")
    if wrong:
        raise HarnessError(
            f"the soak failed ({len(wrong)} faults); --mode {plan.mode} --seed {plan.seed}"
            " repeats it"
        )
    say("  nothing lost, nothing twice, nothing left behind")


def guarded(testbed: Testbed, plan: StressPlan, load: Load, oracle: Oracle) -> StressResult:
    """All rounds; a daemon that ends is an error at once, instead of one when the guest has waited
    long enough."""

    def give_up() -> None:
        testbed.daemon.process.wait()
        testbed.guest.mark_lost()

    threading.Thread(target=give_up, name="end of the daemon", daemon=True).start()
    try:
        return rounds(testbed, plan, load, oracle)
    except GuestLostError:
        if testbed.daemon.running:
            raise
        words = subprocesses.last_lines("\n".join(testbed.daemon.lines))
        raise HarnessError(
            f"the daemon ended with {testbed.daemon.process.returncode}: {words} (see"
            f" {testbed.daemon.log}); --mode {plan.mode} --seed {plan.seed} repeats it"
        ) from None


def rounds(testbed: Testbed, plan: StressPlan, load: Load, oracle: Oracle) -> StressResult:
    """Round after round until the time is over, and enough have been."""
    steady, passing = Tally(), Tally()
    problems: list[str] = []
    notes: list[str] = []
    samples: list[ResourceSample] = []
    since = testbed.log_position()
    with step(f"soaking in mode {plan.mode}") as progress:
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end or len(samples) < FEWEST_SAMPLES:
            with load.round(plan.length) as outcome:
                oracle.run(time.monotonic() + plan.length, progress)
            steady += outcome.steady
            passing += outcome.passing
            problems += outcome.problems
            notes += [f"round {len(samples)}, {note}" for note in outcome.notes]
            samples.append(sample(testbed))
            progress.update(f"{steady.seen + passing.seen} events, {oracle.scripts} scripts")
    return StressResult(
        steady,
        passing,
        oracle.scripts,
        tuple(oracle.differences),
        tuple(samples),
        int(testbed.guest.shell(f"cat {DROPPED}")),
        tuple(testbed.daemon.warnings(since.daemon_lines)),
        (*problems, *testbed.problems(since)),
        tuple(notes),
    )


def sample(testbed: Testbed) -> ResourceSample:
    """The daemon, when the guest holds on to nothing that it does not use."""
    testbed.guest.write_file("/proc/sys/vm/drop_caches", b"3")
    deadline = time.monotonic() + SETTLE_LIMIT
    now, since = measured(testbed.daemon), time.monotonic()
    while time.monotonic() < min(deadline, since + SETTLED):
        # What the guest lets go of arrives without an answer, and nothing says that it was the
        # last.
        time.sleep(INTERVAL)
        if (then := measured(testbed.daemon)) != now:
            now, since = then, time.monotonic()
    return now


def measured(daemon: Daemon) -> ResourceSample:
    """The daemon now."""
    process = Path(f"/proc/{daemon.process.pid}")
    status = (process / "status").read_text()
    # Not the guest's memory, which the daemon shares.
    memory = next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")
    )
    watches = 0
    for entry in (process / "fdinfo").iterdir():
        # Closed since the directory was read, perhaps.
        with contextlib.suppress(FileNotFoundError):
            text = entry.read_text()
            watches += text.count("inotify wd:") + text.count("fanotify ino:")
    return ResourceSample(sum(1 for _ in (process / "fd").iterdir()), memory, watches)
