# SPDX-License-Identifier: Apache-2.0
"""The stress test: the oracle under load for a given time.

In each round these run concurrently, in directories of their own: processes on the host and in the
guest write numbered streams (soak.stream), watchers in the guest stay or come and go (soak.guest),
and the oracle compares random scripts (soak.oracle). Between two rounds there is no watcher, the
guest drops its caches, and the daemon is measured (soak.result).

A second guest has a daemon of its own on the same directory. Each guest must get the events of the
other one's stream once, and those of its own stream once, from its own kernel.
"""

import argparse
import contextlib
import dataclasses
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from farwatch_harness.soak.load import Load
from farwatch_harness.soak.migrating import MigratingTestbed
from farwatch_harness.soak.oracle import Oracle
from farwatch_harness.soak.replacing import NextDaemon, Replacements
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
from farwatch_harness.vm.migration import start_migrating_guest
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
#: The memory of a guest that migrates.
MIGRATING_MIB = 768
#: The descriptors of the second guest's daemon.
SECOND_DESCRIPTORS = 1024


@dataclass(frozen=True)
class StressPlan:
    """What to run: `seconds` altogether, in rounds of `length` seconds."""

    mode: str
    seconds: float
    seed: str
    next_daemon: NextDaemon | None = None
    guests: int = 1

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
        "--guests",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: a second guest on the same directory, which opens files until its daemon refuses",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace the daemon every few seconds"
    )
    parser.add_argument(
        "--kill-daemon",
        action="store_true",
        help="kill the daemon every few seconds, and start another one with its state",
    )
    parser.add_argument(
        "--migrate",
        action="store_true",
        help="migrate the guest every few seconds to another QEMU and daemon; with --mode wait",
    )


def plan_of(options: argparse.Namespace) -> StressPlan:
    """Return the plan that the options ask for. HarnessError: the time is too short."""
    if options.minutes < 1:
        raise HarnessError("soak: --minutes must be 1 or more: less shows no growth of memory")
    if options.guests > 1 and options.mode == "remote":
        raise HarnessError("soak: --guests 2 needs a mode that leaves out own events")
    seed = options.seed or secrets.token_hex(4)
    chosen = [
        how
        for how, wanted in (
            (NextDaemon.REPLACED, options.replace),
            (NextDaemon.KILLED, options.kill_daemon),
            (NextDaemon.MIGRATED, options.migrate),
        )
        if wanted
    ]
    if len(chosen) > 1:
        raise HarnessError("soak: --replace, --kill-daemon and --migrate exclude each other")
    if options.guests > 1 and (options.kill_daemon or options.migrate):
        raise HarnessError("soak: --kill-daemon and --migrate exclude --guests 2")
    if options.migrate and options.mode != "wait":
        raise HarnessError("soak: --migrate needs --mode wait: QEMU migrates only that device")
    return StressPlan(
        mode=options.mode,
        seconds=options.minutes * 60,
        seed=seed,
        next_daemon=chosen[0] if chosen else None,
        guests=options.guests,
    )


def testbed_spec(
    environment: Environment, mode: str, shared: Path, state: Path | None = None
) -> TestbedSpec:
    """Return the spec of a testbed in this mode; `state` is the daemon's state directory."""
    spec = dataclasses.replace(environment.testbed_spec(f"soak-{mode}", shared), cpus=2)
    options: tuple[str, ...] = ("--xattr",)
    if state is not None:
        options += (f"--state-dir={state}",)
    if mode == "wait":
        return dataclasses.replace(spec, device=QemuDevice.PLAIN, daemon_options=options)
    return dataclasses.replace(spec, daemon_options=(*options, f"--fsnotify={mode}"))


def second_spec(first: TestbedSpec) -> TestbedSpec:
    """Return the spec of the second guest, whose daemon has few descriptors."""
    return dataclasses.replace(
        first,
        name=f"{first.name}-second",
        cpus=1,
        memory_mib=512,
        daemon_options=(*first.daemon_options, f"--rlimit-nofile={SECOND_DESCRIPTORS}"),
    )


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
            how = plan.next_daemon or NextDaemon.REPLACED
            replacements = stack.enter_context(Replacements(Random(plan.seed), how))
            with step(f"booting a guest in mode {plan.mode}"):
                state = folder / "state" if how is NextDaemon.KILLED else None
                spec = testbed_spec(environment, plan.mode, shared, state)
                testbed: Testbed | MigratingTestbed
                if how is NextDaemon.MIGRATED:
                    migrating = stack.enter_context(start_migrating_guest(spec, MIGRATING_MIB))
                    testbed = MigratingTestbed(migrating)
                else:
                    testbed = stack.enter_context(start_testbed(spec))
            testbeds: list[Testbed | MigratingTestbed] = [testbed]
            if plan.guests > 1:
                with step("booting a second guest"):
                    testbeds.append(stack.enter_context(start_testbed(second_spec(spec))))
            random = Random(plan.seed)
            root = Share(testbed.shared, testbed.mount_point)
            load = stack.enter_context(
                contextlib.closing(
                    Load(
                        testbed.guest,
                        root,
                        Random(random.random()),
                        testbeds[1].guest if plan.guests > 1 else None,
                        gaps=how is not NextDaemon.REPLACED,
                    )
                )
            )
            oracle = stack.enter_context(
                contextlib.closing(
                    Oracle(
                        testbed.guest,
                        root,
                        plan.mode,
                        folder,
                        random,
                        replacements.killed_since,
                    )
                )
            )
            if plan.next_daemon is not None:
                replacements.start(replace_by(testbed, how))
            found = guarded(testbeds, plan, load, oracle, replacements)
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


def replace_by(testbed: Testbed | MigratingTestbed, how: NextDaemon) -> Callable[[], None]:
    """Return what gives the guest its next daemon."""
    if isinstance(testbed, MigratingTestbed):
        return testbed.migrate
    return testbed.kill_daemon if how is NextDaemon.KILLED else testbed.replace_daemon


def guarded(
    testbeds: Sequence[Testbed | MigratingTestbed],
    plan: StressPlan,
    load: Load,
    oracle: Oracle,
    replacements: Replacements,
) -> StressResult:
    """Run all rounds; fail immediately if a daemon ends, instead of at the guest's limits."""

    def give_up(testbed: Testbed | MigratingTestbed) -> None:
        ended = None
        while ended is not testbed.daemon:
            ended = testbed.daemon
            ended.process.wait()
            with replacements.lock:
                pass
        testbed.guest.mark_lost()

    for testbed in testbeds:
        threading.Thread(
            target=give_up, args=(testbed,), name="end of the daemon", daemon=True
        ).start()
    try:
        found = rounds(testbeds, plan, load, oracle, replacements)
        replacements.stop()
        if plan.next_daemon is NextDaemon.REPLACED:
            say(f"  the daemon was replaced {replacements.count} times")
        elif plan.next_daemon is not None:
            what = (
                "daemon was killed" if plan.next_daemon is NextDaemon.KILLED else "guest migrated"
            )
            say(f"  the {what} {replacements.count} times; {oracle.uncompared} scripts had gaps")
            found = dataclasses.replace(found, gaps=replacements.count)
        return dataclasses.replace(found, problems=(*found.problems, *replacements.problems))
    except GuestLostError:
        ended = [testbed.daemon for testbed in testbeds if not testbed.daemon.running]
        if not ended:
            raise
        words = subprocesses.last_lines("\n".join(ended[0].lines))
        raise HarnessError(
            f"the daemon ended with {ended[0].process.returncode}: {words} (see"
            f" {ended[0].log}); --mode {plan.mode} --seed {plan.seed} repeats it"
        ) from None


def rounds(
    testbeds: Sequence[Testbed | MigratingTestbed],
    plan: StressPlan,
    load: Load,
    oracle: Oracle,
    replacements: Replacements,
) -> StressResult:
    """Run rounds until the time is over and there are enough samples."""
    steady, passing, across = Tally(), Tally(), Tally()
    problems: list[str] = []
    notes: list[str] = []
    samples: list[list[ResourceSample]] = [[] for _ in testbeds]
    since = [testbed.log_position() for testbed in testbeds]
    with step(f"stress test in mode {plan.mode}") as progress:
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end or len(samples[0]) < FEWEST_SAMPLES:
            with load.round(plan.length) as outcome:
                oracle.run(time.monotonic() + plan.length, progress)
            steady += outcome.steady
            passing += outcome.passing
            across += outcome.across
            problems += outcome.problems
            notes += [f"round {len(samples[0])}, {note}" for note in outcome.notes]
            with replacements.lock:
                for testbed, of_daemon in zip(testbeds, samples, strict=True):
                    of_daemon.append(sample(testbed))
            seen = steady.seen + passing.seen + across.seen
            progress.update(f"{seen} events, {oracle.scripts} scripts")
    warnings: list[str] = []
    for testbed, position in zip(testbeds, since, strict=True):
        warnings += testbed.daemon.warnings(testbed.lines_before(position))
        problems += testbed.problems(position)
    return StressResult(
        steady,
        passing,
        oracle.scripts,
        tuple(oracle.differences),
        tuple(map(tuple, samples)),
        sum(
            dropped_notifications(testbed.guest)
            for testbed in testbeds
            if isinstance(testbed, Testbed)
        ),
        tuple(warnings),
        tuple(problems),
        tuple(notes),
        across if plan.guests > 1 else None,
    )


def sample(testbed: Testbed | MigratingTestbed) -> ResourceSample:
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
