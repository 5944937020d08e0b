# SPDX-License-Identifier: Apache-2.0
"""Events of open files that have lost their names say so, as IN_EXCL_UNLINK needs it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.lost_names import LostNames
from farwatchd.wire.fsnotify import Event
from tests.support.watch_host import BACKENDS, Host

CHILD = Event.OPEN | Event.ACCESS | Event.MODIFY | Event.CLOSE_WRITE | Event.CLOSE_NOWRITE
DIR = 1


@pytest.fixture
def by_inode(share: Path) -> Iterator[Host]:
    """Yield a host whose watch back end knows the inodes of events."""
    host = Host(share, open_backend=BACKENDS["fanotify"])
    yield host
    host.close()


def child(event: Event, name: bytes, unlinked: bool) -> EventRecord:
    return EventRecord(DIR, 0, event | Event.ON_CHILD, name, unlinked=unlinked)


def written(host: Host, fd: int) -> bool:
    """Write to an open file; return whether its event says that the name is lost."""
    host.records()
    os.write(fd, b"x")
    (record,) = host.records()
    assert record.mask == Event.MODIFY | Event.ON_CHILD
    return record.unlinked


@pytest.mark.parametrize("entries", [Event.CREATE | Event.DELETE, Event(0)])
def test_events_after_the_unlink_are_of_an_unlinked_file(
    host: Host, share: Path, entries: Event
) -> None:
    host.watch(DIR, share, Event.MODIFY | Event.CLOSE_WRITE | Event.ON_CHILD | entries)
    fd = os.open(share / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"1")
    host.records()
    (share / "file").unlink()
    # Read before fanotify joins the next events to it, which would hide their order.
    assert host.records() == [EventRecord(DIR, 0, Event.DELETE, b"file")] * bool(entries)
    os.write(fd, b"2")
    os.close(fd)
    assert host.records() == [
        child(Event.MODIFY, b"file", unlinked=True),
        child(Event.CLOSE_WRITE, b"file", unlinked=True),
    ]


def test_events_before_the_unlink_are_of_a_linked_file(host: Host, share: Path) -> None:
    host.watch(DIR, share, Event.MODIFY | Event.ON_CHILD | Event.DELETE)
    fd = os.open(share / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"1")
    (share / "file").unlink()
    assert host.records() == [
        child(Event.MODIFY, b"file", unlinked=False),
        EventRecord(DIR, 0, Event.DELETE, b"file"),
    ]
    os.close(fd)


def test_attributes_of_an_unlinked_file_are_reported_as_natively(host: Host, share: Path) -> None:
    # inotify leaves out only what happens through an open file.
    host.watch(DIR, share, Event.ATTRIB | Event.MODIFY | Event.ON_CHILD)
    fd = os.open(share / "file", os.O_CREAT | os.O_RDWR)
    (share / "file").unlink()
    host.records()
    os.fchmod(fd, 0o600)
    assert host.records() == [child(Event.ATTRIB, b"file", unlinked=False)]
    os.close(fd)


def test_a_new_file_of_the_name_is_linked(host: Host, share: Path) -> None:
    host.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    for make in (lambda path: path.touch(), lambda path: (share.parent / "new").rename(path)):
        (share.parent / "new").touch()
        fd = os.open(share / "file", os.O_CREAT | os.O_RDWR)
        (share / "file").unlink()
        assert written(host, fd)
        os.close(fd)
        make(share / "file")
        fd = os.open(share / "file", os.O_RDWR)
        assert not written(host, fd)
        os.close(fd)
        (share / "file").unlink()


def test_a_file_that_another_one_has_replaced_is_unlinked(by_inode: Host, share: Path) -> None:
    by_inode.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    (share / "new").touch()
    old = os.open(share / "file", os.O_CREAT | os.O_RDWR)
    assert not written(by_inode, old)
    new = os.open(share / "new", os.O_RDWR)
    (share / "new").rename(share / "file")
    assert written(by_inode, old)
    assert not written(by_inode, new)
    (share / "file").unlink()
    (share / "file").touch()
    third = os.open(share / "file", os.O_RDWR)
    assert [written(by_inode, fd) for fd in (old, new, third)] == [True, True, False]
    for fd in (old, new, third):
        os.close(fd)


def test_a_file_moved_from_elsewhere_replaces_the_name(by_inode: Host, share: Path) -> None:
    by_inode.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    (share.parent / "new").touch()
    old = os.open(share / "file", os.O_CREAT | os.O_RDWR)
    (share.parent / "new").rename(share / "file")
    new = os.open(share / "file", os.O_RDWR)
    assert [written(by_inode, fd) for fd in (old, new)] == [True, False]
    os.close(old)
    os.close(new)


def test_toggled_names_are_not_lost(host: Host, share: Path) -> None:
    # fanotify hides the third rename and the second link.
    host.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    a, b = share / "a", share / "b"
    a.touch()
    fd = os.open(a, os.O_RDWR)
    host.records()
    a.rename(b)
    b.rename(a)
    a.rename(b)
    os.write(fd, b"x")
    assert [record.unlinked for record in host.records()] == [False]
    os.link(b, a)
    a.unlink()
    os.link(b, a)
    linked = os.open(a, os.O_RDWR)
    assert not written(host, linked)
    os.close(linked)
    os.close(fd)


def test_another_link_does_not_keep_the_name(by_inode: Host, share: Path) -> None:
    by_inode.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    (share / "a").touch()
    os.link(share / "a", share / "b")
    fds = [os.open(share / name, os.O_RDWR) for name in ("a", "b")]
    (share / "b").unlink()
    assert [written(by_inode, fd) for fd in fds] == [False, True]
    for fd in fds:
        os.close(fd)


def test_events_of_a_removed_directory_are_of_an_unlinked_child(
    by_inode: Host, share: Path
) -> None:
    by_inode.watch(DIR, share, Event.CLOSE_NOWRITE | Event.ON_CHILD)
    (share / "dir").mkdir()
    fd = os.open(share / "dir", os.O_RDONLY)
    (share / "dir").rmdir()
    by_inode.records()
    os.close(fd)
    for record in by_inode.records():
        assert record.unlinked


def test_other_watchers_events_do_not_change(host: Host, share: Path) -> None:
    # The entry events that the table of names needs are not reported.
    host.watch(DIR, share, Event.MODIFY | Event.ON_CHILD)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(share / "socket"))
    (share / "dir").mkdir()
    (share / "dir").rename(share / "other")
    (share / "other").rmdir()
    (share / "socket").unlink()
    assert host.records() == []


def test_table_of_names_is_bounded() -> None:
    names = LostNames(limit=3)
    for number in range(5):
        names.removed((1, b"%d" % number))
    assert len(names) == 3
    assert [names.is_lost((1, b"%d" % n), b"inode") for n in range(5)] == [False] * 2 + [True] * 3
    names.clear()
    assert len(names) == 0
