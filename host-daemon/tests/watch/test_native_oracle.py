# SPDX-License-Identifier: Apache-2.0
"""The same script runs under native inotify and under a watch table: both must report the same."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from farwatchd.linux.inotify import Inotify, InotifyBit
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.watch.watch_table import WatchTable
from farwatchd.wire.fsnotify import Event
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.event_records import decode_all
from tests.support.watch_host import by_handle

ALL = 0xFFF
IN_DONT_FOLLOW = 0x2000000
LONG = b"x" * 255
ODD = b"\xff\xfe \xe2\x82 \n."
#: One event of a listener: what was watched (its path when the watch began), what happened, cookie,
#: name.
Reported = tuple[bytes, str, int, bytes]


def everything_below(root: Path) -> list[bytes]:
    """Yield the root and all below it, symlinks themselves, in a fixed order."""
    found = [b"."]
    for directory, directories, files in os.walk(os.fsencode(root)):
        found += [
            os.path.relpath(directory + b"/" + each, os.fsencode(root))
            for each in directories + files
        ]
    return sorted(found)


class Native:
    """An inotify listener on everything below ``root``."""

    def __init__(self, root: Path) -> None:
        self._inotify = Inotify()
        self._paths = {}
        for path in everything_below(root):
            full = os.fsdecode(os.fsencode(root) + b"/" + path)
            self._paths[self._inotify.add(full, ALL | IN_DONT_FOLLOW)] = path

    def reported(self) -> list[Reported]:
        events = []
        while raw_events := self._inotify.read(65536):
            for raw in raw_events:
                if not raw.mask & InotifyBit.IGNORED:
                    name = repr(InotifyBit(raw.mask & ~InotifyBit.ISDIR)) + (
                        "|ISDIR" if raw.mask & InotifyBit.ISDIR else ""
                    )
                    events.append((self._paths[raw.wd], name, raw.cookie, raw.name))
        return events

    def close(self) -> None:
        self._inotify.close()


@dataclass
class DaemonEvents:
    """A watch table on everything below ``root``, drained by hand."""

    root: Path
    open_backend: Callable[[int], WatchBackend] = InotifyBackend
    mask: Event = Event(ALL) | Event.ON_CHILD
    cookie: int = 0
    timers: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._root_fd = os.open(self.root, os.O_PATH)
        self.backend = self.open_backend(self._root_fd)
        self.queue = EventQueue(100_000)
        self.table = WatchTable(
            self.backend,
            self.queue,
            10_000,
            lambda _seconds, callback: self.timers.append(callback),
        )
        self.paths: dict[int, bytes] = {}
        self.nodeids: dict[int, int] = {}
        for path in everything_below(self.root):
            self.watch(path, self.mask)

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def watch(self, path: bytes, mask: Event) -> int:
        """Watch through an O_PATH descriptor that is closed again. Returns the nodeid."""
        fd = os.open(os.fsencode(self.root) + b"/" + path, os.O_PATH | os.O_NOFOLLOW)
        status = os.fstat(fd)
        nodeid = self.nodeids.setdefault(status.st_ino, len(self.nodeids) + 1)
        self.paths[nodeid] = path
        assert self.table.set_mask(nodeid, 7, fd, stat.S_ISDIR(status.st_mode), mask) == mask
        os.close(fd)
        return nodeid

    def records(self) -> list[EventRecord]:
        """All records, once nothing is pending and nothing is held any more."""
        while True:
            self.table.process()
            delay = self.backend.delay()
            if select.select([self.backend.fileno()], [], [], delay or 0)[0]:
                continue
            if delay is None:
                break
        payload = []
        while (part := self.queue.take(4080)) is not None:
            payload.append(part)
        return decode_all(b"".join(payload))

    def reported(self) -> list[Reported]:
        events = []
        for record in self.records():
            self.cookie += 1
            assert record.generation == 7
            path = self.paths[record.nodeid]
            isdir = "|ISDIR" if record.mask & Event.ISDIR and not record.mask & SELF else ""
            mask = InotifyBit(int(record.mask & ~(Event.ISDIR | Event.ON_CHILD)))
            if record.mask & Event.RENAME:
                target = self.paths[record.newdir]
                events.append((path, repr(InotifyBit.MOVED_FROM) + isdir, self.cookie, record.name))
                events.append(
                    (target, repr(InotifyBit.MOVED_TO) + isdir, self.cookie, record.newname)
                )
            else:
                events.append(
                    (path, repr(mask) + isdir, self.cookie if record.unpaired else 0, record.name)
                )
        return events

    def close(self) -> None:
        self.backend.close()
        os.close(self._root_fd)


SELF = Event.DELETE_SELF | Event.MOVE_SELF


def plain(events: list[Reported]) -> list[Reported]:
    """Give the cookies the numbers of their first sight, and coalesce adjacent equal events.

    inotify may coalesce those at any time.
    """
    cookies: dict[int, int] = {0: 0}
    result: list[Reported] = []
    for path, mask, cookie, name in events:
        event = (path, mask, cookies.setdefault(cookie, len(cookies)), name)
        if not result or result[-1] != event:
            result.append(event)
    return result


Step = Callable[[Path], object]
Opener = Callable[[Callable[..., WatchBackend]], Callable[[int], WatchBackend]]


@dataclass(frozen=True)
class NativeScript:
    """``prepare`` runs before the watches are set, ``steps`` under them."""

    prepare: tuple[Step, ...] = ()
    steps: tuple[Step, ...] = ()


def path(root: Path, name: bytes | str) -> Path:
    return root / os.fsdecode(name)


def write(name: bytes | str, data: bytes = b"data") -> Step:
    return lambda root: path(root, name).write_bytes(data)


def read(name: bytes | str) -> Step:
    return lambda root: path(root, name).read_bytes()


def mkdir(name: bytes | str) -> Step:
    return lambda root: path(root, name).mkdir()


def rmdir(name: bytes | str) -> Step:
    return lambda root: path(root, name).rmdir()


def unlink(name: bytes | str) -> Step:
    return lambda root: path(root, name).unlink()


def rename(old: bytes | str, new: bytes | str) -> Step:
    return lambda root: path(root, old).rename(path(root, new))


def link(old: str, new: str) -> Step:
    return lambda root: path(root, new).hardlink_to(path(root, old))


def symlink(target: str, name: str) -> Step:
    return lambda root: path(root, name).symlink_to(target)


def chmod(name: bytes | str, mode: int) -> Step:
    return lambda root: path(root, name).chmod(mode)


def append(name: str) -> Step:
    def step(root: Path) -> None:
        with path(root, name).open("ab") as file:
            file.write(b"more")

    return step


def truncate(name: str) -> Step:
    return lambda root: os.truncate(path(root, name), 1)


def listing(name: str) -> Step:
    return lambda root: list(path(root, name).iterdir())


def utime(name: str) -> Step:
    return lambda root: os.utime(path(root, name), (1, 1), follow_symlinks=False)


def setxattr(name: str) -> Step:
    return lambda root: os.setxattr(path(root, name), "trusted.farwatch", b"1")


def write_after_unlink(name: str) -> Step:
    def step(root: Path) -> None:
        with path(root, name).open("wb", buffering=0) as file:
            path(root, name).unlink()
            file.write(b"nobody will read this")

    return step


def fifo(name: str) -> Step:
    return lambda root: os.mkfifo(path(root, name))


TREE = (mkdir("d"), mkdir("e"), write("d/f"), write("e/g"), mkdir("d/sub"), symlink("d/f", "link"))

SCRIPTS = {
    "create and write": NativeScript((), (write("new"),)),
    "read": NativeScript(TREE, (read("d/f"),)),
    "append": NativeScript(TREE, (append("d/f"), append("d/f"))),
    "truncate": NativeScript(TREE, (truncate("d/f"),)),
    "attributes": NativeScript(
        TREE, (chmod("d/f", 0o600), chmod("d", 0o700), chmod("d/sub", 0o700), setxattr("d/f"))
    ),
    "attributes of a symlink itself": NativeScript(TREE, (utime("link"),)),
    "list directories": NativeScript(TREE, (listing("d"), listing("d/sub"), listing("."))),
    "make directories": NativeScript(
        TREE, (mkdir("d/n"), mkdir("d/n/m"), write("d/n/m/f"), rmdir("d/sub"))
    ),
    "unlink": NativeScript(TREE, (unlink("d/f"),)),
    "unlink after change of mode and data": NativeScript(
        TREE, (chmod("d/f", 0o600), append("d/f"), unlink("d/f"))
    ),
    "unlink one of two names": NativeScript(
        (*TREE, link("d/f", "e/h")), (unlink("d/f"), append("e/h"), unlink("e/h"))
    ),
    "link": NativeScript(TREE, (link("d/f", "e/h"), append("e/h"))),
    "symlinks": NativeScript(
        TREE, (symlink("x", "d/s"), rename("link", "d/l"), unlink("d/l"), unlink("d/s"))
    ),
    "fifo": NativeScript(
        (*TREE, fifo("d/p")),
        (chmod("d/p", 0o600), rename("d/p", "e/p"), unlink("e/p"), fifo("d/q")),
    ),
    "rmdir": NativeScript(TREE, (rmdir("d/sub"),)),
    "rmdir and make again": NativeScript(TREE, (rmdir("d/sub"), mkdir("d/sub"), rmdir("d/sub"))),
    "rename in a directory": NativeScript(TREE, (rename("d/f", "d/n"), append("d/n"))),
    "rename across": NativeScript(TREE, (rename("d/f", "e/f"), append("e/f"))),
    "rename back and forth": NativeScript(
        TREE, (rename("d/f", "e/f"), rename("e/f", "d/f"), rename("d/f", "e/f"))
    ),
    "rename over a file": NativeScript(TREE, (rename("d/f", "e/g"),)),
    "rename over a file in the same directory": NativeScript(
        (*TREE, write("d/z")), (rename("d/f", "d/z"), unlink("d/z"))
    ),
    "rename a directory": NativeScript(TREE, (rename("d/sub", "e/other"), rmdir("e/other"))),
    "rename a directory with content": NativeScript(
        TREE, (rename("d", "e/d"), rmdir("e/d/sub"), unlink("e/d/f"), rmdir("e/d"))
    ),
    "rename over an empty directory": NativeScript(
        TREE, (rename("e", "d/sub"), unlink("d/sub/g"), rmdir("d/sub"))
    ),
    "rename a directory twice and remove it": NativeScript(
        TREE, (rename("d/sub", "d/a"), rename("d/a", "e/b"), rmdir("e/b"))
    ),
    "names of 1 and 255 bytes": NativeScript(
        TREE, (write(b"a"), write(LONG), rename(LONG, b"b"), rename(b"a", LONG), mkdir(LONG[1:]))
    ),
    "names that are not UTF-8": NativeScript(
        (*TREE, write(ODD)), (append(os.fsdecode(ODD)), rename(ODD, ODD + b"2"), unlink(ODD + b"2"))
    ),
    "rmdir after a change of mode": NativeScript(
        TREE, (chmod("d/sub", 0o700), chmod("d", 0o700), rmdir("d/sub"))
    ),
    "a directory takes another's name": NativeScript(
        TREE,
        (rename("e", "x"), rmdir("d/sub"), rename("x", "d/sub"), unlink("d/sub/g"), rmdir("d/sub")),
    ),
    "a directory called deleted": NativeScript((mkdir("x (deleted)"),), (rmdir("x (deleted)"),)),
    "remove a tree": NativeScript(
        TREE, (unlink("d/f"), rmdir("d/sub"), rmdir("d"), unlink("e/g"), rmdir("e"), unlink("link"))
    ),
    "an editor saves": NativeScript(
        TREE,
        (
            write("d/.f.swp"),
            rename("d/f", "d/f~"),
            write("d/f"),
            unlink("d/f~"),
            unlink("d/.f.swp"),
        ),
    ),
    "out of the watched directories": NativeScript(
        TREE, (mkdir("n"), rename("d/f", "n/f"), rename("n/f", "e/f"))
    ),
}
# Setting the xattr of that script needs root.
SCRIPT_NAMES = [
    pytest.param(name, marks=pytest.mark.root if name == "attributes" else ()) for name in SCRIPTS
]


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    roots = tmp_path / "native", tmp_path / "daemon"
    for root in roots:
        root.mkdir()
    return roots


@pytest.fixture(params=["each step", "all together"])
def stepwise(request: pytest.FixtureRequest) -> bool:
    """Whether both listeners read after each step or only at the end."""
    return bool(request.param == "each step")


def run(
    script: NativeScript, listener: Native | DaemonEvents, root: Path, stepwise: bool, repeats: bool
) -> list[Reported]:
    reported = []
    for step in script.steps:
        step(root)
        if stepwise:
            events = listener.reported()
            reported += events if repeats else list(dict.fromkeys(events))
    return reported + listener.reported()


def both(
    script: NativeScript,
    roots: tuple[Path, Path],
    stepwise: bool,
    backend: Callable[[int], WatchBackend] = InotifyBackend,
    repeats: bool = True,
) -> Iterator[list[Reported]]:
    listeners: tuple[Callable[[Path], Native | DaemonEvents], ...] = (
        Native,
        partial(DaemonEvents, open_backend=backend),
    )
    for root, kind in zip(roots, listeners, strict=True):
        for step in script.prepare:
            step(root)
        listener = kind(root)
        try:
            yield plain(run(script, listener, root, stepwise, repeats))
        finally:
            listener.close()


@pytest.fixture(params=["by descriptor", "by handle"])
def store(request: pytest.FixtureRequest) -> Opener:
    """How the inode store keeps inodes: by descriptor, or by handle with few descriptors."""
    return by_handle if request.param == "by handle" else lambda kind: kind


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_inotify_backend_reports_what_native_inotify_reports(
    name: str, roots: tuple[Path, Path], stepwise: bool, store: Opener
) -> None:
    native, daemon = both(SCRIPTS[name], roots, stepwise, store(InotifyBackend))
    assert native
    assert daemon == native


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_fanotify_backend_reports_each_step_as_native_inotify_does(
    name: str, roots: tuple[Path, Path], store: Opener
) -> None:
    # fanotify merges what repeats, not only where it is adjacent: each step is reported without
    # repetitions.
    native, daemon = both(
        SCRIPTS[name],
        roots,
        stepwise=True,
        backend=store(FanotifyBackend),
        repeats=False,
    )
    assert native
    assert daemon == native


def test_writes_after_unlink_are_reported_before_delete_self(
    roots: tuple[Path, Path], store: Opener
) -> None:
    native, daemon = both(
        NativeScript(TREE, (write_after_unlink("d/f"),)),
        roots,
        False,
        store(InotifyBackend),
    )
    assert daemon == native


NAMES = st.sampled_from(
    ["d", "e", "d/f", "d/n", "d/sub", "d/sub/f", "e/g", "e/d", "e/d/f", "e/d/sub", "top", "link"]
)
ONE = (write, append, truncate, read, mkdir, rmdir, unlink, listing, utime, write_after_unlink)
TWO = (rename, link)
STEPS = st.one_of(
    st.builds(lambda make, name: make(name), st.sampled_from(ONE), NAMES),
    st.builds(lambda make, old, new: make(old, new), st.sampled_from(TWO), NAMES, NAMES),
    st.builds(lambda name, mode: chmod(name, mode), NAMES, st.sampled_from((0o600, 0o700))),
)


def if_possible(step: Step) -> Step:
    def attempt(root: Path) -> None:
        with contextlib.suppress(OSError):
            step(root)

    return attempt


@pytest.mark.parametrize(
    "backend", [InotifyBackend, by_handle(InotifyBackend)], ids=["by descriptor", "by handle"]
)
@settings(max_examples=int(os.environ.get("FARWATCH_EXAMPLES", "80")))
@given(st.lists(STEPS, max_size=25))
def test_any_script_is_reported_as_native_inotify_does(
    backend: Callable[[int], WatchBackend], steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as base:
        roots = Path(base, "native"), Path(base, "daemon")
        for root in roots:
            root.mkdir()
        native, daemon = both(
            NativeScript(TREE, tuple(map(if_possible, steps))), roots, False, backend
        )
    assert daemon == native
