# SPDX-License-Identifier: Apache-2.0
"""The numbered streams of the stress test: each event of a stream has a known position.

File number N is created as fN, renamed to mN and deleted; no number is used twice. A watcher of the
directory must therefore see these events in order and none of them twice. It must see all events of
the files that are created after its watch was added. To know these files, each stream has a
counter: a file beside the directory that has the number of the next file to be created.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

from farwatch_harness.oracle.file_operations import FileOperation
from farwatch_harness.oracle.native_inotify import In
from farwatch_harness.vm.guest_client import GuestInotifyEvent

MARKER = "end-"
#: What the files of a stream are. Symbolic links are made without opening anything.
FILE, SYMLINK = "file", "symlink"
#: The number of faults that are described in words.
MOST_NOTES = 3
#: Seconds from the first event after a gap to the overflow that reports the gap. The guest reports
#: it when all its watches are live again, and the first of them have events by then.
LATE_OVERFLOW = 5.0


class FileStage(Enum):
    """What happens to each file, in this order: the event, and the first letter of the name."""

    CREATED = (In.CREATE, "f")
    LEFT = (In.MOVED_FROM, "f")
    CAME = (In.MOVED_TO, "m")
    DELETED = (In.DELETE, "m")

    @property
    def event(self) -> In:
        """The event's bit."""
        return self.value[0]

    @property
    def letter(self) -> str:
        """The first letter of the file's name in the event."""
        return self.value[1]


ALL = tuple(FileStage)


def mask_of(stages: Sequence[FileStage]) -> In:
    """Return the mask for a watch of a stream's directory."""
    mask = In.ONLYDIR
    for stage in stages:
        mask |= stage.event
    return mask


def burst(first: int, count: int, kind: str = FILE) -> list[FileOperation]:
    """Return the operations of `count` files from number `first` on, and of their marker.

    kind: FILE or SYMLINK, what they are.
    """
    made = ["create"] if kind == FILE else ["symlink", "nowhere"]
    script = []
    for number in range(first, first + count):
        script += [
            [*made, f"f{number}"],
            ["rename", f"f{number}", f"m{number}"],
            ["unlink", f"m{number}"],
        ]
    marker = f"{MARKER}{first + count}"
    return [*script, ["symlink", "nowhere", marker], ["unlink", marker]]


class Counter:
    """The counter of a stream, for the stream's writer; close() it."""

    DIGITS = 12

    def __init__(self, directory: Path) -> None:
        self.fd = os.open(counter_of(directory), os.O_WRONLY | os.O_CREAT, 0o644)

    def set(self, number: int) -> None:
        """Announce, before a burst, that the files from this number on are created later."""
        os.pwrite(self.fd, f"{number:0{self.DIGITS}}".encode(), 0)

    def close(self) -> None:
        """Close the counter's file."""
        os.close(self.fd)


def counter_of(directory: Path) -> Path:
    """Return the path of the counter of the stream in a directory."""
    return directory.with_name(f"{directory.name}.number")


def next_file(directory: Path) -> int:
    """Return the number of the first file of the stream that is created after this call."""
    return int(counter_of(directory).read_text())


@dataclass(frozen=True)
class Tally:
    """What watchers of streams saw.

    duplicate: events that came a second time or out of order.
    strange: events that do not belong to a stream.
    """

    watchers: int = 0
    seen: int = 0
    lost: int = 0
    duplicate: int = 0
    overflows: int = 0
    strange: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )

    @property
    def clean(self) -> bool:
        """Whether each event was reported once."""
        return self.clean_but_for(0)

    def clean_but_for(self, gaps: int) -> bool:
        """Return the same where events are missing in `gaps`, with one overflow for each watch."""
        return not (
            self.lost or self.duplicate or self.strange or self.overflows > gaps * self.watchers
        )


@dataclass(frozen=True)
class Gap:
    """Events that are missing, and which no overflow has reported.

    time: when the event after them was seen, by the checker's clock.
    missing: how many.
    note: the same in words.
    """

    time: float
    missing: int
    note: str


class StreamChecker:
    """Checks the events that one watch, for just these stages, reports of a stream.

    All events of the files from number `sure` on must be reported. Events of earlier files may be:
    when the watch is added, they may be on their way to the guest. Events may be missing before an
    overflow, and before events that are less than LATE_OVERFLOW seconds older than it.
    """

    def __init__(
        self,
        sure: int,
        stages: Sequence[FileStage] = ALL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages = stages
        self.clock = clock
        self.sure = sure * len(stages)
        self.faults: list[str] = []
        self.overflow_notes: list[str] = []
        self.gaps: list[Gap] = []
        self.next = 0
        self.after_overflow = False
        self.seen = self.duplicate = self.overflows = self.strange = 0

    def see(self, event: GuestInotifyEvent) -> str | None:
        """Check the next event of the watch; return the marker's name if it is one."""
        if event.mask & In.Q_OVERFLOW:
            self.overflows += 1
            self.after_overflow = True
            since = self.clock() - LATE_OVERFLOW
            self.gaps = [gap for gap in self.gaps if gap.time < since]
            self.note(self.overflow_notes, "an overflow:", event)
            return None
        if event.name.startswith(MARKER):
            if event.mask & (In.CREATE | In.DELETE):
                self.expect(int(event.name.removeprefix(MARKER)) * len(self.stages), event)
            return event.name
        position = self.position(event)
        if position is None:
            self.strange += 1
            self.note(self.faults, "not an event of the stream:", event)
            return None
        self.seen += 1
        if position < self.next:
            self.duplicate += 1
            self.note(self.faults, "reported before:", event)
            return None
        self.expect(position, event)
        self.next = position + 1
        return None

    def expect(self, position: int, event: GuestInotifyEvent) -> None:
        """Count as lost what should have been reported before this position."""
        missing = position - max(self.next, self.sure)
        if missing > 0 and not self.after_overflow:
            self.gaps.append(
                Gap(self.clock(), missing, self.described(f"{missing} lost before", event))
            )
        self.next = max(self.next, position)
        self.after_overflow = False

    def note(self, notes: list[str], what: str, event: GuestInotifyEvent) -> None:
        """Add to `notes` what is wrong with an event."""
        if len(notes) < MOST_NOTES:
            notes.append(self.described(what, event))

    def described(self, what: str, event: GuestInotifyEvent) -> str:
        """Return in words what is wrong with an event."""
        stages = ",".join(stage.name for stage in self.stages)
        return (
            f"{what} {In(event.mask).name} {event.name!r}, number {self.seen} of a watch for"
            f" {stages}"
        )

    @property
    def notes(self) -> list[str]:
        """The first faults in words."""
        return [*self.faults, *(gap.note for gap in self.gaps)][:MOST_NOTES]

    def position(self, event: GuestInotifyEvent) -> int | None:
        """Return the event's position in the stream; None if it does not belong to it."""
        for at, stage in enumerate(self.stages):
            if (
                event.mask == stage.event
                and event.name[:1] == stage.letter
                and event.name[1:].isdecimal()
            ):
                return int(event.name[1:]) * len(self.stages) + at
        return None

    @property
    def tally(self) -> Tally:
        """What was found so far."""
        lost = sum(gap.missing for gap in self.gaps)
        return Tally(1, self.seen, lost, self.duplicate, self.overflows, self.strange)


@dataclass
class WatcherReport:
    """What several watches found, and the first faults and overflows in words."""

    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    overflow_notes: list[str] = field(default_factory=list)

    def add(self, where: str, checker: StreamChecker) -> None:
        """Add what a watch of the directory `where` found."""
        self.tally += checker.tally
        for found, more in (
            (self.notes, checker.notes),
            (self.overflow_notes, checker.overflow_notes),
        ):
            found += [f"{where}: {note}" for note in more[: MOST_NOTES - len(found)]]
