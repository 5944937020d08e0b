# SPDX-License-Identifier: Apache-2.0
"""What a soak found, and whether that is good. Pure: no I/O."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from farwatch_harness.soak.stream import Tally

#: Of the samples, so many at the beginning belong to the warm-up: tables and the allocator's pools
#: find their size.
WARM_UP = 1 / 4
#: Growth from the first third of the other samples to the last third, by their medians, that is no
#: leak: pools grow with the longest backlog, which is met by chance. A record kept for each event
#: would be more within a minute.
MAX_MEMORY_GROWTH = 2 * 1024 * 1024
#: What the guest's cache holds on to by chance, though it was told to let go.
MAX_DESCRIPTOR_GROWTH = 8
#: Growth cannot be told from fewer.
FEWEST_SAMPLES = 4
MOST_NOTES = 10
MIB = 1024 * 1024


@dataclass(frozen=True)
class ResourceSample:
    """The daemon between two rounds, when nobody watches and the guest has dropped its caches;
    memory in bytes."""

    descriptors: int
    memory: int
    watches: int


@dataclass(frozen=True)
class Growth:
    """From when to when it is measured, as medians."""

    before: float
    after: float

    @property
    def amount(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class StressResult:
    """All that was found.

    `scripts` were compared, `differences` tells of those that differ; `notes` tell more of what the
    watchers saw wrong.
    """

    steady: Tally
    passing: Tally
    scripts: int
    differences: tuple[str, ...]
    samples: tuple[ResourceSample, ...]
    dropped: int
    daemon_warnings: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def after_warm_up(values: Sequence[float]) -> Sequence[float]:
    """The values that are judged."""
    return values[max(1, round(len(values) * WARM_UP)) :]


def growth(values: Sequence[float]) -> Growth:
    """From the first third to the last third of what comes after the warm-up."""
    judged = after_warm_up(values)
    third = max(1, len(judged) // 3)
    return Growth(statistics.median(judged[:third]), statistics.median(judged[-third:]))


def descriptors_growth(found: StressResult) -> Growth:
    """The daemon's descriptors."""
    return growth([sample.descriptors for sample in found.samples])


def memory_growth(found: StressResult) -> Growth:
    """The daemon's memory, in bytes."""
    return growth([sample.memory for sample in found.samples])


def faults(found: StressResult) -> list[str]:
    """What is wrong, a line each; none when all is well."""
    said = []
    for who, tally in (("steady", found.steady), ("passing", found.passing)):
        if not tally.seen:
            said.append(f"the {who} watchers saw nothing")
        if not tally.clean:
            said.append(f"the {who} watchers saw {described(tally)}")
    said += found.notes[:MOST_NOTES]
    if not found.scripts:
        said.append("the oracle compared nothing")
    said += found.differences
    if found.dropped:
        said.append(f"the guest's kernel dropped {found.dropped} notifications as malformed")
    said += [f"the daemon warns: {line}" for line in found.daemon_warnings]
    said += found.problems
    if len(found.samples) < FEWEST_SAMPLES:
        said.append(
            f"{len(found.samples)} samples of the daemon say nothing of growth; give it more time"
        )
        return said
    if left := max(sample.watches for sample in found.samples):
        said.append(f"up to {left} watches were left on the host when nobody watched")
    descriptors, memory = descriptors_growth(found), memory_growth(found)
    if descriptors.amount > MAX_DESCRIPTOR_GROWTH:
        said.append(
            f"the daemon's descriptors grew from {descriptors.before:.0f} to"
            f" {descriptors.after:.0f}"
        )
    if memory.amount > MAX_MEMORY_GROWTH:
        said.append(
            f"the daemon's memory grew from {memory.before / MIB:.1f} to"
            f" {memory.after / MIB:.1f} MiB"
        )
    return said


def described(tally: Tally) -> str:
    """What of a tally can be good or bad."""
    return (
        f"{tally.lost} lost, {tally.duplicate} duplicate, {tally.overflows} overflows,"
        f" {tally.strange} that are strange"
    )


def summary(found: StressResult) -> list[str]:
    """A few lines for the user."""
    lines = [
        f"steady watchers:  {found.steady.seen} events; {described(found.steady)}",
        (
            f"passing watchers: {found.passing.watchers} saw {found.passing.seen} events;"
            f" {described(found.passing)}"
        ),
        f"oracle: {found.scripts} scripts compared, {len(found.differences)} differ",
    ]
    if len(found.samples) >= FEWEST_SAMPLES:
        descriptors, memory = descriptors_growth(found), memory_growth(found)
        lines.append(
            f"daemon: {descriptors.before:.0f} to {descriptors.after:.0f} descriptors, "
            f"{memory.before / MIB:.1f} to {memory.after / MIB:.1f} MiB of memory, "
            f"{len(found.daemon_warnings)} warnings"
        )
    lines.append(f"guest: {found.dropped} notifications dropped, {len(found.problems)} problems")
    return lines
