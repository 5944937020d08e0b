# SPDX-License-Identifier: Apache-2.0
"""The oracle: the same script of file operations under native inotify and in the guest must give the same events.

The script runs twice on the host: in a twin directory outside the share, under a native listener, and in the share,
under a listener in the guest. The twin has no daemon that holds its files open, so it behaves as any local directory.
What the guest does is held against the same done on the guest's own tmpfs.
"""

import ctypes
import os
import select
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path, PurePosixPath
from typing import Self

from farwatch_harness.errors import HarnessError
from farwatch_harness.guest import Event, Guest
from farwatch_harness.machine import Share
from farwatch_harness.operations import PERFORM, TREE, WATCHED, Operation, perform

HEAD = struct.Struct("=iIII")
LIBC = ctypes.CDLL(None, use_errno=True)
#: Made in the base directory when a script has ended: whoever sees it has seen everything before it.
END = "end of the script"
LIMIT = 20.0


class In(IntFlag):
    """inotify(7)'s bits."""

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    ALL = 0xFFF
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    DONT_FOLLOW = 0x2000000
    EXCL_UNLINK = 0x4000000
    MASK_CREATE = 0x10000000
    MASK_ADD = 0x20000000
    ISDIR = 0x40000000
    ONESHOT = 0x80000000


@dataclass(frozen=True)
class Told:
    """One event as a program understands it: where (the path that was watched), what, on which entry, which move."""

    where: str
    what: In
    name: str
    move: int = 0

    def __str__(self) -> str:
        move = f" #{self.move}" if self.move else ""
        return f"{self.where}: {self.what.name} {self.name!r}{move}"


class Native:
    """An inotify instance on the host."""

    def __init__(self) -> None:
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def add(self, path: Path, mask: int) -> int:
        """inotify_add_watch(2): the watch descriptor, or ``OSError``."""
        wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))
        return int(wd)

    def read(self, until: str) -> list[Event]:
        """All events up to the first with the name ``until``; HarnessError when it does not come."""
        events: list[Event] = []
        while not any(event.name == until for event in events):
            if not select.select([self.fd], [], [], LIMIT)[0]:
                raise HarnessError(f"native inotify did not report {until!r} in {LIMIT:.0f} s")
            data = os.read(self.fd, 1 << 20)
            at = 0
            while at < len(data):
                wd, mask, cookie, length = HEAD.unpack_from(data, at)
                at += HEAD.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                events.append(Event(wd, mask, cookie, name, 0.0))
        return events

    def close(self) -> None:
        """Close the instance."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def told(events: Sequence[Event], labels: dict[int, str], moves: dict[int, int] | None = None) -> list[Told]:
    """What the events say, comparable between listeners: paths for descriptors, numbered moves.

    ``moves`` numbers the cookies over several calls.

    What repeats the event before it of the same watch is left out: inotify merges some of it, fanotify all of it. What
    happens to the END entry is left out.
    """
    moves = {} if moves is None else moves
    story: list[Told] = []
    last: dict[int, Told] = {}
    for event in events:
        if event.name.startswith(END):
            continue
        move = moves.setdefault(event.cookie, len(moves) + 1) if event.cookie else 0
        one = Told(labels.get(event.wd, ""), In(event.mask), event.name, move)
        if last.get(event.wd) != one:
            story.append(one)
        last[event.wd] = one
    return story


#: What is not as on a local file system, and why. The oracle allows the first; it compares inotify, the rest is beyond.
KNOWN_DIFFERENCES = {
    "mode merged: what one process on the host does to one object before the daemon has read of it is told once for "
    "each kind of event, in the order open, read, write, attributes, close": "the host's fanotify merges events in its "
    "queue",
    "fanotify without FAN_REPORT_FID: an inode mark sees nothing that the host does": "such an event comes with an "
    "open descriptor of a path, which the guest does not know",
    "a file's other names, in directories that nobody watches, may be cached beyond an event": "the event does not "
    "tell of them",
}


def without_fanotify(step: Sequence[Told]) -> list[Told]:
    """The events of one operation without the difference of mode merged: each is told once."""
    return list(dict.fromkeys(step))


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
            (at for at, (one, other) in enumerate(pairs) if one != other), min(len(self.native), len(self.guest))
        )
        native = "\n  ".join(map(str, self.native))
        guest = "\n  ".join(map(str, self.guest))
        return f"the streams part at event {same}\nnative:\n  {native}\nguest:\n  {guest}"


Step = Callable[[Path], object]


def compare(guest: Guest, share: Share, twin: Path, prepare: Step, script: Step, watched: dict[str, int]) -> Comparison:
    """Run ``script`` in both directories after ``prepare``; ``watched`` maps paths below the base to inotify masks.

    The base itself, ".", must be watched for IN_CREATE: that is how the end is seen.
    """
    prepare(twin)
    prepare(share.host)
    with Native() as native, guest.inotify() as listener:
        native_labels = {native.add(twin / path, mask): path for path, mask in watched.items()}
        guest_labels = {listener.add(share.guest / path, mask): path for path, mask in watched.items()}
        for base in (twin, share.host):
            script(base)
            (base / END).touch()
        return Comparison(
            told(native.read(END), native_labels), told(listener.read(until=END, limit=LIMIT), guest_labels)
        )


def compare_steps(guest: Guest, share: Share, twin: Path, script: Sequence[Operation], *, exact: bool) -> Comparison:
    """Run the operations one by one on the host, in both directories; both listeners read after each of them.

    With ``exact`` the streams are as they are, else FANOTIFY's differences are taken out of both.
    """
    for operation in TREE:
        perform(os.fspath(twin), operation)
        perform(os.fspath(share.host), operation)
    sides: tuple[list[Told], list[Told]] = ([], [])
    with Native() as native, guest.inotify() as listener:
        labels = (
            {native.add(twin / path, In.ALL): path for path in WATCHED},
            {listener.add(share.guest / path, In.ALL): path for path in WATCHED},
        )
        moves: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for number, operation in enumerate(script):
            end = f"{END} {number}"
            for base in (twin, share.host):
                perform(os.fspath(base), operation)
                # A symlink: made by one event, and without an open.
                (base / end).symlink_to("nowhere")
            streams = native.read(end), listener.read(until=end, limit=LIMIT)
            for side, events, names, known in zip(sides, streams, labels, moves, strict=True):
                step = told(events, names, known)
                side += step if exact else without_fanotify(step)
    return Comparison(*sides)


IN_THE_GUEST = (
    """
import ctypes, os, select, struct
"""
    + PERFORM
    + """
def main(base, tree, script, watched, mask, end, quiet, limit):
    os.makedirs(base)
    for operation in tree:
        perform(base, operation)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    labels = {libc.inotify_add_watch(fd, f"{base}/{path}".encode(), ctypes.c_uint32(mask)): path for path in watched}
    for operation in script:
        perform(base, operation)
    os.symlink("nowhere", f"{base}/{end}")
    events, wait = [], limit
    while select.select([fd], [], [], wait)[0]:
        data = os.read(fd, 1 << 20)
        while data:
            wd, what, cookie, length = struct.unpack_from("=iIII", data)
            name = os.fsdecode(data[16 : 16 + length].rstrip(bytes(1)))
            events.append([wd, what, cookie, name])
            if name == end:
                wait = quiet
            data = data[16 + length :]
    os.close(fd)
    return [labels, events]
"""
)
#: How long the guest waits for events that come late or a second time, in seconds.
QUIET = 0.1


def compare_guest(guest: Guest, local: PurePosixPath, shared: PurePosixPath, script: Sequence[Operation]) -> Comparison:
    """Run the operations in the guest, in new directories of a local file system (the native side) and of the share."""
    sides = []
    for base in (local, shared):
        labels, events = guest.python(
            IN_THE_GUEST, str(base), TREE, script, WATCHED, int(In.ALL), END, QUIET, LIMIT, limit=LIMIT
        )
        if not any(event[3] == END for event in events):
            raise HarnessError(f"the guest's inotify did not report the end of a script in {base}")
        found = [Event(wd, mask, cookie, name, 0.0) for wd, mask, cookie, name in events]
        sides.append(told(found, {int(wd): path for wd, path in labels.items()}))
    return Comparison(*sides)
