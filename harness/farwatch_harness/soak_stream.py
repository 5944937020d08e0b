# SPDX-License-Identifier: Apache-2.0
"""The soak's numbered streams: files that come, move and go one after the other, so that each event says its place.

File number N is made as fN, renamed to mN and removed; no number comes twice. So whoever watches the directory, from
whenever on, must see one event after the other, none missing and none twice. Pure: no I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum

from farwatch_harness.guest import Event
from farwatch_harness.native import In
from farwatch_harness.operations import Operation

MARKER = "end-"


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


def burst(first: int, count: int) -> list[Operation]:
    """The operations of so many files from number `first` on; a marker at the end says that they are all through."""
    script = []
    for number in range(first, first + count):
        script += [["create", f"f{number}"], ["rename", f"f{number}", f"m{number}"], ["unlink", f"m{number}"]]
    marker = f"{MARKER}{first + count}"
    return [*script, ["symlink", "nowhere", marker], ["unlink", marker]]


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
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def clean(self) -> bool:
        """Whether each event was told once."""
        return not (self.lost or self.duplicate or self.overflows or self.strange)


class Judge:
    """Judges what one watch, for just these kinds of events, is told of a stream."""

    def __init__(self, kinds: Sequence[Kind] = ALL) -> None:
        self.kinds = kinds
        self.next: int | None = None
        self.seen = self.lost = self.duplicate = self.overflows = self.strange = 0

    def see(self, event: Event) -> str | None:
        """Takes the next event of the watch; the marker's name when it is one."""
        if event.mask & In.Q_OVERFLOW:
            self.overflows += 1
            return None
        if event.name.startswith(MARKER):
            if event.mask & (In.CREATE | In.DELETE):
                self.expect(int(event.name.removeprefix(MARKER)) * len(self.kinds))
            return event.name
        place = self.place(event)
        if place is None:
            self.strange += 1
            return None
        self.seen += 1
        if self.next is not None and place < self.next:
            self.duplicate += 1
            return None
        self.expect(place)
        self.next = place + 1
        return None

    def expect(self, place: int) -> None:
        """All that comes before this place must have been seen, from the first event on that was."""
        if self.next is not None and place > self.next:
            self.lost += place - self.next
            self.next = place

    def place(self, event: Event) -> int | None:
        """The event's place in the stream; None when it has none."""
        for at, kind in enumerate(self.kinds):
            if event.mask == kind.event and event.name[:1] == kind.letter and event.name[1:].isdecimal():
                return int(event.name[1:]) * len(self.kinds) + at
        return None

    @property
    def tally(self) -> Tally:
        """What was found up to now."""
        return Tally(1, self.seen, self.lost, self.duplicate, self.overflows, self.strange)
