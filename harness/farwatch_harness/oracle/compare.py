# SPDX-License-Identifier: Apache-2.0
"""The oracle: one script of file operations must give the same events natively and in the guest.

A script of the host runs twice: in a reference directory outside the share, where native inotify
reads the events, and in the share, where inotify of the guest reads them. No daemon holds files of
the reference directory open, so it behaves as any local directory. A script of the guest runs in
the share and in a tmpfs of the guest.

A script may have several threads. A process performs each thread in its own directory, concurrently
with the others. The order of events is compared within a thread, not between threads.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath

from farwatch_harness.oracle.native_inotify import In as In
from farwatch_harness.oracle.native_inotify import NativeInotify as NativeInotify
from farwatch_harness.oracle.operations import INITIAL_FILES, WATCHED, FileOperation, perform
from farwatch_harness.oracle.script_runners import ScriptPart, ScriptRunners
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest, GuestInotify, GuestInotifyEvent
from farwatch_harness.vm.testbed import Share

#: Created in the base directory after a script: a watcher that reads it has read all earlier
#: events.
END = "end of the script"
LIMIT = 20.0
#: The name of an O_TMPFILE file in events: "#" and its inode number, or "/" for the guest's own
#: operations on FUSE.
UNNAMED = re.compile(r"#\d+|/")
#: The events of a rename.
MOVES = In.MOVED_FROM | In.MOVED_TO | In.MOVE_SELF


@dataclass(frozen=True)
class ObservedEvent:
    """One event in a form that can be compared between two watchers.

    where: the path that was watched.
    what: the mask.
    name: the entry.
    move: the number of the rename, in place of its cookie; 0 for other events.
    """

    where: str
    what: In
    name: str
    move: int = 0

    def __str__(self) -> str:
        move = f" #{self.move}" if self.move else ""
        return f"{self.where}: {self.what.name} {self.name!r}{move}"


def normalize(
    events: Sequence[GuestInotifyEvent], labels: dict[int, str], moves: dict[int, int] | None = None
) -> list[ObservedEvent]:
    """Convert events to a form that can be compared between two watchers.

    Watch descriptors become paths, cookies become numbers, and names of O_TMPFILE files become "#".
    An event that repeats the previous one of its watch is left out: inotify coalesces some of them,
    fanotify all. Events of the END entry are left out.

    labels: the watched path of each watch descriptor.
    moves: the numbers of the cookies; pass the same dictionary to number them over several calls.
    """
    moves = {} if moves is None else moves
    events_seen: list[ObservedEvent] = []
    last: dict[int, ObservedEvent] = {}
    for event in events:
        if event.name.startswith(END):
            continue
        move = moves.setdefault(event.cookie, len(moves) + 1) if event.cookie else 0
        name = "#" if UNNAMED.fullmatch(event.name) else event.name
        one = ObservedEvent(labels.get(event.wd, ""), In(event.mask), name, move)
        if last.get(event.wd) != one:
            events_seen.append(one)
        last[event.wd] = one
    return events_seen


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


def coalesced(step: Sequence[ObservedEvent]) -> list[ObservedEvent]:
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

    native: list[ObservedEvent]
    guest: list[ObservedEvent]

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


Action = Callable[[Path], object]


def compare(
    guest: Guest,
    share: Share,
    reference: Path,
    prepare: Action,
    script: Action,
    watched: dict[str, int],
) -> Comparison:
    """Run ``script`` in both directories after ``prepare``; ``watched`` maps paths below the base
    to inotify masks.

    The base itself, ".", must be watched for IN_CREATE: that is how the end is seen.
    """
    prepare(reference)
    prepare(share.host)
    with NativeInotify() as native, guest.inotify() as listener:
        native_labels = {native.add(reference / path, mask): path for path, mask in watched.items()}
        guest_labels = {
            listener.add(share.guest / path, mask): path for path, mask in watched.items()
        }
        for base in (reference, share.host):
            script(base)
            (base / END).touch()
        return Comparison(
            normalize(native.read(END), native_labels),
            normalize(listener.read(until=END, limit=LIMIT), guest_labels),
        )


ThreadScript = Sequence[FileOperation]


class HostWatch(Enum):
    """How the daemon watches the host, which says how close a comparison can be."""

    INOTIFY = "tells all in order: a script is done as a whole and compared exactly"
    FANOTIFY = (
        "merges what is not read yet: both sides are read after each step, and compared as merged"
    )

    def rounds(self, threads: Sequence[ThreadScript]) -> list[list[ThreadScript]]:
        """What the lanes do from one reading to the next."""
        if self is HostWatch.INOTIFY:
            return [list(threads)]
        steps = itertools.zip_longest(*threads)
        return [[[] if operation is None else [operation] for operation in step] for step in steps]

    def comparable(self, step: list[ObservedEvent]) -> list[ObservedEvent]:
        """What one lane is told from one reading to the next, without what may differ."""
        return coalesced(step) if self is HostWatch.FANOTIFY else step


def watches(threads: int) -> list[tuple[str, int]]:
    """The paths below the base and their masks: the base for the end of the script, and in each
    lane's all WATCHED."""
    return [
        (".", int(In.CREATE)),
        *((f"{thread}/{path}", int(In.ALL)) for thread in range(threads) for path in WATCHED),
    ]


class EventLog:
    """What one listener is told of one base directory, lane by lane."""

    def __init__(
        self, descriptors: Sequence[int], threads: int, watch: HostWatch = HostWatch.INOTIFY
    ) -> None:
        self.watch = watch
        self.labels = {
            wd: path for wd, (path, _mask) in zip(descriptors, watches(threads), strict=True)
        }
        self.moves: list[dict[int, int]] = [{} for _ in range(threads)]
        self.by_thread: list[list[ObservedEvent]] = [[] for _ in range(threads)]

    def take(self, events: Sequence[GuestInotifyEvent]) -> None:
        """Adds what the events say to the lanes' stories. What belongs to no lane, as an overflow,
        is told in each."""
        for thread, events_seen in enumerate(self.by_thread):
            own = [event for event in events if self.thread_of(event) in (thread, None)]
            events_seen += self.watch.comparable(normalize(own, self.labels, self.moves[thread]))

    def thread_of(self, event: GuestInotifyEvent) -> int | None:
        thread = self.labels.get(event.wd, ".").partition("/")[0]
        return None if thread == "." else int(thread)

    @property
    def events_seen(self) -> list[ObservedEvent]:
        """The lanes' stories, one after the other."""
        return [one for events_seen in self.by_thread for one in events_seen]


def watch_in_the_guest(listener: GuestInotify, base: PurePosixPath, threads: int) -> list[int]:
    """The watches of a base directory, by one call."""
    paths = [(str(base / path), mask) for path, mask in watches(threads)]
    found = listener.guest.call("inotify_add_all", handle=listener.handle, watches=paths)
    return [int(wd) for wd in found]


def compare_on_the_host(
    guest: Guest,
    share: Share,
    reference: Path,
    threads: Sequence[ThreadScript],
    runners: ScriptRunners,
    watch: HostWatch,
) -> Comparison:
    """The lanes are performed on the host, in the new directories ``reference`` and ``share``."""
    for base in (reference, share.host):
        for thread in range(len(threads)):
            (base / str(thread)).mkdir(parents=True)
            for operation in INITIAL_FILES:
                perform(str(base / str(thread)), operation)
    with NativeInotify() as native, guest.inotify() as listener:
        local = EventLog(
            [native.add(reference / path, mask) for path, mask in watches(len(threads))],
            len(threads),
            watch,
        )
        remote = EventLog(
            watch_in_the_guest(listener, share.guest, len(threads)), len(threads), watch
        )
        for number, scripts in enumerate(watch.rounds(threads)):
            perform_in(runners, (reference, share.host), scripts)
            end = f"{END} {number}"
            for base in (reference, share.host):
                # A symlink: made by one event, and without an open.
                (base / end).symlink_to("nowhere")
            local.take(native.read(end))
            remote.take(read_until(listener, end))
    return Comparison(local.events_seen, remote.events_seen)


def compare_in_the_guest(
    guest: Guest,
    share: Share,
    local: PurePosixPath,
    threads: Sequence[ThreadScript],
    runners: ScriptRunners,
) -> Comparison:
    """The lanes are performed in the guest, in the new directories ``local``, the native side, and
    ``share``."""
    share.host.mkdir()
    bases = (local, share.guest)
    runners.perform([prepared_in_the_guest(bases, str(thread)) for thread in range(len(threads))])
    with guest.inotify() as listener:
        sides = [
            EventLog(watch_in_the_guest(listener, base, len(threads)), len(threads))
            for base in bases
        ]
        perform_in(runners, bases, threads)
        # Done on the host: told after all that the host, wrongly or late, tells of what the guest
        # did.
        (share.host / END).symlink_to("nowhere")
        events = read_until(listener, END)
    for side in sides:
        side.take([event for event in events if event.wd in side.labels or event.wd < 0])
    return Comparison(sides[0].events_seen, sides[1].events_seen)


def prepared_in_the_guest(bases: Sequence[PurePath], thread: str) -> list[ScriptPart]:
    """What makes one lane's directory with its TREE in each base, and the bases themselves unless
    they are there."""
    parts: list[ScriptPart] = []
    for base in bases:
        parts += [
            (base.parent, [["mkdir", base.name]]),
            (base, [["mkdir", thread]]),
            (base / thread, INITIAL_FILES),
        ]
    return parts


def perform_in(
    runners: ScriptRunners, bases: Sequence[PurePath], threads: Sequence[ThreadScript]
) -> None:
    """All lanes at once, each in its directory of the first base and then of the next."""
    scripts = list(enumerate(threads))
    runners.perform(
        [[(base / str(number), script) for base in bases] for number, script in scripts]
    )


def read_until(listener: GuestInotify, end: str) -> list[GuestInotifyEvent]:
    """Events up to the entry ``end``; HarnessError when it is not told of."""
    events = listener.read(until=end, limit=LIMIT)
    if not any(event.name == end for event in events):
        raise HarnessError(
            f"the guest's inotify did not report {end!r} in {LIMIT:.0f} s, but {len(events)} others"
        )
    return events
