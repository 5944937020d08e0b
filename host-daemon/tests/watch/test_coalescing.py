# SPDX-License-Identifier: Apache-2.0
"""fanotify coalesces equal events of one process.

The reported events still end in the state of the host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.linux.syscalls import renameat2
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.wire.fsnotify import Event
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.watch_host import Host, by_handle

MOVES = Event.MOVED_FROM | Event.MOVED_TO | Event.RENAME
ENTRIES = Event.CREATE | Event.DELETE | MOVES
RENAME_EXCHANGE = 2
#: A report in short: what happened, the names, and the nodeid of the directory moved into.
Short = tuple[str, str, str]


@pytest.fixture(params=["by descriptor", "by handle"])
def backend(request: pytest.FixtureRequest) -> Callable[..., WatchBackend]:
    return by_handle(FanotifyBackend) if request.param == "by handle" else FanotifyBackend


@pytest.fixture
def host(share: Path, backend: Callable[..., WatchBackend]) -> Iterator[Host]:
    """Yield a host that reports events of all processes, with a file ``store`` and a directory."""
    (share / "store").write_text("x")
    (share / "sub").mkdir()
    host = Host(share, open_backend=backend)
    yield host
    host.close()


def short(records: list[EventRecord]) -> list[Short]:
    return [
        (
            (record.mask & ~Event.ISDIR).name or "",
            record.name.decode(),
            record.newname.decode() + (f" in {record.newdir}" if record.newdir > 1 else ""),
        )
        for record in records
    ]


def test_unlink_and_link_of_one_inode_end_with_create(host: Host, share: Path) -> None:
    os.link(share / "store", share / "b")
    host.watch(1, share, ENTRIES)
    (share / "b").unlink()
    os.link(share / "store", share / "b")
    assert short(host.records()) == [("DELETE", "b", ""), ("CREATE", "b", "")]


def test_link_and_unlink_of_one_inode_end_with_delete(host: Host, share: Path) -> None:
    host.watch(1, share, ENTRIES)
    os.link(share / "store", share / "b")
    (share / "b").unlink()
    assert short(host.records()) == [("CREATE", "b", ""), ("DELETE", "b", "")]


def test_name_toggled_many_times_ends_with_what_is_there(host: Host, share: Path) -> None:
    host.watch(1, share, ENTRIES)
    for _ in range(3):
        os.link(share / "store", share / "g")
        (share / "g").unlink()
    os.link(share / "store", share / "g")
    assert short(host.records())[-1] == ("CREATE", "g", "")


def test_hundred_links_made_again_each_end_with_create(host: Host, share: Path) -> None:
    names = [f"x{number}" for number in range(100)]
    for name in names:
        os.link(share / "store", share / name)
    host.watch(1, share, ENTRIES)
    for name in names:
        (share / name).unlink()
        os.link(share / "store", share / name)
    last = {name: what for what, name, _ in short(host.records())}
    assert last == dict.fromkeys(names, "CREATE")


def test_third_rename_of_there_and_back_is_reported(host: Host, share: Path) -> None:
    (share / "a").touch()
    host.watch(1, share, ENTRIES)
    (share / "a").rename(share / "b")
    (share / "b").rename(share / "a")
    (share / "a").rename(share / "b")
    assert short(host.records()) == [
        ("RENAME", "a", "b"),
        ("RENAME", "b", "a"),
        ("RENAME", "a", "b"),
    ]


def test_directory_moved_in_out_and_in_is_reported(host: Host, share: Path) -> None:
    (share / "d").mkdir()
    host.watch(1, share, ENTRIES)
    host.watch(2, share / "sub", ENTRIES)
    host.watch(3, share / "d", ENTRIES)
    (share / "d").rename(share / "sub/d")
    (share / "sub/d").rename(share / "d")
    (share / "d").rename(share / "sub/d")
    assert short(host.records()) == [
        ("RENAME", "d", "d in 2"),
        ("RENAME", "d", "d"),
        ("RENAME", "d", "d in 2"),
    ]
    (share / "sub/d").rmdir()
    assert short(host.records()) == [("DELETE_SELF", "", ""), ("DELETE", "d", "")]


def test_file_moved_out_of_the_share_in_and_out_is_reported(host: Host, share: Path) -> None:
    outside = share.parent / "a"
    (share / "a").touch()
    host.watch(1, share, ENTRIES)
    (share / "a").rename(outside)
    outside.rename(share / "a")
    (share / "a").rename(outside)
    assert short(host.records()) == [
        ("MOVED_FROM", "a", ""),
        ("MOVED_TO", "a", ""),
        ("MOVED_FROM", "a", ""),
    ]


def test_link_rename_and_link_end_with_create(host: Host, share: Path) -> None:
    os.link(share / "store", share / "g")
    host.watch(1, share, ENTRIES)
    (share / "g").rename(share / "h")
    os.link(share / "store", share / "g")
    (share / "g").rename(share / "i")
    os.link(share / "store", share / "g")
    assert short(host.records()) == [
        ("RENAME", "g", "h"),
        ("CREATE", "g", ""),
        ("RENAME", "g", "i"),
        ("CREATE", "g", ""),
    ]


def test_link_rename_unlink_and_link_end_with_create(host: Host, share: Path) -> None:
    host.watch(1, share, ENTRIES)
    os.link(share / "store", share / "h")
    (share / "h").rename(share / "h2")
    (share / "h2").unlink()
    os.link(share / "store", share / "h")
    assert short(host.records()) == [
        ("CREATE", "h", ""),
        ("RENAME", "h", "h2"),
        ("DELETE", "h2", ""),
        ("CREATE", "h", ""),
    ]


def test_third_exchange_of_two_names_is_reported(host: Host, share: Path) -> None:
    (share / "a").touch()
    (share / "b").touch()
    host.watch(1, share, ENTRIES)
    fd = os.open(share, os.O_RDONLY)
    for _ in range(3):
        renameat2(fd, b"a", fd, b"b", RENAME_EXCHANGE)
    os.close(fd)
    pair = [("RENAME", "a", "b"), ("RENAME", "b", "a")]
    assert short(host.records()) == pair * 3


def test_events_of_different_reads_are_not_repeated(host: Host, share: Path) -> None:
    host.watch(1, share, ENTRIES)
    for _ in range(2):
        os.link(share / "store", share / "g")
        assert short(host.records()) == [("CREATE", "g", "")]
        (share / "g").rename(share / "h")
        assert short(host.records()) == [("RENAME", "g", "h")]
        (share / "h").unlink()
        assert short(host.records()) == [("DELETE", "h", "")]


def test_check_waits_until_all_events_are_read(host: Host, share: Path) -> None:
    """More events than one read returns lie between the coalesced ones."""
    host.watch(1, share, ENTRIES)
    os.link(share / "store", share / "h")
    (share / "h").rename(share / "h2")
    for number in range(3000):
        (share / f"{number}").touch()
    (share / "h2").unlink()
    os.link(share / "store", share / "h")
    reports = [report for report in short(host.records()) if report[1].startswith("h")]
    assert reports == [
        ("CREATE", "h", ""),
        ("RENAME", "h", "h2"),
        ("DELETE", "h2", ""),
        ("CREATE", "h", ""),
    ]


def python(code: str, directory: Path) -> None:
    """Run Python code in another process."""
    subprocess.run(
        [sys.executable, "-c", f"import os\n{code}"], cwd=directory, check=True, timeout=30
    )


def test_coalesced_events_of_others_are_reported_and_own_ones_are_not(
    share: Path, backend: Callable[..., WatchBackend]
) -> None:
    for name in ("a", "mine"):
        (share / name).touch()
    if backend is FanotifyBackend:
        backend = partial(FanotifyBackend, own_pid=os.getpid())
    else:
        backend = by_handle(partial(FanotifyBackend, own_pid=os.getpid()))
    host = Host(share, open_backend=backend)
    host.watch(1, share, ENTRIES)
    for old, new in (("mine", "m"), ("m", "mine"), ("mine", "m")):
        (share / old).rename(share / new)
    python("for old, new in ('ab', 'ba', 'ab'): os.rename(old, new)", share)
    for _ in range(2):
        os.link(share / "m", share / "own")
        (share / "own").unlink()
    assert short(host.records()) == [
        ("RENAME", "a", "b"),
        ("RENAME", "b", "a"),
        ("RENAME", "a", "b"),
    ]
    host.close()


#: Directories of the share that are watched, and one outside of it.
WATCHED = (".", "d", "e")
PATHS = st.sampled_from([f"{place}/{name}" for place in (*WATCHED, "../out") for name in "xy"])
#: What is done, one or two paths, and how often it is done and undone.
Step = tuple[str, str, str, int]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(
        st.sampled_from(("create", "unlink", "mkdir", "rmdir")), PATHS, st.just(""), st.just(1)
    ),
    st.tuples(st.sampled_from(("link", "rename")), PATHS, PATHS, st.integers(1, 3)),
    st.tuples(st.just("read"), st.just(""), st.just(""), st.just(1)),
)


def perform(root: Path, step: Step) -> None:
    what, first, second, times = step
    old, new = root / first, root / second
    for number in range(times):
        with contextlib.suppress(OSError):
            match what:
                case "create":
                    os.close(os.open(old, os.O_CREAT | os.O_EXCL))
                case "unlink":
                    old.unlink()
                case "mkdir":
                    old.mkdir()
                case "rmdir":
                    old.rmdir()
                case "link":
                    if number:
                        new.unlink()
                    os.link(old, new)
                case "rename":
                    if number:
                        new.rename(old)
                    old.rename(new)


def follow(listing: dict[int, set[bytes]], records: list[EventRecord]) -> None:
    """Apply reported events to what a watcher knows of the names in each directory."""
    for record in records:
        names = listing[record.nodeid]
        if record.mask & (Event.DELETE | Event.MOVED_FROM | Event.RENAME):
            names.discard(record.name)
        if record.mask & Event.RENAME:
            listing[record.newdir].add(record.newname)
        if record.mask & (Event.CREATE | Event.MOVED_TO):
            names.add(record.name)


def listed(root: Path) -> dict[int, set[bytes]]:
    return {
        nodeid: {os.fsencode(path.name) for path in (root / place).iterdir()}
        for nodeid, place in enumerate(WATCHED, start=1)
    }


@settings(max_examples=int(os.environ.get("FARWATCH_EXAMPLES", "100")))
@given(st.lists(STEPS, max_size=20))
def test_names_reported_for_any_script_are_the_names_that_are_there(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as base:
        share = Path(base, "share")
        share.mkdir()
        Path(base, "out").mkdir()
        for place in WATCHED[1:]:
            (share / place).mkdir()
        host = Host(share, open_backend=FanotifyBackend)
        try:
            for nodeid, place in enumerate(WATCHED, start=1):
                host.watch(nodeid, share / place, ENTRIES)
            known = listed(share)
            for step in steps:
                if step[0] == "read":
                    follow(known, host.records())
                    assert known == listed(share)
                else:
                    perform(share, step)
            follow(known, host.records())
            assert known == listed(share)
        finally:
            host.close()
