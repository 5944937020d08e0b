# SPDX-License-Identifier: Apache-2.0
"""What a stress test found, and whether it passes. Pure: no I/O."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from farwatch_harness.soak.stream import Tally

#: The part of the samples, from the first on, that belongs to the warm-up. In it, tables and the
#: allocator's pools reach their size.
WARM_UP = 1 / 4
#: Bytes by which the memory may grow from the first third of the other samples to the last third,
#: by their medians. Pools grow with the longest backlog, whose length is random. A leak of a record
#: for each event exceeds this within a minute.
MAX_MEMORY_GROWTH = 2 * 1024 * 1024
#: Inodes that may stay in the guest's cache although it was dropped.
MAX_DESCRIPTOR_GROWTH = 8
#: With fewer samples, growth is not computed.
FEWEST_SAMPLES = 4
MOST_NOTES = 10
MIB = 1024 * 1024


@dataclass(frozen=True)
class ResourceSample:
    """The daemon between two rounds, without a watcher and after the guest has dropped its caches.

    memory: in bytes.
    """

    descriptors: int
    memory: int
    watches: int


@dataclass(frozen=True)
class Growth:
    """A value at the beginning and at the end, as medians."""

    before: float
    after: float

    @property
    def amount(self) -> float:
        """By how much the value has grown."""
        return self.after - self.before


@dataclass(frozen=True)
class StressResult:
    """Everything that the stress test found.

    across: of what each guest saw of the other one; None if there was one guest.
    samples: for each daemon.
    scripts: the number of scripts compared.
    differences: a text for each script that differs.
    dropped: notifications that the guest's kernel dropped as malformed.
    notes: the first faults that watchers saw, in words.
    gaps: how often the daemon was killed, or the guest migrated: each is a gap in the events.
    """

    steady: Tally
    passing: Tally
    scripts: int
    differences: tuple[str, ...]
    samples: tuple[tuple[ResourceSample, ...], ...]
    dropped: int
    daemon_warnings: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    across: Tally | None = None
    gaps: int = 0

    def tallies(self) -> list[tuple[str, Tally]]:
        """Return each tally with the name of its watchers."""
        found = [("steady", self.steady), ("passing", self.passing)]
        return found if self.across is None else [*found, ("across", self.across)]


def after_warm_up(values: Sequence[float]) -> Sequence[float]:
    """Return the values that follow the warm-up."""
    return values[max(1, round(len(values) * WARM_UP)) :]


def growth(values: Sequence[float]) -> Growth:
    """Compare the first third with the last third of the values after the warm-up."""
    judged = after_warm_up(values)
    third = max(1, len(judged) // 3)
    return Growth(statistics.median(judged[:third]), statistics.median(judged[-third:]))


def descriptors_growth(samples: Sequence[ResourceSample]) -> Growth:
    """Return the growth of the number of a daemon's descriptors."""
    return growth([sample.descriptors for sample in samples])


def memory_growth(samples: Sequence[ResourceSample]) -> Growth:
    """Return the growth of a daemon's memory, in bytes."""
    return growth([sample.memory for sample in samples])


def faults(found: StressResult) -> list[str]:
    """Return a line for each fault."""
    lines = []
    for who, tally in found.tallies():
        if not tally.seen:
            lines.append(f"the {who} watchers saw nothing")
        if not tally.clean_but_for(found.gaps):
            lines.append(f"the {who} watchers saw {described(tally)}")
    if lines:
        lines += found.notes[:MOST_NOTES]
    if not found.scripts:
        lines.append("the oracle compared nothing")
    lines += found.differences
    if found.dropped:
        lines.append(f"the guest's kernel dropped {found.dropped} notifications as malformed")
    lines += [f"the daemon warns: {line}" for line in found.daemon_warnings]
    lines += found.problems
    for daemon, samples in named(found.samples):
        lines += faults_of_daemon(daemon, samples)
    return lines


def named(
    samples: Sequence[Sequence[ResourceSample]],
) -> list[tuple[str, Sequence[ResourceSample]]]:
    """Return the samples of each daemon with its name."""
    return list(zip(("daemon", "second daemon"), samples, strict=False))


def faults_of_daemon(daemon: str, samples: Sequence[ResourceSample]) -> list[str]:
    """Return a line for each fault that the samples of a daemon show."""
    if len(samples) < FEWEST_SAMPLES:
        return [f"{len(samples)} samples of the {daemon} show no growth: raise --minutes"]
    lines = []
    if left := max(sample.watches for sample in samples):
        lines.append(
            f"up to {left} watches of the {daemon} were left on the host when there was no watcher"
        )
    descriptors, memory = descriptors_growth(samples), memory_growth(samples)
    if descriptors.amount > MAX_DESCRIPTOR_GROWTH:
        lines.append(
            f"the {daemon}'s descriptors grew from {descriptors.before:.0f} to"
            f" {descriptors.after:.0f}"
        )
    if memory.amount > MAX_MEMORY_GROWTH:
        lines.append(
            f"the {daemon}'s memory grew from {memory.before / MIB:.1f} to"
            f" {memory.after / MIB:.1f} MiB"
        )
    return lines


def described(tally: Tally) -> str:
    """Return the counts of a tally, except the number of events, in words."""
    return (
        f"{tally.lost} lost, {tally.duplicate} duplicate, {tally.overflows} overflows,"
        f" {tally.strange} that are strange"
    )


def summary(found: StressResult) -> list[str]:
    """Return a few lines for the user."""
    lines = [
        f"steady watchers:  {found.steady.seen} events; {described(found.steady)}",
        (
            f"passing watchers: {found.passing.watchers} saw {found.passing.seen} events;"
            f" {described(found.passing)}"
        ),
        f"oracle: {found.scripts} scripts compared, {len(found.differences)} differ",
    ]
    if found.across is not None:
        lines.append(f"of the other guest: {found.across.seen} events; {described(found.across)}")
    for daemon, samples in named(found.samples):
        if len(samples) < FEWEST_SAMPLES:
            continue
        descriptors, memory = descriptors_growth(samples), memory_growth(samples)
        lines.append(
            f"{daemon}: {descriptors.before:.0f} to {descriptors.after:.0f} descriptors, "
            f"{memory.before / MIB:.1f} to {memory.after / MIB:.1f} MiB of memory"
        )
    lines.append(f"daemon's log: {len(found.daemon_warnings)} warnings")
    lines.append(f"guest: {found.dropped} notifications dropped, {len(found.problems)} problems")
    return lines
