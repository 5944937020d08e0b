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

from farwatch_harness.oracle.file_operations import (
    INITIAL_FILES,
    RETURN,
    WATCHED,
    FileOperation,
    perform,
)
from farwatch_harness.oracle.native_inotify import In as In
from farwatch_harness.oracle.native_inotify import NativeInotify as NativeInotify
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
class KnownDifference:
    """How the guest's events differ from those of a local file system, and why this stays so."""

    what: str
    why: str


#: The list of docs/modes.md. The comparison allows the first difference (coalesced()). It leaves
#: out the second: in mode remote it compares no operation of the guest. It takes the third as equal
#: (UNNAMED). No script reaches the others.
KNOWN_DIFFERENCES = (
    KnownDifference(
        "In mode `others`, pending events of one process of the host on one object are coalesced"
        " and reported at the position of the first, once per type, in the order open, access,"
        " modify, attrib, close; the reported names of a directory always end as on the host",
        "fanotify does this before the daemon reads its queue",
    ),
    KnownDifference(
        "In mode `remote`, the guest's own operations are reported as they reach the host: a write"
        " to a shared mapping as a read and a write, and the last events of a file that the guest"
        " deletes possibly not at all",
        "they come from the host's inotify, and the guest's kernel may have forgotten the file by"
        " then",
    ),
    KnownDifference(
        'A file without a name (`O_TMPFILE`) is "/" in events of the guest\'s own operations, where'
        " other file systems have its inode number",
        "Linux's FUSE names it so, with or without the patches",
    ),
    KnownDifference(
        "A new watch may get events of what the host did just before it was added",
        "the events were on their way to the guest for another watch",
    ),
    KnownDifference(
        "`IN_DELETE_SELF` comes, and ends the watch, when the last name is deleted, not when the"
        " last process of the host closes the file; an unlinked object cannot be watched"
        " (`ENOENT`)",
        "the daemon may be the last one that has the file open, and then the host reports nothing",
    ),
    KnownDifference(
        "fanotify groups without `FAN_REPORT_FID` get no events of the host",
        "their events are open files, which a path on the host is not",
    ),
    KnownDifference(
        "A program that reads an event of a file may find the file's other names, in unwatched"
        " directories, as they were cached, and so the link count of a file that is not watched"
        " itself",
        "the event does not contain them",
    ),
)


def coalesced(step: Sequence[ObservedEvent]) -> list[ObservedEvent]:
    """Return the events of one reading as fanotify on the host may have coalesced them.

    All events of one object, without renames, stand at the position of the first, each type once.
    """
    first: dict[object, int] = {}
    for position, one in enumerate(step):
        first.setdefault(one if one.what & MOVES else (one.where, one.name), position)
    together = sorted(
        step, key=lambda one: first[one if one.what & MOVES else (one.where, one.name)]
    )
    return list(dict.fromkeys(together))


@dataclass(frozen=True)
class Comparison:
    """The events of one script, from both watchers."""

    native: list[ObservedEvent]
    guest: list[ObservedEvent]

    def difference(self) -> str:
        """Return "" if both are equal, else where they begin to differ, and both in full."""
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


HostScript = Callable[[Path], object]


def compare(
    guest: Guest,
    share: Share,
    reference: Path,
    prepare: HostScript,
    script: HostScript,
    watched: dict[str, int],
) -> Comparison:
    """Run `script` in both directories after `prepare`; return the events of both.

    watched: inotify masks by path below the base. The base itself, ".", must be watched for
    IN_CREATE, because the end is an entry in it.
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
    """How the daemon watches the host, which decides how exactly events can be compared."""

    #: inotify reports all events in order: a script runs as a whole, and is compared exactly.
    INOTIFY = "inotify"
    #: fanotify coalesces pending events: both sides are read after each step, and compared as
    #: coalesced.
    FANOTIFY = "fanotify"

    def rounds(self, threads: Sequence[ThreadScript]) -> list[list[ThreadScript]]:
        """Return what each thread performs between two readings."""
        if self is HostWatch.INOTIFY:
            return [list(threads)]
        steps = itertools.zip_longest(*threads)
        return [[[] if operation is None else [operation] for operation in step] for step in steps]

    def comparable(self, step: list[ObservedEvent]) -> list[ObservedEvent]:
        """Return the events of one thread between two readings, without what may differ."""
        return coalesced(step) if self is HostWatch.FANOTIFY else step


def watches(threads: int) -> list[tuple[str, int]]:
    """Return the watched paths below the base, with their masks.

    They are the base, for the end of the script, and all WATCHED paths of each thread.
    """
    return [
        (".", int(In.CREATE)),
        *((f"{thread}/{path}", int(In.ALL)) for thread in range(threads) for path in WATCHED),
    ]


class EventLog:
    """The events of one watcher in one base directory, by thread."""

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
        """Add events to their threads.

        An event of no thread, such as an overflow, is added to all.
        """
        for thread, events_seen in enumerate(self.by_thread):
            own = [event for event in events if self.thread_of(event) in (thread, None)]
            events_seen += self.watch.comparable(normalize(own, self.labels, self.moves[thread]))

    def thread_of(self, event: GuestInotifyEvent) -> int | None:
        """Return the thread in whose directory the event happened; None: in the base directory."""
        thread = self.labels.get(event.wd, ".").partition("/")[0]
        return None if thread == "." else int(thread)

    @property
    def events_seen(self) -> list[ObservedEvent]:
        """The events of all threads, one thread after the other."""
        return [one for events_seen in self.by_thread for one in events_seen]


def watch_in_the_guest(listener: GuestInotify, base: PurePosixPath, threads: int) -> list[int]:
    """Add the watches of a base directory with one call of the agent."""
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
    """Perform the threads on the host, in the new directories `reference` and `share`.

    If something returns to the share, overflows are left out: a limit of docs/modes.md.
    """
    returns = any(operation[0] == RETURN for script in threads for operation in script)
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
                # A symlink, because it is created without an open and raises one event.
                (base / end).symlink_to("nowhere")
            local.take(native.read(end))
            remote.take(
                [
                    event
                    for event in read_until(listener, end)
                    if not (returns and event.mask & In.Q_OVERFLOW)
                ]
            )
    return Comparison(local.events_seen, remote.events_seen)


def compare_in_the_guest(
    guest: Guest,
    share: Share,
    local: PurePosixPath,
    threads: Sequence[ThreadScript],
    runners: ScriptRunners,
) -> Comparison:
    """Perform the threads in the guest, in the new directories `local` and `share`.

    `local` is the native side.
    """
    share.host.mkdir()
    bases = (local, share.guest)
    runners.perform([prepared_in_the_guest(bases, str(thread)) for thread in range(len(threads))])
    with guest.inotify() as listener:
        sides = [
            EventLog(watch_in_the_guest(listener, base, len(threads)), len(threads))
            for base in bases
        ]
        perform_in(runners, bases, threads)
        # The host creates it: a wrong or late report of the guest's own operations comes before.
        (share.host / END).symlink_to("nowhere")
        events = read_until(listener, END)
    for side in sides:
        side.take([event for event in events if event.wd in side.labels or event.wd < 0])
    return Comparison(sides[0].events_seen, sides[1].events_seen)


def prepared_in_the_guest(bases: Sequence[PurePath], thread: str) -> list[ScriptPart]:
    """Return the parts that make one thread's directory with its INITIAL_FILES in each base.

    They make the bases, too, if they do not exist.
    """
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
    """Perform all threads concurrently, each in its directory of each base in turn."""
    scripts = list(enumerate(threads))
    runners.perform(
        [[(base / str(number), script) for base in bases] for number, script in scripts]
    )


def read_until(listener: GuestInotify, end: str) -> list[GuestInotifyEvent]:
    """Return the events up to the entry `end`. HarnessError: it was not reported."""
    events = listener.read(until=end, limit=LIMIT)
    if not any(event.name == end for event in events):
        raise HarnessError(
            f"the guest's inotify reported {len(events)} events, but not {end!r}, in {LIMIT:.0f} s"
        )
    return events
