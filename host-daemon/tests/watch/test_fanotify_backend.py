# SPDX-License-Identifier: Apache-2.0
"""Features of fanotify alone.

It knows who caused an event, coalesces, and identifies inodes by file handle.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.linux import fanotify
from farwatchd.watch.event_record import OVERFLOW, EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.watch_backend import WatchBackend
from farwatchd.wire.fsnotify import Event
from tests.support.watch_host import ALL, Host, by_handle


@pytest.fixture(params=["by descriptor", "by handle"])
def store(
    request: pytest.FixtureRequest,
) -> Callable[[Callable[..., WatchBackend]], Callable[[int], WatchBackend]]:
    """How the inode store keeps watched inodes."""
    return by_handle if request.param == "by handle" else lambda kind: kind


@pytest.fixture
def host(
    share: Path, store: Callable[[Callable[..., WatchBackend]], Callable[[int], WatchBackend]]
) -> Iterator[Host]:
    """Yield a host whose back end reports the events of this process, too."""
    host = Host(share, open_backend=store(FanotifyBackend))
    yield host
    host.close()


@pytest.fixture
def others_only(
    share: Path, store: Callable[[Callable[..., WatchBackend]], Callable[[int], WatchBackend]]
) -> Iterator[Host]:
    """Yield a host whose back end leaves out this process, as in mode ``others``."""
    host = Host(share, open_backend=store(partial(FanotifyBackend, own_pid=os.getpid())))
    assert host.backend.others_only
    yield host
    host.close()


def elsewhere(script: str, directory: Path) -> None:
    """Run a shell script in another process."""
    subprocess.run(["/bin/sh", "-ec", script], cwd=directory, check=True, timeout=30)


def test_only_events_of_other_processes_are_reported(others_only: Host, share: Path) -> None:
    others_only.watch(1, share, Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO)
    (share / "mine").touch()
    elsewhere(": > theirs; mv mine renamed", share)
    (share / "renamed").rename(share / "again")
    (share / "theirs").unlink()
    elsewhere("rm again", share)
    assert others_only.records() == [
        EventRecord(1, 0, Event.CREATE, b"theirs"),
        EventRecord(1, 0, Event.RENAME, b"mine", newdir=1, newname=b"renamed"),
        EventRecord(1, 0, Event.DELETE, b"again"),
    ]


def test_own_removal_ends_the_watch_without_a_report(others_only: Host, share: Path) -> None:
    (share / "f").touch()
    (share / "d").mkdir()
    others_only.watch(2, share / "f")
    others_only.watch(3, share / "d")
    (share / "f").unlink()
    (share / "d").rmdir()
    assert others_only.records() == []
    assert others_only.host_watches() == 0
    assert len(others_only.table) == 0


def test_removal_by_another_process_ends_the_watch_with_delete_self(
    others_only: Host, share: Path
) -> None:
    (share / "f").touch()
    (share / "d").mkdir()
    others_only.watch(2, share / "f", Event.OPEN)
    others_only.watch(3, share / "d", Event.OPEN)
    elsewhere("rm f; rmdir d", share)
    assert others_only.records() == [
        EventRecord(2, 0, Event.DELETE_SELF),
        EventRecord(3, 0, Event.DELETE_SELF | Event.ISDIR),
    ]
    assert others_only.host_watches() == 0


def test_delete_by_another_process_is_reported_after_own_access(
    others_only: Host, share: Path
) -> None:
    (share / "f").touch()
    others_only.watch(2, share / "f")
    with (share / "f").open("ab") as file:
        (share / "f").chmod(0o600)
        # Else later events would be coalesced with these.
        others_only.table.process()
        elsewhere("rm f", share)
        file.write(b"x")
    assert others_only.records() == [
        EventRecord(2, 0, Event.ATTRIB),
        EventRecord(2, 0, Event.DELETE_SELF),
    ]
    assert others_only.host_watches() == 0


def test_directory_moved_by_this_process_stays_watched(others_only: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    others_only.watch(2, share / "a/b", Event.CREATE)
    (share / "a/b").rename(share / "c")
    elsewhere(": > c/f", share)
    assert others_only.records() == [EventRecord(2, 0, Event.CREATE, b"f")]
    elsewhere("rm c/f; rmdir c", share)
    assert others_only.records() == [EventRecord(2, 0, Event.DELETE_SELF | Event.ISDIR)]


def test_directory_moved_out_of_the_share_by_this_process_is_not_watched(
    others_only: Host, share: Path
) -> None:
    (share / "a/b").mkdir(parents=True)
    others_only.watch(2, share / "a/b", Event.CREATE)
    (share / "a").rename(share.parent / "outside")
    assert others_only.records() == [EventRecord(2, 0, Event.WATCH_ENDED)]
    elsewhere(": > b/secret", share.parent / "outside")
    assert others_only.records() == []
    # Whoever moves it back.
    (share.parent / "outside").rename(share / "back")
    assert others_only.records() == [OVERFLOW]
    elsewhere(": > b/new", share / "back")
    assert others_only.records() == [EventRecord(2, 0, Event.CREATE, b"new")]


def test_open_exec_is_reported(others_only: Host, share: Path) -> None:
    (share / "script").write_text("#!/bin/sh\n")
    (share / "script").chmod(0o700)
    assert others_only.watch(2, share / "script", Event.OPEN_EXEC) == Event.OPEN_EXEC
    elsewhere("./script", share)
    assert others_only.records() == [EventRecord(2, 0, Event.OPEN_EXEC)]


def test_coalesced_events_are_reported_in_a_possible_order(host: Host, share: Path) -> None:
    host.watch(1, share)
    (share / "f").write_bytes(b"x")
    child = [Event.OPEN, Event.MODIFY, Event.CLOSE_WRITE]
    assert host.records() == [
        EventRecord(1, 0, Event.CREATE, b"f"),
        *(EventRecord(1, 0, event | Event.ON_CHILD, b"f") for event in child),
    ]


@pytest.mark.root
def test_own_events_are_read_in_one_turn(others_only: Host, share: Path) -> None:
    others_only.watch(1, share, Event.CREATE)
    for number in range(3000):
        (share / f"{number}").touch()
    others_only.table.process()
    assert select.select([others_only.backend.fileno()], [], [], 0)[0] == []
    assert others_only.queued() == []


@pytest.mark.root
def test_event_of_an_unwatched_directory_has_its_name_for_the_parent(
    host: Host, share: Path
) -> None:
    (share / "d").mkdir()
    host.watch(1, share, Event.ATTRIB | Event.ON_CHILD)
    (share / "d").chmod(0o700)
    assert host.records() == [EventRecord(1, 0, Event.ATTRIB | Event.ON_CHILD | Event.ISDIR, b"d")]


@pytest.mark.root
def test_no_descriptor_for_a_directorys_name_is_an_overflow(share: Path) -> None:
    host = Host(share, open_backend=FanotifyBackend)
    (share / "d").mkdir()
    host.watch(1, share, Event.ATTRIB | Event.ON_CHILD)
    (share / "d").chmod(0o700)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(host.backend.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        host.table.process()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert host.queued() == [OVERFLOW]
    host.close()


def test_event_of_a_directory_deleted_before_the_read_is_harmless(host: Host, share: Path) -> None:
    (share / "d").mkdir()
    host.watch(1, share, Event.ATTRIB | Event.DELETE | Event.ON_CHILD)
    (share / "d").chmod(0o700)
    (share / "d").rmdir()
    assert host.records()[-1] == EventRecord(1, 0, Event.DELETE | Event.ISDIR, b"d")


def test_file_system_without_handles_is_eopnotsupp(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Since Linux 6.5 each file system has handles that identify an inode.
    monkeypatch.setattr(fanotify, "_AT_HANDLE_FID", 0)
    for group in host.backend._groups:  # type: ignore[attr-defined]
        group._handle_flags = 0
    for name in ("status", "stat"):
        fd = os.open(f"/proc/self/{name}", os.O_PATH)
        with pytest.raises(OSError, match="no file handles") as caught:
            host.table.set_mask(2, 0, fd, False, ALL)
        os.close(fd)
        assert caught.value.errno == errno.EOPNOTSUPP
    assert host.host_watches() == 0
    (warning,) = caplog.messages
    assert "no events of the host for '/proc/" in warning
    assert "use --fsnotify=remote" in warning


@pytest.mark.root
def test_event_of_a_deleted_directory_has_its_last_name(host: Host, share: Path) -> None:
    host.watch(1, share, ALL & ~Event.OPEN & ~Event.CLOSE_NOWRITE)
    for name in ("dir", "dir (deleted)"):
        (share / name).mkdir()
        host.records()
        holder = os.open(share / name, os.O_RDONLY)
        (share / name).chmod(0o700)
        (share / name).rmdir()
        assert host.records() == [
            EventRecord(1, 0, Event.ATTRIB | Event.ON_CHILD | Event.ISDIR, os.fsencode(name)),
            EventRecord(1, 0, Event.DELETE | Event.ISDIR, os.fsencode(name)),
        ]
        os.close(holder)


def remove(directory: Path) -> None:
    """Remove a tree that is too deep for pytest."""
    subprocess.run(["rm", "-rf", directory], check=True, timeout=30)


@pytest.mark.root
def test_event_of_a_directory_below_a_long_path_has_its_name(share: Path) -> None:
    """Longer than PATH_MAX, so that no link of /proc/self/fd can be read."""
    host = Host(share, max_watches=100, open_backend=FanotifyBackend)
    fd = os.open(share, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=fd)
        below = os.open("n" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.mkdir("unwatched", dir_fd=fd)
    os.mkdir("watched", dir_fd=fd)
    watched = os.open("watched", os.O_RDONLY, dir_fd=fd)
    mask = Event.ATTRIB | Event.ON_CHILD
    host.table.set_mask(2, 0, fd, True, mask)
    host.table.set_mask(3, 0, watched, True, Event.CREATE)
    os.chmod("unwatched", 0o700, dir_fd=fd)
    os.fchmod(watched, 0o700)
    attrib = Event.ATTRIB | Event.ON_CHILD | Event.ISDIR
    assert host.records() == [
        EventRecord(2, 0, attrib, b"unwatched"),
        EventRecord(2, 0, attrib, b"watched"),
    ]
    os.close(watched)
    os.close(fd)
    host.close()
    remove(share)


def test_directory_below_two_thousand_others_is_watched(share: Path) -> None:
    host = Host(share, max_watches=3000, open_backend=FanotifyBackend)
    fd = os.open(share, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    host.table.set_mask(2, 0, fd, True, Event.CREATE)
    os.mkdir("new", dir_fd=fd)
    assert host.records() == [EventRecord(2, 0, Event.CREATE | Event.ISDIR, b"new")]
    os.close(fd)
    host.close()
    remove(share)


def test_name_of_what_cannot_be_watched_is_on_one_line_of_the_log(
    host: Host, share: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, "no id")

    monkeypatch.setattr(fanotify.Fanotify, "add", refuse)
    (share / "a\nERROR: forged").mkdir()
    with pytest.raises(OSError, match="has no id"):
        host.watch(2, share / "a\nERROR: forged")
    (message,) = caplog.messages
    assert "\\nERROR: forged" in message
    assert "\n" not in message


def test_overflow_of_the_host_queue_is_reported_once(host: Host, share: Path) -> None:
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    host.watch(1, share, Event.CREATE)
    for number in range(limit + 10):
        os.symlink("x", f"{share}/{number}")  # noqa: PTH211
    records = host.records()
    assert records[-1] == OVERFLOW
    assert records.count(OVERFLOW) == 1
    assert len(records) == limit + 1
    (share / "f").touch()
    assert host.records() == [EventRecord(1, 0, Event.CREATE, b"f")]


@pytest.mark.root
@pytest.mark.parametrize("unlimited", [False, True])
def test_queue_of_the_host_is_as_long_as_wanted(share: Path, unlimited: bool) -> None:
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    host = Host(share, open_backend=partial(FanotifyBackend, unlimited_queue=unlimited))
    try:
        host.watch(1, share, Event.CREATE)
        for number in range(limit + 10):
            os.mknod(share / str(number))
        records = host.records()
    finally:
        host.close()
    if unlimited:
        assert [record.name for record in records] == [b"%d" % n for n in range(limit + 10)]
    else:
        assert records[-1] == OVERFLOW
