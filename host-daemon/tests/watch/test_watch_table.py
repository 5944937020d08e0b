# SPDX-License-Identifier: Apache-2.0
"""The watch table over the real back ends: masks, limits, the ends of watches, and no leaks."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.linux.fanotify import Fanotify
from farwatchd.linux.file_handles import HandleReader, handle_of, open_handle
from farwatchd.linux.inotify import Inotify
from farwatchd.watch.event_record import OVERFLOW, EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.wire.fsnotify import Event
from tests.support.watch_host import ALL, BACKENDS, MAX_WATCHES, Host


@pytest.fixture
def inotify_host(share: Path) -> Iterator[Host]:
    """Yield a host whose watch back end is inotify."""
    host = Host(share)
    yield host
    host.close()


def test_only_wanted_events_are_reported(host: Host, share: Path) -> None:
    file = share / "f"
    file.touch()
    assert host.watch(2, file, Event.MODIFY, generation=9) == Event.MODIFY
    file.write_bytes(b"x")
    file.chmod(0o600)
    assert host.records() == [EventRecord(2, 9, Event.MODIFY)]


def test_bits_unknown_to_inotify_are_not_in_the_reply(inotify_host: Host, share: Path) -> None:
    asked = Event.OPEN | Event.OPEN_EXEC | Event.ISDIR | Event.OVERFLOW | Event(1 << 20)
    assert inotify_host.watch(1, share, asked) == Event.OPEN
    assert inotify_host.watch(1, share, Event.OPEN_EXEC | Event.ON_CHILD) == Event(0)
    assert inotify_host.host_watches() == 0


def test_without_on_child_only_entry_events_and_own_events_are_reported(
    host: Host, share: Path
) -> None:
    host.watch(1, share, ALL & ~Event.ON_CHILD)
    (share / "f").write_bytes(b"x")
    share.chmod(0o700)
    assert host.records() == [
        EventRecord(1, 0, Event.CREATE, b"f"),
        EventRecord(1, 0, Event.ATTRIB | Event.ISDIR),
    ]


def test_child_events_have_on_child(host: Host, share: Path) -> None:
    (share / "f").write_bytes(b"x")
    host.watch(1, share, Event.MODIFY | Event.ON_CHILD)
    (share / "f").write_bytes(b"xy")
    assert host.records() == [EventRecord(1, 0, Event.MODIFY | Event.ON_CHILD, b"f")]


def test_new_mask_applies_to_later_events_only(host: Host, share: Path) -> None:
    host.watch(1, share, Event.CREATE)
    (share / "a").touch()
    (share / "a").unlink()
    host.watch(1, share, Event.DELETE)
    (share / "b").touch()
    (share / "b").unlink()
    assert host.records() == [
        EventRecord(1, 0, Event.CREATE, b"a"),
        EventRecord(1, 0, Event.DELETE, b"b"),
    ]


@pytest.mark.parametrize("kind", [FanotifyBackend, InotifyBackend])
def test_watch_is_of_the_caller_s_inode_though_events_open_others(
    share: Path, kind: Callable[[int, InodeStore], WatchBackend]
) -> None:
    store = InodeStore(InodeFileHandles.PREFER, most_open=2)
    host = Host(share, 100, lambda root_fd: kind(root_fd, store))
    directories = [share / str(number) / "sub" for number in range(4)]
    for nodeid, directory in enumerate(directories, start=10):
        directory.mkdir(parents=True)
        host.watch(nodeid, directory)
    (share / "new").mkdir()
    fd = os.open(share / "new", os.O_PATH)
    inode = store.adopt(fd, os.fstat(fd))
    for directory in directories:
        directory.rename(directory.with_name("renamed"))
    host.table.set_mask(2, 0, store.open(inode), True, ALL)
    host.records()
    (share / "new" / "file").touch()
    assert EventRecord(2, 0, Event.CREATE, b"file") in host.records()
    store.put(inode)
    host.close()


def test_zero_mask_removes_the_host_watch(host: Host, share: Path) -> None:
    (share / "f").touch()
    host.watch(2, share / "f")
    assert host.host_watches() == 1
    assert host.watch(2, share / "f", Event(0)) == Event(0)
    assert host.host_watches() == 0
    (share / "f").write_bytes(b"x")
    assert host.records() == []


def test_forget_removes_the_host_watch_and_keeps_queued_records(host: Host, share: Path) -> None:
    host.watch(1, share, Event.CREATE)
    (share / "a").touch()
    host.table.process()
    (share / "b").touch()
    host.table.forget(1)
    host.table.forget(1)
    assert host.host_watches() == 0
    assert host.records() == [EventRecord(1, 0, Event.CREATE, b"a")]


def test_max_watches_is_enospc(host: Host, share: Path) -> None:
    files = [share / str(number) for number in range(MAX_WATCHES + 1)]
    for file in files:
        file.touch()
    for nodeid, file in enumerate(files[:-1], start=10):
        host.watch(nodeid, file)
    with pytest.raises(OSError, match="watches are in use") as caught:
        host.watch(99, files[-1])
    assert caught.value.errno == errno.ENOSPC
    assert host.host_watches() == MAX_WATCHES
    host.table.forget(10)
    host.watch(99, files[-1])


def test_implicit_watches_count(host: Host, share: Path) -> None:
    deep = share.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    with pytest.raises(OSError, match="watches are in use") as caught:
        host.watch(2, deep)
    assert caught.value.errno == errno.ENOSPC
    assert host.host_watches() == 0
    # The directory itself, its four ancestors and the root.
    host.watch(2, deep.parents[4])
    assert host.host_watches() == 6
    host.table.forget(2)
    assert host.host_watches() == 0


@pytest.mark.parametrize("system", [(Inotify, InotifyBackend), (Fanotify, FanotifyBackend)])
def test_host_without_watches_is_enospc_and_leaves_nothing(
    share: Path, monkeypatch: pytest.MonkeyPatch, system: tuple[type, Callable[[int], WatchBackend]]
) -> None:
    (share / "a/b").mkdir(parents=True)
    kernel, open_backend = system
    add = kernel.add  # type: ignore[attr-defined]
    placed: list[str] = []

    def two_are_left(self: object, path: str, mask: int) -> object:
        placed.append(path)
        if len(placed) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, path, mask)

    monkeypatch.setattr(kernel, "add", two_are_left)
    host = Host(share, open_backend=open_backend)
    with pytest.raises(OSError, match="No space left") as caught:
        host.watch(2, share / "a/b")
    assert caught.value.errno == errno.ENOSPC
    assert host.host_watches() == 0
    assert host.backend.count == 0
    assert len(host.table) == 0
    host.close()


@pytest.mark.parametrize("kind", ["inotify", "fanotify"])
def test_host_without_descriptors_is_enospc_and_leaves_nothing(share: Path, kind: str) -> None:
    host = Host(share, open_backend=BACKENDS[kind])
    (share / "a/b").mkdir(parents=True)
    fd = os.open(share / "a/b", os.O_PATH)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for the directory's own descriptor and one more, but not for its two ancestors.
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 3, limits[1]))
    try:
        with pytest.raises(OSError, match="descriptor") as caught:
            host.table.set_mask(2, 0, fd, True, ALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.close(fd)
    assert caught.value.errno == errno.ENOSPC
    assert host.host_watches() == 0
    assert host.backend.count == 0
    host.close()


@pytest.mark.parametrize("kind", ["inotify, handles", "fanotify, handles"])
@pytest.mark.root
def test_watches_by_handle_need_no_descriptors(share: Path, kind: str) -> None:
    host = Host(share, max_watches=1000, open_backend=BACKENDS[kind])
    for number in range(200):
        (share / f"{number}/below").mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, limits[1]))
    try:
        for number in range(200):
            host.watch(number + 2, share / f"{number}/below", Event.ATTRIB)
        assert host.host_watches() == 401
        for number in range(200):
            (share / f"{number}/below").rmdir()
        assert [record.nodeid for record in host.records()] == list(range(2, 202))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    host.close()


def test_unlinked_inode_cannot_be_watched(host: Host, share: Path) -> None:
    (share / "f").touch()
    (share / "d").mkdir()
    for name in ("f", "d"):
        fd = os.open(share / name, os.O_PATH)
        (share / name).unlink() if name == "f" else (share / name).rmdir()
        with pytest.raises(OSError, match="removed") as caught:
            host.table.set_mask(5, 0, fd, name == "d", ALL)
        assert caught.value.errno == errno.ENOENT
        os.close(fd)
    assert host.host_watches() == 0


@pytest.mark.parametrize("mask", [Event.MODIFY, ALL])
def test_last_unlink_ends_the_watch_and_is_always_reported(
    host: Host, share: Path, mask: Event
) -> None:
    (share / "f").touch()
    host.watch(2, share / "f", mask)
    (share / "f").unlink()
    records = host.records()
    assert records[-1] == EventRecord(2, 0, Event.DELETE_SELF)
    assert records[:-1] == ([EventRecord(2, 0, Event.ATTRIB)] if mask == ALL else [])
    assert host.host_watches() == 0
    assert len(host.table) == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_rmdir_is_reported_although_the_parent_is_not_watched(
    host: Host, share: Path, depth: int
) -> None:
    path = share.joinpath(*"abc"[:depth])
    path.mkdir(parents=True)
    (path.parent / "noise").touch()
    host.watch(2, path, Event.OPEN)
    (path.parent / "noise").unlink()
    path.rmdir()
    assert host.records() == [EventRecord(2, 0, Event.DELETE_SELF | Event.ISDIR)]
    assert host.host_watches() == 0


def await_end(share: Path, key: bytes) -> None:
    """Wait until the host has freed the inode with that key (``HandleReader``)."""
    mount_fd = os.open(share, os.O_RDONLY)
    deadline = time.monotonic() + 10
    try:
        while True:
            os.close(open_handle(mount_fd, handle_of(key)))
            assert time.monotonic() < deadline, "a removed file is still there after 10 s"
            time.sleep(0.001)
    except OSError as error:
        assert error.errno == errno.ESTALE
    finally:
        os.close(mount_fd)


def key_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH)
    try:
        return HandleReader().read(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["inotify, handles", "fanotify, handles"])
@pytest.mark.root
def test_directory_moved_and_deleted_before_the_read_is_reported(share: Path, kind: str) -> None:
    host = Host(share, open_backend=BACKENDS[kind])
    (share / "a/b").mkdir(parents=True)
    (share / "c").mkdir()
    key = key_of(share / "a/b")
    host.watch(2, share / "a/b", Event.MOVE_SELF)
    host.watch(3, share / "c", Event.CREATE)
    (share / "a/b").rename(share / "moved")
    (share / "moved").rmdir()
    await_end(share, key)
    assert [record.mask & ~Event.ISDIR for record in host.records()] == [
        Event.MOVE_SELF,
        Event.DELETE_SELF,
    ]
    # That of the other directory, and the root's for it.
    assert host.host_watches() == 2
    host.close()


@pytest.mark.parametrize("kind", ["inotify, handles", "fanotify, handles"])
@pytest.mark.root
def test_inode_deleted_before_the_read_is_reported(
    share: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(share, open_backend=BACKENDS[kind])
    (share / "f").touch()
    (share / "d").mkdir()
    key = key_of(share / "f")
    host.watch(2, share / "f")
    host.watch(3, share / "d")
    for number in range(4):
        (share / f"{number}").touch()
        host.watch(10 + number, share / f"{number}")
    (share / "f").unlink()
    (share / "d").rmdir()
    await_end(share, key)
    ended = [record.nodeid for record in host.records() if record.mask & Event.DELETE_SELF]
    assert ended == [2, 3]
    assert caplog.records == []
    assert host.host_watches() == 4
    host.close()


def test_rmdir_after_a_move_of_the_parent_is_reported(host: Host, share: Path) -> None:
    (share / "a/b/c").mkdir(parents=True)
    (share / "z").mkdir()
    host.watch(2, share / "a/b/c", Event.CREATE)
    (share / "a/b").rename(share / "z/y")
    assert host.records() == []
    (share / "z/y/c").rmdir()
    assert host.records() == [EventRecord(2, 0, Event.DELETE_SELF | Event.ISDIR)]
    assert host.host_watches() == 0


def test_directory_stays_watched_after_the_parents_watch_ends(host: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    host.watch(2, share / "a")
    host.watch(3, share / "a/b", Event.CREATE)
    host.table.forget(2)
    (share / "a/other").touch()
    (share / "a/b").rmdir()
    assert host.records() == [EventRecord(3, 0, Event.DELETE_SELF | Event.ISDIR)]
    assert host.host_watches() == 0


def test_removed_directory_is_found_by_name_among_many(share: Path) -> None:
    host = Host(share, max_watches=1000)
    for number in range(200):
        (share / f"d{number}").mkdir()
        host.watch(number + 10, share / f"d{number}", Event.CREATE)
    (share / "d7").rename(share / "moved")
    (share / "unwatched").mkdir()
    (share / "unwatched").rmdir()
    (share / "moved").rmdir()
    (share / "d8").rmdir()
    assert [record.nodeid for record in host.records()] == [17, 18]
    host.close()


@pytest.mark.parametrize("taken", ["a", "a/b"])
def test_directory_outside_of_the_share_is_silent(host: Host, share: Path, taken: str) -> None:
    (share / "a/b").mkdir(parents=True)
    host.watch(3, share / "a/b")
    (share / taken).rename(share.parent / "outside")
    outside = share.parent / ("outside/b" if taken == "a" else "outside")
    (outside / "secret").touch()
    ended = EventRecord(3, 0, Event.WATCH_ENDED)
    move = [EventRecord(3, 0, Event.MOVE_SELF | Event.ISDIR)] if taken == "a/b" else []
    # The event for the file outside is left out unless it was queued before the move was read.
    assert [record for record in host.records() if record.name != b"secret"] == [*move, ended]
    (outside / "secret2").touch()
    outside.chmod(0o700)
    (share.parent / "outside").rename(share.parent / "elsewhere")
    (share.parent / "elsewhere").chmod(0o700)
    assert host.records() == []
    assert len(host.table) == 1
    host.table.forget(3)
    assert host.host_watches() == host.backend.count == 0


@pytest.mark.parametrize("taken", ["a", "a/b"])
def test_directory_that_returns_to_the_share_is_reported_again(
    host: Host, share: Path, taken: str
) -> None:
    (share / "a/b").mkdir(parents=True)
    host.watch(3, share / "a/b", Event.CREATE)
    (share / taken).rename(share.parent / "outside")
    (share.parent / "outside").rename(share / "back")
    back = share / ("back/b" if taken == "a" else "back")
    (back / "seen").touch()
    # Both moves are read together: the directory never left.
    assert host.records() == [EventRecord(3, 0, Event.CREATE, b"seen")]
    for name in ("again", "and again"):
        (share / "back").rename(share.parent / "outside")
        assert host.records() == [EventRecord(3, 0, Event.WATCH_ENDED)]
        (share.parent / "outside").rename(share / "back")
        assert host.records() == [OVERFLOW]
        (back / name).touch()
        assert host.records() == [EventRecord(3, 0, Event.CREATE, name.encode())]
    # Removals are seen at the new place.
    for entry in back.iterdir():
        entry.unlink()
    back.rmdir()
    assert host.records() == [EventRecord(3, 0, Event.DELETE_SELF | Event.ISDIR)]
    assert host.host_watches() == host.backend.count == 0


def test_move_of_a_returning_directory_is_reported(host: Host, share: Path) -> None:
    (share / "a").mkdir()
    host.watch(1, share, Event.MOVED_FROM | Event.MOVED_TO | Event.RENAME)
    host.watch(2, share / "a", Event.MOVE_SELF)
    moved = EventRecord(2, 0, Event.MOVE_SELF | Event.ISDIR)
    (share / "a").rename(share.parent / "a")
    assert host.records() == [
        EventRecord(1, 0, Event.MOVED_FROM | Event.ISDIR, b"a", unpaired=True),
        moved,
        EventRecord(2, 0, Event.WATCH_ENDED),
    ]
    (share.parent / "a").rename(share / "b")
    assert host.records() == [
        EventRecord(1, 0, Event.MOVED_TO | Event.ISDIR, b"b", unpaired=True),
        OVERFLOW,
        moved,
    ]


def test_directory_that_returns_in_another_one_is_reported_again(host: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    (share.parent / "outside").mkdir()
    host.watch(1, share, Event.MOVED_TO)
    host.watch(2, share / "a", Event.CREATE)
    host.watch(3, share / "a/b", Event.CREATE)
    (share / "a").rename(share.parent / "outside/a")
    ended = [EventRecord(nodeid, 0, Event.WATCH_ENDED) for nodeid in (2, 3)]
    assert host.records() == ended
    # Only the parent's mark shows this move: nothing below was moved itself.
    (share.parent / "outside").rename(share / "c")
    moved = EventRecord(1, 0, Event.MOVED_TO | Event.ISDIR, b"c", unpaired=True)
    assert host.records() == [moved, OVERFLOW]
    (share / "c/a/new").touch()
    (share / "c/a/b/new").touch()
    created = [EventRecord(nodeid, 0, Event.CREATE, b"new") for nodeid in (2, 3)]
    assert host.records() == created


def test_directory_that_returns_unseen_can_be_watched_again(host: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    (share / "unwatched").mkdir()
    (share.parent / "outside").mkdir()
    host.watch(2, share / "a", Event.CREATE)
    host.watch(3, share / "a/b", Event.CREATE)
    (share / "a").rename(share.parent / "outside/a")
    assert len(host.records()) == 2
    outside = share.parent / "outside/a/b"
    with pytest.raises(OSError, match="not in the share") as caught:
        host.watch(3, outside, Event.CREATE)
    assert caught.value.errno == errno.EACCES
    (share.parent / "outside").rename(share / "unwatched/c")
    assert host.records() == []
    # The guest looks up a directory and asks again. What is above it and below it is back as well.
    assert host.watch(3, share / "unwatched/c/a/b", Event.CREATE) == Event.CREATE
    assert host.records() == [OVERFLOW]
    for name in ("a", "a/b"):
        (share / "unwatched/c" / name / "new").touch()
    created = [EventRecord(nodeid, 0, Event.CREATE, b"new") for nodeid in (2, 3)]
    assert host.records() == created


def test_second_nodeid_of_a_directory_outside_of_the_share_is_refused(
    host: Host, share: Path
) -> None:
    (share / "a").mkdir()
    host.watch(2, share / "a", Event.CREATE)
    (share / "a").rename(share.parent / "a")
    assert host.records() == [EventRecord(2, 0, Event.WATCH_ENDED)]
    with pytest.raises(OSError, match="not in the share"):
        host.watch(3, share.parent / "a", Event.CREATE)
    (share.parent / "a/secret").touch()
    assert host.records() == []
    assert len(host.table) == 1


def test_directory_that_is_split_outside_of_the_share_returns_in_parts(
    host: Host, share: Path
) -> None:
    (share / "a/b").mkdir(parents=True)
    host.watch(2, share / "a", Event.CREATE)
    host.watch(3, share / "a/b", Event.CREATE)
    (share / "a").rename(share.parent / "a")
    assert len(host.records()) == 2
    (share.parent / "a/b").rename(share.parent / "b")
    assert host.records() == []
    (share.parent / "b").rename(share / "b")
    assert host.records() == [OVERFLOW]
    (share.parent / "a/secret").touch()
    (share / "b/new").touch()
    assert host.records() == [EventRecord(3, 0, Event.CREATE, b"new")]
    (share.parent / "a").rename(share / "b/a")
    assert host.records() == [OVERFLOW]
    (share / "b/a/new").touch()
    assert host.records() == [EventRecord(2, 0, Event.CREATE, b"new")]


@pytest.mark.root
def test_removal_outside_of_the_share_ends_the_watch(share: Path) -> None:
    store = InodeStore(InodeFileHandles.PREFER)
    host = Host(share, open_backend=lambda root_fd: FanotifyBackend(root_fd, store))
    (share / "a").mkdir()
    host.watch(2, share / "a", Event.CREATE)
    (share / "a").rename(share.parent / "a")
    assert host.records() == [EventRecord(2, 0, Event.WATCH_ENDED)]
    # With a descriptor of the inode the host does not report its removal.
    for _ in range(2):
        store.close_idle()
    (share.parent / "a").rmdir()
    assert host.records() == [EventRecord(2, 0, Event.DELETE_SELF | Event.ISDIR)]
    assert len(host.table) == host.backend.count == host.host_watches() == 0
    host.close()


def test_directory_outside_of_the_share_cannot_be_watched(host: Host, share: Path) -> None:
    (share.parent / "outside").mkdir()
    with pytest.raises(OSError, match="not in the share") as caught:
        host.watch(2, share.parent / "outside")
    assert caught.value.errno == errno.EACCES
    assert host.host_watches() == 0


def test_watch_ended_by_the_host_is_removed(inotify_host: Host, share: Path) -> None:
    (share / "f").touch()
    inotify_host.watch(2, share / "f")
    fd = inotify_host.backend.fileno()
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    wd = int(info.partition("inotify wd:")[2].split()[0], 16)
    assert ctypes.CDLL(None).inotify_rm_watch(fd, wd) == 0
    assert inotify_host.records() == [EventRecord(2, 0, Event.WATCH_ENDED)]
    assert len(inotify_host.table) == 0
    assert inotify_host.backend.count == 0


def test_two_nodeids_of_one_inode_have_their_own_masks(host: Host, share: Path) -> None:
    (share / "f").touch()
    host.watch(2, share / "f", Event.MODIFY | Event.ATTRIB)
    host.watch(3, share / "f", Event.ATTRIB)
    (share / "f").write_bytes(b"x")
    (share / "f").chmod(0o600)
    assert host.records() == [
        EventRecord(2, 0, Event.MODIFY),
        EventRecord(2, 0, Event.ATTRIB),
        EventRecord(3, 0, Event.ATTRIB),
    ]
    host.table.forget(2)
    (share / "f").write_bytes(b"y")
    (share / "f").unlink()
    assert host.records() == [EventRecord(3, 0, Event.ATTRIB), EventRecord(3, 0, Event.DELETE_SELF)]


@pytest.mark.parametrize("mask", [Event.MOVED_FROM, Event.MOVED_TO, Event.RENAME])
def test_one_side_of_a_rename_is_reported_with_both_names(
    host: Host, share: Path, mask: Event
) -> None:
    (share / "f").touch()
    host.watch(2, share, mask)
    (share / "f").rename(share / "g")
    assert host.records() == [EventRecord(2, 0, Event.RENAME, b"f", newdir=2, newname=b"g")]


@pytest.mark.parametrize(
    ("source_mask", "target_mask", "reported"),
    [
        (ALL, ALL, [EventRecord(2, 0, Event.RENAME, b"f", newdir=3, newname=b"g")]),
        (
            Event.RENAME,
            Event.MOVED_TO,
            [EventRecord(2, 0, Event.RENAME, b"f", newdir=3, newname=b"g")],
        ),
        (Event.CREATE, Event.CREATE, []),
        (Event(0), Event.MOVED_FROM, []),
        (Event.MOVED_FROM, Event(0), [EventRecord(2, 0, Event.MOVED_FROM, b"f", unpaired=True)]),
        (Event(0), Event.MOVED_TO, [EventRecord(3, 0, Event.MOVED_TO, b"g", unpaired=True)]),
    ],
)
def test_rename_is_reported_as_far_as_it_is_wanted(
    host: Host, share: Path, source_mask: Event, target_mask: Event, reported: list[EventRecord]
) -> None:
    (share / "a").mkdir()
    (share / "b").mkdir()
    (share / "a/f").touch()
    host.watch(2, share / "a", source_mask)
    host.watch(3, share / "b", target_mask)
    (share / "a/f").rename(share / "b/g")
    assert host.records() == reported


def test_queued_moved_from_is_reported_by_the_timer(inotify_host: Host, share: Path) -> None:
    inotify_host.watch(1, share, Event.MOVED_FROM)
    (share / "f").touch()
    (share / "f").rename(share.parent / "f")
    inotify_host.table.process()
    assert inotify_host.queued() == []
    (timer,) = inotify_host.timers
    select.select([], [], [], inotify_host.backend.delay())
    timer()
    assert inotify_host.queued() == [EventRecord(1, 0, Event.MOVED_FROM, b"f", unpaired=True)]


def test_reset_ends_all_watches(host: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    fd = os.open(share / "a/b", os.O_PATH)
    host.table.set_mask(2, 0, fd, True, ALL)
    os.close(fd)
    (share / "a/b/f").touch()
    host.table.process()
    (share / "a/b/f").rename(share / "f")
    host.table.process()
    host.table.reset()
    assert host.host_watches() == 0
    assert host.backend.count == 0
    assert len(host.table) == 0
    assert host.records() == []
    # The inode store has closed descriptors of inodes by handle that were open before.
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    host.watch(2, share / "a")
    (share / "a/g").touch()
    assert EventRecord(2, 0, Event.CREATE, b"g") in host.records()


def test_overflow_of_the_host_queue_is_reported_once(inotify_host: Host, share: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    inotify_host.watch(1, share, Event.ATTRIB | Event.ON_CHILD)
    for name in ("a", "b"):
        (share / name).touch()
    paths = [os.fspath(share / "a"), os.fspath(share / "b")]
    for number in range(limit + 10):
        os.chmod(paths[number % 2], 0o600)  # noqa: PTH101
    records = inotify_host.records()
    assert records.count(OVERFLOW) == 1
    assert records[-1] == OVERFLOW
    (share / "a").chmod(0o644)
    assert inotify_host.records() == [EventRecord(1, 0, Event.ATTRIB | Event.ON_CHILD, b"a")]


def test_thousand_files_lose_no_event(host: Host, share: Path) -> None:
    host.watch(
        1,
        share,
        Event.CREATE
        | Event.DELETE
        | Event.MOVED_FROM
        | Event.MOVED_TO
        | Event.CLOSE_WRITE
        | Event.ON_CHILD,
    )
    expected = []
    for number in range(1000):
        name, new = f"file{number}", f"moved{number}"
        (share / name).write_bytes(b"x")
        (share / name).rename(share / new)
        (share / new).unlink()
        expected += [
            EventRecord(1, 0, Event.CREATE, name.encode()),
            EventRecord(1, 0, Event.CLOSE_WRITE | Event.ON_CHILD, name.encode()),
            EventRecord(1, 0, Event.RENAME, name.encode(), newdir=1, newname=new.encode()),
            EventRecord(1, 0, Event.DELETE, new.encode()),
        ]
    assert host.records() == expected


def test_wakeup_is_called_when_records_are_queued(host: Host, share: Path) -> None:
    wakeups: list[int] = []
    host.queue.set_wakeup(lambda: wakeups.append(len(host.queue)))
    host.watch(1, share, Event.CREATE)
    (share / "f").touch()
    host.table.process()
    assert wakeups == [1]


@pytest.mark.parametrize("kind", BACKENDS)
def test_overflow_verifies_all_watches(share: Path, kind: str) -> None:
    system = kind.partition(",")[0]
    limit = int(Path(f"/proc/sys/fs/{system}/max_queued_events").read_text())
    outside = share.parent / "outside"
    outside.mkdir()
    for name in ("left/below/deep", "removed", "moved/below", "stays", "taken", "busy"):
        (share / name).mkdir(parents=True)
    (share / "file").touch()
    host = Host(share, max_watches=50, open_backend=BACKENDS[kind])
    watched = (
        "left", "left/below", "left/below/deep", "removed", "moved", "moved/below", "stays",
        "taken", "busy", "file",
    )  # fmt: skip
    mask = Event.CREATE | Event.ATTRIB
    for nodeid, name in enumerate(watched, start=10):
        host.watch(nodeid, share / name, mask)
    for number in range(limit + 10):
        os.symlink("x", f"{share}/busy/{number}")  # noqa: PTH211
    # These events are lost.
    (share / "taken").rename(outside / "taken")
    (share / "left/below/deep").rename(share / "stays/deep")
    (share / "left").rename(outside / "left")
    (share / "moved").rename(share / "stays/moved")
    (share / "removed").rmdir()
    (share / "file").unlink()
    (outside / "left/secret-1").touch()
    # The first event after the overflow, before anything is verified, is outside of the share.
    host.table.process()
    (outside / "taken/secret-2").touch()
    (outside / "left/below/secret-3").touch()
    records = host.records()
    assert OVERFLOW in records
    assert [record.name for record in records if record.name.startswith(b"secret")] == []
    ended = [record.nodeid for record in records if record.mask & Event.DELETE_SELF]
    assert sorted(ended) == [13, 19]
    left = [record.nodeid for record in records if record.mask & Event.WATCH_ENDED]
    assert sorted(left) == [10, 11, 17]
    (outside / "taken/secret-4").touch()
    (outside / "left/below/secret-5").touch()
    for name in ("stays/deep/a", "stays/moved/b", "stays/moved/below/c", "busy/d"):
        (share / name).touch()
    assert host.records() == [
        EventRecord(12, 0, Event.CREATE, b"a"),
        EventRecord(14, 0, Event.CREATE, b"b"),
        EventRecord(15, 0, Event.CREATE, b"c"),
        EventRecord(18, 0, Event.CREATE, b"d"),
    ]
    # Removals are seen at the new places.
    (share / "stays/moved/below/c").unlink()
    (share / "stays/moved/below").rmdir()
    assert host.records() == [EventRecord(15, 0, Event.DELETE_SELF | Event.ISDIR)]
    # The share's root, stays, moved, deep and busy; outside of it left, below and taken.
    assert host.host_watches() == 8
    assert host.backend.count == 8
    host.close()
