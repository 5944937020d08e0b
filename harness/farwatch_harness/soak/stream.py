# SPDX-License-Identifier: Apache-2.0
"""The soak's numbered streams: files that come, move and go one after the other, so that each event
says its place.

File number N is made as fN, renamed to mN and removed; no number comes twice. So whoever watches
the directory must see one event after the other, none twice, and none missing of the files that
were made after the watch was there. To know these, each stream has a counter: a file beside the
directory with the number of the first file that is not begun yet.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

from farwatch_harness.oracle.native_inotify import In
from farwatch_harness.oracle.operations import FileOperation
from farwatch_harness.vm.guest_client import GuestInotifyEvent

MARKER = "end-"
#: So many of the things that are wrong are kept in words.
MOST_NOTES = 3


class Kind(Enum):
    """What happens to each file, in this order: the event, and what its name begins with."""

    CREATED = (In.CREATE, "f")
    LEFT = (In.MOVED_FROM, "f")
    CAME = (In.MOVED_TO, "m")
    DELETED = (In.DELETE, "m")

    @property
    def event(self) -> In:
        return self.value[0]

    @property
    def letter(self) -> str:
        return self.value[1]


ALL = tuple(Kind)


def mask_of(kinds: Sequence[Kind]) -> In:
    """What to watch a stream's directory for."""
    mask = In.ONLYDIR
    for kind in kinds:
        mask |= kind.event
    return mask


def burst(first: int, count: int) -> list[FileOperation]:
    """The operations of so many files from number `first` on; a marker at the end says that they
    are all through."""
    script = []
    for number in range(first, first + count):
        script += [
            ["create", f"f{number}"],
            ["rename", f"f{number}", f"m{number}"],
            ["unlink", f"m{number}"],
        ]
    marker = f"{MARKER}{first + count}"
    return [*script, ["symlink", "nowhere", marker], ["unlink", marker]]


class Counter:
    """The counter of the stream in a directory, for its writer; close() it."""

    DIGITS = 12

    def __init__(self, directory: Path) -> None:
        self.fd = os.open(counter_of(directory), os.O_WRONLY | os.O_CREAT, 0o644)

    def set(self, number: int) -> None:
        """Before a burst: files from this number on are made later."""
        os.pwrite(self.fd, f"{number:0{self.DIGITS}}".encode(), 0)

    def close(self) -> None:
        os.close(self.fd)


def counter_of(directory: Path) -> Path:
    """Where the counter of the stream in a directory is."""
    return directory.with_name(f"{directory.name}.number")


def not_begun(directory: Path) -> int:
    """The first file of the stream that is made after this call."""
    return int(counter_of(directory).read_text())


@dataclass(frozen=True)
class Tally:
    """What watchers of streams saw.

    `duplicate` counts events that came a second time or out of order, `strange` what no stream has.
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
        """Whether each event was told once."""
        return not (self.lost or self.duplicate or self.overflows or self.strange)


class Judge:
    """Judges what one watch, for just these kinds of events, is told of a stream.

    All must be told of files from the number `sure` on. Of those before, something may be told:
    what happened just before the watch was there can still be on its way to the guest. `notes` are
    the first faults.
    """

    def __init__(self, sure: int, kinds: Sequence[Kind] = ALL) -> None:
        self.kinds = kinds
        self.sure = sure * len(kinds)
        self.notes: list[str] = []
        self.next = 0
        self.seen = self.lost = self.duplicate = self.overflows = self.strange = 0

    def see(self, event: GuestInotifyEvent) -> str | None:
        """Takes the next event of the watch; the marker's name when it is one."""
        if event.mask & In.Q_OVERFLOW:
            self.overflows += 1
            self.note("an overflow:", event)
            return None
        if event.name.startswith(MARKER):
            if event.mask & (In.CREATE | In.DELETE):
                self.expect(int(event.name.removeprefix(MARKER)) * len(self.kinds), event)
            return event.name
        place = self.place(event)
        if place is None:
            self.strange += 1
            self.note("no event of a stream:", event)
            return None
        self.seen += 1
        if place < self.next:
            self.duplicate += 1
            self.note("told before:", event)
            return None
        self.expect(place, event)
        self.next = place + 1
        return None

    def expect(self, place: int, event: GuestInotifyEvent) -> None:
        """All that comes before this place, from the sure one on, must have been seen."""
        missing = place - max(self.next, self.sure)
        if missing > 0:
            self.lost += missing
            self.note(f"{missing} lost before", event)
        self.next = max(self.next, place)

    def note(self, what: str, event: GuestInotifyEvent) -> None:
        """Keeps what is wrong in words."""
        if len(self.notes) < MOST_NOTES:
            kinds = ",".join(kind.name for kind in self.kinds)
            self.notes.append(
                f"{what} {In(event.mask).name} {event.name!r}, number {self.seen} of a watch for"
                f" {kinds}"
            )

    def place(self, event: GuestInotifyEvent) -> int | None:
        """The event's place in the stream; None when it has none."""
        for at, kind in enumerate(self.kinds):
            if (
                event.mask == kind.event
                and event.name[:1] == kind.letter
                and event.name[1:].isdecimal()
            ):
                return int(event.name[1:]) * len(self.kinds) + at
        return None

    @property
    def tally(self) -> Tally:
        """What was found up to now."""
        return Tally(1, self.seen, self.lost, self.duplicate, self.overflows, self.strange)


@dataclass
class Account:
    """What several watches found, and the first faults in words."""

    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)

    def add(self, where: str, judge: Judge) -> None:
        """Adds what a watch of the directory `where` found."""
        self.tally += judge.tally
        self.notes += [f"{where}: {note}" for note in judge.notes[: MOST_NOTES - len(self.notes)]]
