# SPDX-License-Identifier: Apache-2.0
"""The oracle: the same script of file operations under native inotify and in the guest must give
the same events.

The script runs twice on the host: in a twin directory outside the share, under a native listener,
and in the share, under a listener in the guest. The twin has no daemon that holds its files open,
so it behaves as any local directory. What the guest does is held against the same done on the
guest's own tmpfs.

A script may have several lanes: each is performed by a process of its own, in a directory of its
own, all at the same time. The order is compared within each lane; between lanes there is none.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath

from farwatch_harness.oracle.native_inotify import In as In
from farwatch_harness.oracle.native_inotify import Native as Native
from farwatch_harness.oracle.operations import TREE, WATCHED, Operation, perform
from farwatch_harness.oracle.script_runners import Part, Performers
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Event, Guest, Inotify
from farwatch_harness.vm.testbed import Share

#: Made in the base directory when a script has ended: whoever sees it has seen everything before
#: it.
END = "end of the script"
LIMIT = 20.0
#: What a file without a name is called in events: by its inode number, or, by FUSE for what the
#: guest itself does, so.
UNNAMED = re.compile(r"#\d+|/")
#: What is told of a rename, each by an event of its own.
MOVES = In.MOVED_FROM | In.MOVED_TO | In.MOVE_SELF


@dataclass(frozen=True)
class Told:
    """One event as a program understands it: where (the path that was watched), what, on which
    entry, which move."""

    where: str
    what: In
    name: str
    move: int = 0

    def __str__(self) -> str:
        move = f" #{self.move}" if self.move else ""
        return f"{self.where}: {self.what.name} {self.name!r}{move}"


def told(
    events: Sequence[Event], labels: dict[int, str], moves: dict[int, int] | None = None
) -> list[Told]:
    """What the events say, comparable between listeners: paths for descriptors, numbered moves, "#"
    for no name.

    ``moves`` numbers the cookies over several calls.

    What repeats the event before it of the same watch is left out: inotify merges some of it,
    fanotify all of it. What happens to the END entry is left out.
    """
    moves = {} if moves is None else moves
    story: list[Told] = []
    last: dict[int, Told] = {}
    for event in events:
        if event.name.startswith(END):
            continue
        move = moves.setdefault(event.cookie, len(moves) + 1) if event.cookie else 0
        name = "#" if UNNAMED.fullmatch(event.name) else event.name
        one = Told(labels.get(event.wd, ""), In(event.mask), name, move)
        if last.get(event.wd) != one:
            story.append(one)
        last[event.wd] = one
    return story


@dataclass(frozen=True)
class Difference:
    """Where the guest is not told what a local file system tells, and why that stays so."""

    what: str
    why: str


#: All of them, as docs/modes.md lists them. The comparison allows the first (merged()), leaves the
#: second out (of what the guest does in mode remote nothing is compared) and takes the third as
#: equal (UNNAMED); scripts reach no other.
KNOWN_DIFFERENCES = (
    Difference(
        "In mode `others`, pending events of one process of the host on one object are coalesced"
        " and reported at the position of the first, once per type, in the order open, access,"
        " modify, attrib, close; the reported names of a directory always end as on the host",
        "fanotify does this before the daemon reads its queue",
    ),
    Difference(
        "In mode `remote`, the guest's own operations are reported as they reach the host: a write"
        " to a shared mapping as a read and a write, and the last events of a file that the guest"
        " deletes possibly not at all",
        "they come from the host's inotify, and the guest's kernel may have forgotten the file by"
        " then",
    ),
    Difference(
        'A file without a name (`O_TMPFILE`) is "/" in events of the guest\'s own operations, where'
        " other file systems have its inode number",
        "Linux's FUSE names it so, with or without the patches",
    ),
    Difference(
        "A new watch may get events of what the host did just before it was added",
        "the events were on their way to the guest for another watch",
    ),
    Difference(
        "`IN_DELETE_SELF` comes, and ends the watch, when the last name is deleted, not when the"
        " last process of the host closes the file; an unlinked object cannot be watched"
        " (`ENOENT`)",
        "the daemon may be the last one that has the file open, and then the host reports nothing",
    ),
    Difference(
        "fanotify groups without `FAN_REPORT_FID` get no events of the host",
        "their events are open files, which a path on the host is not",
    ),
    Difference(
        "A program that reads an event of a file may find the file's other names, in unwatched"
        " directories, as they were cached",
        "the event does not contain them",
    ),
)


def merged(step: Sequence[Told]) -> list[Told]:
    """The events of one reading as the host's fanotify may have merged them: what happens to one
    object, renames apart, comes together, where the first of it came, each kind of event once.
    """
    first: dict[object, int] = {}
    for place, one in enumerate(step):
        first.setdefault(one if one.what & MOVES else (one.where, one.name), place)
    together = sorted(
        step, key=lambda one: first[one if one.what & MOVES else (one.where, one.name)]
    )
    return list(dict.fromkeys(together))


@dataclass(frozen=True)
class Comparison:
    """The two streams of one script."""

    native: list[Told]
    guest: list[Told]

    def difference(self) -> str:
        """Empty when both tell the same, else where they part and both in full."""
        if self.native == self.guest:
            return ""
        pairs = zip(self.native, self.guest, strict=False)
        same = next(
            (at for at, (one, other) in enumerate(pairs) if one != other),
            min(len(self.native), len(self.guest)),
        )
        native = "\n  ".join(map(str, self.native))
        guest = "\n  ".join(map(str, self.guest))
        return f"the streams part at event {same}\nnative:\n  {native}\nguest:\n  {guest}"


Step = Callable[[Path], object]


def compare(
    guest: Guest, share: Share, twin: Path, prepare: Step, script: Step, watched: dict[str, int]
) -> Comparison:
    """Run ``script`` in both directories after ``prepare``; ``watched`` maps paths below the base
    to inotify masks.

    The base itself, ".", must be watched for IN_CREATE: that is how the end is seen.
    """
    prepare(twin)
    prepare(share.host)
    with Native() as native, guest.inotify() as listener:
        native_labels = {native.add(twin / path, mask): path for path, mask in watched.items()}
        guest_labels = {
            listener.add(share.guest / path, mask): path for path, mask in watched.items()
        }
        for base in (twin, share.host):
            script(base)
            (base / END).touch()
        return Comparison(
            told(native.read(END), native_labels),
            told(listener.read(until=END, limit=LIMIT), guest_labels),
        )


Lane = Sequence[Operation]


class HostWatch(Enum):
    """How the daemon watches the host, which says how close a comparison can be."""

    INOTIFY = "tells all in order: a script is done as a whole and compared exactly"
    FANOTIFY = (
        "merges what is not read yet: both sides are read after each step, and compared as merged"
    )

    def rounds(self, lanes: Sequence[Lane]) -> list[list[Lane]]:
        """What the lanes do from one reading to the next."""
        if self is HostWatch.INOTIFY:
            return [list(lanes)]
        steps = itertools.zip_longest(*lanes)
        return [[[] if operation is None else [operation] for operation in step] for step in steps]

    def comparable(self, step: list[Told]) -> list[Told]:
        """What one lane is told from one reading to the next, without what may differ."""
        return merged(step) if self is HostWatch.FANOTIFY else step


def watches(lanes: int) -> list[tuple[str, int]]:
    """The paths below the base and their masks: the base for the end of the script, and in each
    lane's all WATCHED."""
    return [
        (".", int(In.CREATE)),
        *((f"{lane}/{path}", int(In.ALL)) for lane in range(lanes) for path in WATCHED),
    ]


class Side:
    """What one listener is told of one base directory, lane by lane."""

    def __init__(
        self, descriptors: Sequence[int], lanes: int, watch: HostWatch = HostWatch.INOTIFY
    ) -> None:
        self.watch = watch
        self.labels = {
            wd: path for wd, (path, _mask) in zip(descriptors, watches(lanes), strict=True)
        }
        self.moves: list[dict[int, int]] = [{} for _ in range(lanes)]
        self.stories: list[list[Told]] = [[] for _ in range(lanes)]

    def take(self, events: Sequence[Event]) -> None:
        """Adds what the events say to the lanes' stories. What belongs to no lane, as an overflow,
        is told in each."""
        for lane, story in enumerate(self.stories):
            own = [event for event in events if self.lane_of(event) in (lane, None)]
            story += self.watch.comparable(told(own, self.labels, self.moves[lane]))

    def lane_of(self, event: Event) -> int | None:
        lane = self.labels.get(event.wd, ".").partition("/")[0]
        return None if lane == "." else int(lane)

    @property
    def story(self) -> list[Told]:
        """The lanes' stories, one after the other."""
        return [one for story in self.stories for one in story]


def watch_in_the_guest(listener: Inotify, base: PurePosixPath, lanes: int) -> list[int]:
    """The watches of a base directory, by one call."""
    paths = [(str(base / path), mask) for path, mask in watches(lanes)]
    found = listener.guest.call("inotify_add_all", handle=listener.handle, watches=paths)
    return [int(wd) for wd in found]


def compare_on_the_host(
    guest: Guest,
    share: Share,
    twin: Path,
    lanes: Sequence[Lane],
    performers: Performers,
    watch: HostWatch,
) -> Comparison:
    """The lanes are performed on the host, in the new directories ``twin`` and ``share``."""
    for base in (twin, share.host):
        for lane in range(len(lanes)):
            (base / str(lane)).mkdir(parents=True)
            for operation in TREE:
                perform(str(base / str(lane)), operation)
    with Native() as native, guest.inotify() as listener:
        local = Side(
            [native.add(twin / path, mask) for path, mask in watches(len(lanes))], len(lanes), watch
        )
        remote = Side(watch_in_the_guest(listener, share.guest, len(lanes)), len(lanes), watch)
        for number, scripts in enumerate(watch.rounds(lanes)):
            perform_in(performers, (twin, share.host), scripts)
            end = f"{END} {number}"
            for base in (twin, share.host):
                # A symlink: made by one event, and without an open.
                (base / end).symlink_to("nowhere")
            local.take(native.read(end))
            remote.take(read_until(listener, end))
    return Comparison(local.story, remote.story)


def compare_in_the_guest(
    guest: Guest, share: Share, local: PurePosixPath, lanes: Sequence[Lane], performers: Performers
) -> Comparison:
    """The lanes are performed in the guest, in the new directories ``local``, the native side, and
    ``share``."""
    share.host.mkdir()
    bases = (local, share.guest)
    performers.perform([prepared_in_the_guest(bases, str(lane)) for lane in range(len(lanes))])
    with guest.inotify() as listener:
        sides = [Side(watch_in_the_guest(listener, base, len(lanes)), len(lanes)) for base in bases]
        perform_in(performers, bases, lanes)
        # Done on the host: told after all that the host, wrongly or late, tells of what the guest
        # did.
        (share.host / END).symlink_to("nowhere")
        events = read_until(listener, END)
    for side in sides:
        side.take([event for event in events if event.wd in side.labels or event.wd < 0])
    return Comparison(sides[0].story, sides[1].story)


def prepared_in_the_guest(bases: Sequence[PurePath], lane: str) -> list[Part]:
    """What makes one lane's directory with its TREE in each base, and the bases themselves unless
    they are there."""
    parts: list[Part] = []
    for base in bases:
        parts += [
            (base.parent, [["mkdir", base.name]]),
            (base, [["mkdir", lane]]),
            (base / lane, TREE),
        ]
    return parts


def perform_in(performers: Performers, bases: Sequence[PurePath], lanes: Sequence[Lane]) -> None:
    """All lanes at once, each in its directory of the first base and then of the next."""
    scripts = list(enumerate(lanes))
    performers.perform(
        [[(base / str(number), script) for base in bases] for number, script in scripts]
    )


def read_until(listener: Inotify, end: str) -> list[Event]:
    """Events up to the entry ``end``; HarnessError when it is not told of."""
    events = listener.read(until=end, limit=LIMIT)
    if not any(event.name == end for event in events):
        raise HarnessError(
            f"the guest's inotify did not report {end!r} in {LIMIT:.0f} s, but {len(events)} others"
        )
    return events
