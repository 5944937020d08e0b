# SPDX-License-Identifier: Apache-2.0
"""The guest checks every notification: a malformed one is dropped and counted."""

import base64
import dataclasses
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest, GuestInotify
from farwatch_harness.vm.testbed import Testbed, dropped_notifications, start_testbed
from farwatchd.fuse.filesystem import ROOT
from farwatchd.watch.event_record import EventRecord
from farwatchd.wire import fsnotify as wire
from farwatchd.wire.fsnotify import Event

pytestmark = pytest.mark.patch("notifications")

MANY = 2000
WATCH_MANY = Path(__file__).parent / "programs" / "watch_many.py"


@dataclass
class Hostile:
    """A testbed whose daemon sends what the test gives it."""

    testbed: Testbed
    control: socket.socket

    @property
    def guest(self) -> Guest:
        return self.testbed.guest

    def nodeid(self, mask: int) -> int:
        """Return the nodeid that has exactly this mask."""
        watches = self.order(do="watches")
        return next(int(nodeid) for nodeid, found in watches.items() if found == mask)

    def send(self, payload: bytes) -> None:
        assert self.order(do="send", payload=base64.b64encode(payload).decode()) == {}

    def order(self, **order: str) -> Any:
        """Give the daemon an order; return its answer."""
        self.control.send(json.dumps(order).encode())
        return json.loads(self.control.recv(1 << 20))

    def dropped(self) -> int:
        return dropped_notifications(self.guest)


@pytest.fixture(scope="module")
def hostile(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hostile]:
    """Yield one testbed for all tests of this file."""
    folder = tmp_path_factory.mktemp("hostile")
    shared = folder / "share"
    (shared / "dir").mkdir(parents=True)
    (shared / "file").write_text("content")
    program = Path(__file__).parent / "servers" / "scripted_daemon.py"
    command = (
        sys.executable,
        str(program),
        "{socket}",
        "{shared}",
        "{tag}",
        str(folder / "control"),
        "auto",
    )
    spec = dataclasses.replace(environment.testbed_spec("hostile", shared), daemon_command=command)
    with (
        start_testbed(spec) as testbed,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control,
    ):
        control.settimeout(10)
        control.connect(str(folder / "control"))
        yield Hostile(testbed, control)


@dataclass(frozen=True)
class WatchedInodes:
    """A watcher of the share's directory "dir" and its file "file", with their nodeids."""

    listener: GuestInotify
    directory: int
    file: int


@pytest.fixture
def watched(hostile: Hostile) -> Iterator[WatchedInodes]:
    with hostile.guest.inotify() as listener:
        listener.add(f"{hostile.testbed.mount_point}/dir", In.ALL)
        directory = hostile.nodeid(int(Event(int(In.ALL)) | Event.ON_CHILD))
        listener.add(f"{hostile.testbed.mount_point}/file", In.ALL)
        file = hostile.nodeid(int(In.ALL))
        yield WatchedInodes(listener, directory, file)
        assert hostile.testbed.problems() == []


def changed(payload: bytes, **fields: int) -> bytes:
    """Return the payload with fields of its first record replaced."""
    values = wire.record.unpack_from(payload)._replace(**fields)
    return wire.record.pack_values(*values) + payload[wire.record.size :]


def malformed(directory: int, file: int) -> dict[str, bytes]:
    """Return payloads that each break one rule of docs/protocol.md."""
    created = EventRecord(directory, 0, Event.CREATE, b"name").encode()
    modified = EventRecord(file, 0, Event.MODIFY).encode()
    moved = EventRecord(
        directory, 0, Event.RENAME, b"old", newdir=directory, newname=b"new"
    ).encode()
    return {
        "shorter than a record": modified[:40],
        "length 0": changed(modified, len=0),
        "length beyond the payload": changed(modified, len=4000),
        "length that is not aligned": changed(created, len=len(created) - 4),
        "length of 4 GiB": changed(modified, len=0xFFFFFFF8),
        "name beyond the record": changed(created, namelen=255),
        "names that overflow together": changed(moved, namelen=0xFFFF, newnamelen=0xFFFF),
        "padding that is not zero": created[:-1] + b"x",
        "too much padding": changed(created, len=len(created) + 8) + bytes(8),
        "unknown flag": changed(modified, flags=2),
        "reserved field": changed(modified, reserved1=1),
        "no event": changed(modified, mask=0),
        "unknown event": changed(modified, mask=1 << 20),
        "unknown event beside a known one": changed(modified, mask=1 << 20 | int(Event.MODIFY)),
        "name with a slash": EventRecord(directory, 0, Event.CREATE, b"a/b").encode(),
        "name with a NUL": EventRecord(directory, 0, Event.CREATE, b"a\0b").encode(),
        "name '.'": EventRecord(directory, 0, Event.CREATE, b".").encode(),
        "name '..'": EventRecord(directory, 0, Event.CREATE, b"..").encode(),
        "entry without a name": EventRecord(directory, 0, Event.CREATE).encode(),
        "entry of a file": EventRecord(file, 0, Event.CREATE, b"name").encode(),
        "child of a file": EventRecord(file, 0, Event.MODIFY | Event.ON_CHILD, b"name").encode(),
        "child without a name": EventRecord(directory, 0, Event.MODIFY | Event.ON_CHILD).encode(),
        "name without a child": EventRecord(directory, 0, Event.MODIFY, b"name").encode(),
        "event of an entry and of a file": EventRecord(
            directory, 0, Event.CREATE | Event.MODIFY, b"name"
        ).encode(),
        "two moves in one": EventRecord(
            directory, 0, Event.MOVED_FROM | Event.MOVED_TO, b"name"
        ).encode(),
        "half of what is no move": changed(created, flags=1),
        "rename to nowhere": EventRecord(
            directory, 0, Event.RENAME, b"old", newname=b"new"
        ).encode(),
        "rename without a new name": EventRecord(
            directory, 0, Event.RENAME, b"old", newdir=directory
        ).encode(),
        "rename into a file": EventRecord(
            directory, 0, Event.RENAME, b"old", newdir=file, newname=b"new"
        ).encode(),
        "new name without a rename": changed(created, newnamelen=1),
        "generation of no new directory": changed(created, newdir_generation=1),
        "generation of no child": changed(created, child_generation=1),
        "overflow with a nodeid": EventRecord(file, 0, Event.OVERFLOW).encode(),
        "overflow with a generation": EventRecord(0, 1, Event.OVERFLOW).encode(),
        "overflow with a child": EventRecord(0, 0, Event.OVERFLOW, child=file).encode(),
        "end of a watch with a child": EventRecord(
            file, 0, Event.WATCH_ENDED, child=directory
        ).encode(),
    }


# The real nodeids are known only once the testbed runs; 1 and 2 stand for them here.
@pytest.mark.parametrize("rule", list(malformed(1, 2)))
def test_malformed_notification_is_dropped_and_counted(
    hostile: Hostile, watched: WatchedInodes, rule: str
) -> None:
    before = hostile.dropped()
    hostile.send(malformed(watched.directory, watched.file)[rule])
    # The next notification is handled as usual, and shows that the bad one was handled.
    hostile.send(EventRecord(watched.file, 0, Event.ATTRIB).encode())
    assert [event.mask for event in watched.listener.read(1)] == [In.ATTRIB]
    assert hostile.dropped() == before + 1


def test_valid_records_beside_an_invalid_one_are_reported(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    good = [
        EventRecord(watched.directory, 0, Event.CREATE, name).encode() for name in (b"one", b"two")
    ]
    hostile.send(good[0] + malformed(watched.directory, watched.file)["unknown flag"] + good[1])
    assert [event.name for event in watched.listener.read(2)] == ["one", "two"]


def test_records_of_unknown_inodes_are_ignored(hostile: Hostile, watched: WatchedInodes) -> None:
    before = hostile.dropped()
    hostile.send(EventRecord(999_999, 0, Event.MODIFY).encode())
    hostile.send(EventRecord(watched.file, 7, Event.MODIFY).encode())
    # A generation has 32 bits in FUSE.
    hostile.send(EventRecord(watched.file, (1 << 40) + 7, Event.MODIFY).encode())
    hostile.send(EventRecord(watched.file, 0, Event.ATTRIB).encode())
    assert [event.mask for event in watched.listener.read(1)] == [In.ATTRIB]
    assert hostile.dropped() == before


def test_event_is_reported_for_the_inode_of_its_record_only(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    with hostile.guest.inotify() as other:
        other.add(str(hostile.testbed.mount_point), In.ALL)
        hostile.send(EventRecord(watched.file, 0, Event.MODIFY).encode())
        assert [event.mask for event in watched.listener.read(1)] == [In.MODIFY]
        assert other.read(quiet=0.5, limit=2.0) == []


@pytest.mark.patch("child-ignore-mask")
def test_event_on_child_is_not_reported_to_the_childs_own_watch(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    with hostile.guest.inotify() as other:
        other.add(str(hostile.testbed.mount_point), In.ALL)
        hostile.send(EventRecord(ROOT, 0, Event.MODIFY | Event.ON_CHILD, b"file").encode())
        assert [(event.mask, event.name) for event in other.read(1)] == [(In.MODIFY, "file")]
        assert watched.listener.read(quiet=0.5, limit=2.0) == []


def test_rename_is_two_events_with_one_cookie(hostile: Hostile, watched: WatchedInodes) -> None:
    move = EventRecord(
        watched.directory, 0, Event.RENAME, b"old", newdir=watched.directory, newname=b"new"
    ).encode()
    hostile.send(move + move)
    events = watched.listener.read(4)
    assert [(event.mask, event.name) for event in events] == [
        (In.MOVED_FROM, "old"),
        (In.MOVED_TO, "new"),
    ] * 2
    cookies = [event.cookie for event in events]
    assert cookies[0] == cookies[1] != cookies[2] == cookies[3]


def test_full_payload_of_longest_names_is_reported(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    longest = EventRecord(
        watched.directory, 0, Event.RENAME, b"a" * 255, newdir=watched.directory, newname=b"b" * 255
    ).encode()
    hostile.send(longest * 6)
    assert len(watched.listener.read(12)) == 12


@pytest.mark.patch("overflow")
def test_lost_events_are_one_overflow_per_group(hostile: Hostile, watched: WatchedInodes) -> None:
    with hostile.guest.inotify() as other, hostile.guest.inotify() as elsewhere:
        other.add(str(hostile.testbed.mount_point), In.ALL)
        elsewhere.add("/", In.ALL)
        hostile.send(EventRecord(0, 0, Event.OVERFLOW).encode())
        hostile.send(EventRecord(watched.file, 0, Event.ATTRIB).encode())
        first, second = watched.listener.read(2)
        assert (first.wd, first.mask, second.mask) == (-1, In.Q_OVERFLOW, In.ATTRIB)
        assert [event.mask for event in other.read(1)] == [In.Q_OVERFLOW]
        assert other.read(quiet=0.5, limit=2.0) == []
        assert [
            event for event in elsewhere.read(quiet=0.5, limit=2.0) if event.mask & In.Q_OVERFLOW
        ] == []


@pytest.mark.patch("overflow")
def test_group_with_many_watches_gets_one_overflow(hostile: Hostile) -> None:
    directory = hostile.testbed.shared / "many"
    directory.mkdir()
    for number in range(MANY):
        (directory / str(number)).touch()
    # The program reads while the kernel adds the overflow for each watch.
    listener = hostile.guest.spawn(
        "python3", WATCH_MANY, hostile.testbed.mount_point / "many", str(MANY)
    )
    assert listener.lines(until="watching")[-1] == f"watching {MANY}"
    first = hostile.nodeid(Event.ATTRIB)
    for _ in range(5):
        hostile.send(EventRecord(0, 0, Event.OVERFLOW).encode())
        assert listener.lines(until="event -1") == ["event -1"]
        hostile.send(EventRecord(first, 0, Event.ATTRIB).encode())
        assert listener.lines(until="event 1") == ["event 1"]
    listener.stop()


def test_delete_self_record_ends_the_watch_with_in_ignored(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    hostile.send(EventRecord(watched.file, 0, Event.DELETE_SELF).encode())
    assert [event.mask for event in watched.listener.read(2)] == [In.DELETE_SELF, In.IGNORED]


def test_own_deletion_ends_its_watch_without_the_server(hostile: Hostile) -> None:
    (hostile.testbed.shared / "doomed").touch()
    path = hostile.testbed.mount_point / "doomed"
    with hostile.guest.inotify() as listener:
        listener.add(path, In.DELETE_SELF)
        hostile.guest.os("unlink", str(path))
        assert [event.mask for event in listener.read(2)] == [In.DELETE_SELF, In.IGNORED]


def test_equal_consecutive_unread_events_are_coalesced(
    hostile: Hostile, watched: WatchedInodes
) -> None:
    attrib, modify = (
        EventRecord(watched.file, 0, event).encode() for event in (Event.ATTRIB, Event.MODIFY)
    )
    created = EventRecord(watched.directory, 0, Event.CREATE, b"end").encode()
    with hostile.guest.inotify() as other:
        other.add(f"{hostile.testbed.mount_point}/dir", In.CREATE)
        # Equal events in one notification, and in several.
        hostile.send(attrib * 3 + modify)
        hostile.send(attrib)
        hostile.send(attrib + created)
        # All events were raised before the first read.
        other.read(until="end")
    reported = [(event.mask, event.name) for event in watched.listener.read(until="end")]
    assert reported == [(In.ATTRIB, ""), (In.MODIFY, ""), (In.ATTRIB, ""), (In.CREATE, "end")]
