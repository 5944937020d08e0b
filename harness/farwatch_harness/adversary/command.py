# SPDX-License-Identifier: Apache-2.0
"""`make fuzz-kernel`: plays random scripts for a time, and shortens those with a finding."""

import argparse
import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from farwatch_harness.adversary import arena
from farwatch_harness.adversary.arena import Arena, Finding
from farwatch_harness.adversary.script import THEMES, TRANSPORTS, Script, generate
from farwatch_harness.adversary.shrink import shrink
from farwatch_harness.kernel import build, versions
from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.util.progress import say, step
from farwatch_harness.vm.environment import Environment, patches_of_series, prepare_environment

SAVED = paths.CHECKOUT / "build" / "adversary"
#: The number of scripts that a guest plays before it is scanned for leaks.
SCRIPTS_PER_GUEST = 12
#: kmemleak slows a guest down, so only one guest of this number has it.
GUESTS_PER_LEAK_SEARCH = 3
#: How often a script is played before it counts as one without a finding.
TRIES = 3


@dataclass(frozen=True)
class Plan:
    """What to play: random scripts for `seconds`, or the scripts in `replay`, each `times`."""

    seconds: float
    seed: str
    transports: tuple[str, ...]
    pool: tuple[str, ...]
    debug: bool
    shrink_seconds: float
    series: Path
    replay: tuple[Path, ...]
    times: int
    keep_going: bool


@dataclass(frozen=True)
class Found:
    """A script and its finding."""

    script: Script
    finding: Finding


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="N", help="how long (%(default)s)"
    )
    parser.add_argument("--seed", metavar="S", help="plays the scripts of the run that named it")
    parser.add_argument(
        "--transport", choices=TRANSPORTS, action="append", help="only this one, may be repeated"
    )
    parser.add_argument(
        "--only",
        choices=THEMES,
        action="append",
        metavar="THEME",
        help="only these, may be repeated",
    )
    parser.add_argument(
        "--without",
        choices=THEMES,
        action="append",
        default=[],
        metavar="THEME",
        help=f"leaves this out, may be repeated: {', '.join(THEMES)}",
    )
    parser.add_argument(
        "--plain", action="store_true", help="the ordinary kernel instead of the debug kernel"
    )
    parser.add_argument(
        "--shrink",
        type=float,
        default=5.0,
        metavar="N",
        help="minutes to shorten each failing script (%(default)s)",
    )
    parser.add_argument("--series", type=Path, metavar="DIR", help="another series")
    parser.add_argument(
        "--replay", type=Path, nargs="+", default=[], metavar="FILE", help="plays saved scripts"
    )
    parser.add_argument(
        "--times",
        type=int,
        default=TRIES,
        metavar="N",
        help="how often each is played (%(default)s)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="goes on after a finding until the time is over"
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for."""
    return Plan(
        options.minutes * 60,
        options.seed or secrets.token_hex(4),
        tuple(options.transport or TRANSPORTS),
        tuple(each for each in options.only or THEMES if each not in options.without),
        not options.plain,
        options.shrink * 60,
        (options.series or versions.current().folder).resolve(),
        tuple(options.replay),
        options.times,
        options.keep_going,
    )


def fuzz(plan: Plan) -> None:
    """Run the plan. HarnessError: there was a finding."""
    flavour = build.Flavour.DEBUG if plan.debug else build.Flavour.NORMAL
    environment = prepare_environment(patches_of_series(folder=plan.series), flavour)
    found = replay(plan, environment) if plan.replay else hunt(plan, environment)
    for each in found:
        print(
            f"{each.script.seed} ({each.script.transport}, {each.script.mode}): {each.finding.kind}"
        )
    if found:
        raise HarnessError(
            f"the adversary found {len(found)} faults; scripts and consoles are in {SAVED}"
        )


def replay(plan: Plan, environment: Environment) -> list[Found]:
    """Play saved scripts, and shorten those with a finding; return the findings."""
    found = []
    for path in plan.replay:
        script = Script.load(path)
        with (
            step(f"playing {path.name}"),
            contextlib.closing(Replayer(environment, leaks=True)) as replayer,
        ):
            finding = replayer.play(script, plan.times)
        if finding:
            say(f"  {finding.kind}")
            result = Found(script, finding)
            save(result, "found")
            found.append(shortened(plan, environment, result) if plan.shrink_seconds else result)
    return found


def hunt(plan: Plan, environment: Environment) -> list[Found]:
    """Play random scripts until the time is over, or until there is a finding."""
    found: list[Found] = []
    deadline = time.monotonic() + plan.seconds
    played = guests = 0
    say(f"  seed: {plan.seed}")
    with step("playing random scripts") as progress:
        while time.monotonic() < deadline and (plan.keep_going or not found):
            guests += 1
            leaks = guests % GUESTS_PER_LEAK_SEARCH == 0
            for result in play_in_one_guest(plan, environment, played, leaks, deadline):
                played += 1
                progress.update(f"{played} scripts, {guests} guests, {len(found)} found")
                if result is not None:
                    found.append(result)
                    save(result, "found")
    say(f"  {played} scripts were played")
    if plan.shrink_seconds:
        found = [shortened(plan, environment, each) for each in found]
    return found


def play_in_one_guest(
    plan: Plan, environment: Environment, number: int, leaks: bool, deadline: float
) -> Iterator[Found | None]:
    """Play the scripts from `number` on in one guest while it can be used; yield the findings."""
    script = generate(f"{plan.seed}-{number}", plan.transports, plan.pool)
    machine = (script.transport, script.request_queues)
    with arena.running(environment, *machine, leaks=leaks) as guest:
        for count in range(1, SCRIPTS_PER_GUEST + 1):
            finding = guest.play(script)
            last = count == SCRIPTS_PER_GUEST or guest.server.gone or time.monotonic() > deadline
            if not finding and last:
                finding = guest.leaks()
            yield Found(script, finding) if finding else None
            if last:
                guest.faults.check()
            if last or (finding and not (finding.harmless and guest.clean_up())):
                return
            if finding and not plan.keep_going:
                return
            # The running guest decides on which transport the next script is played.
            following = generate(f"{plan.seed}-{number + count}", machine[:1], plan.pool)
            script = replace(following, request_queues=machine[1])


class Replayer:
    """Plays scripts one after the other, each in a usable guest; `close` ends it.

    The guest of the previous script is used again if nothing broke it.
    """

    def __init__(self, environment: Environment, leaks: bool = False) -> None:
        self.environment = environment
        self.leaks = leaks
        self.stack = contextlib.ExitStack()
        self.guest: Arena | None = None
        self.machine: tuple[str, int] | None = None

    def play(self, script: Script, times: int) -> Finding | None:
        """Play a script up to `times`; return its first finding."""
        for _ in range(times):
            guest = self.fit_guest((script.transport, script.request_queues))
            finding = guest.play(script)
            if guest.server.gone or (finding and not (finding.harmless and guest.clean_up())):
                self.close()
            if finding:
                return finding
        return self.guest.leaks() if self.guest else None

    def fit_guest(self, machine: tuple[str, int]) -> Arena:
        """Return a guest that can be used for the script."""
        if self.guest is None or machine != self.machine:
            self.close()
            running = arena.running(self.environment, *machine, leaks=self.leaks)
            self.guest = self.stack.enter_context(running)
            self.machine = machine
        return self.guest

    def close(self) -> None:
        """End the guest, if there is one."""
        self.guest = None
        self.stack.close()


def shortened(plan: Plan, environment: Environment, found: Found) -> Found:
    """Return the same finding with the shortest script that showed it."""
    end = time.monotonic() + plan.shrink_seconds
    last = found.finding
    kind = found.finding.kind
    replayer = Replayer(environment, leaks=kind == "leak")

    def fails(candidate: Script) -> bool:
        nonlocal last
        try:
            finding = replayer.play(candidate, TRIES)
        except (GuestLostError, HarnessError):
            replayer.close()
            return False
        if finding is None or finding.kind != kind:
            return False
        last = finding
        save(Found(candidate, finding), "short")
        return True

    with (
        contextlib.closing(replayer),
        step(f"shortening the script {found.script.seed}") as progress,
    ):
        if not fails(found.script):
            say(f"  {found.script.seed} does not give '{kind}' again; it is kept as it is")
            return found

        def going_on() -> bool:
            progress.update(f"{end - time.monotonic():.0f} s left")
            return time.monotonic() < end

        script = shrink(found.script, fails, going_on)
    return Found(script, last)


def save(found: Found, label: str) -> None:
    """Write a script and its finding to files."""
    SAVED.mkdir(parents=True, exist_ok=True)
    stem = f"{found.script.seed}-{label}"
    (SAVED / f"{stem}.json").write_text(found.script.to_json())
    (SAVED / f"{stem}.txt").write_text(f"{found.finding}\n")
    with contextlib.suppress(OSError):
        say(f"  {found.script.seed}: {found.finding.kind} ({SAVED / stem}.json)")


__all__ = ["Arena", "add_options", "fuzz", "plan_of"]
