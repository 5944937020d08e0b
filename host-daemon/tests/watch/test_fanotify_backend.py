# SPDX-License-Identifier: Apache-2.0
"""What only fanotify does: it knows whose event it is, merges, and reports objects by their
handles."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.watch.backend import Backend
from farwatchd.watch.event_record import OVERFLOW, EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.wire.fsnotify import Event
from tests.support.watch_host import ALL, Host, by_handle


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture(params=["by descriptor", "by handle"])
def kept(
    request: pytest.FixtureRequest,
) -> Callable[[Callable[..., Backend]], Callable[[int], Backend]]:
    """How watched objects are kept."""
    return by_handle if request.param == "by handle" else lambda kind: kind


@pytest.fixture
def host(
    share: Path, kept: Callable[[Callable[..., Backend]], Callable[[int], Backend]]
) -> Iterator[Host]:
    """A host whose back end tells of this process, too."""
    host = Host(share, open_backend=kept(FanotifyBackend))
    yield host
    host.close()


@pytest.fixture
def merged(
    share: Path, kept: Callable[[Callable[..., Backend]], Callable[[int], Backend]]
) -> Iterator[Host]:
    """A host whose back end leaves this process out, as in mode others."""
    host = Host(share, open_backend=kept(partial(FanotifyBackend, own_pid=os.getpid())))
    assert host.backend.others_only
    yield host
    host.close()


def elsewhere(script: str, directory: Path) -> None:
    """Run a shell script in another process."""
    subprocess.run(["/bin/sh", "-ec", script], cwd=directory, check=True, timeout=30)


def test_only_what_others_do_is_told(merged: Host, share: Path) -> None:
    merged.watch(1, share, Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO)
    (share / "mine").touch()
    elsewhere(": > theirs; mv mine renamed", share)
    (share / "renamed").rename(share / "again")
    (share / "theirs").unlink()
    elsewhere("rm again", share)
    assert merged.records() == [
        EventRecord(1, 0, Event.CREATE, b"theirs"),
        EventRecord(1, 0, Event.RENAME, b"mine", newdir=1, newname=b"renamed"),
        EventRecord(1, 0, Event.DELETE, b"again"),
    ]


def test_what_this_process_removes_ends_its_watch_in_silence(merged: Host, share: Path) -> None:
    (share / "f").touch()
    (share / "d").mkdir()
    merged.watch(2, share / "f")
    merged.watch(3, share / "d")
    (share / "f").unlink()
    (share / "d").rmdir()
    assert merged.records() == []
    assert merged.host_watches() == 0
    assert len(merged.table) == 0


def test_what_others_remove_ends_its_watch_and_is_told(merged: Host, share: Path) -> None:
    (share / "f").touch()
    (share / "d").mkdir()
    merged.watch(2, share / "f", Event.OPEN)
    merged.watch(3, share / "d", Event.OPEN)
    elsewhere("rm f; rmdir d", share)
    assert merged.records() == [
        EventRecord(2, 0, Event.DELETE_SELF),
        EventRecord(3, 0, Event.DELETE_SELF | Event.ISDIR),
    ]
    assert merged.host_watches() == 0


def test_what_others_remove_is_told_though_this_process_was_at_it_as_well(
    merged: Host, share: Path
) -> None:
    (share / "f").touch()
    merged.watch(2, share / "f")
    with (share / "f").open("ab") as file:
        (share / "f").chmod(0o600)
        # Or what comes would be merged into it.
        merged.table.process()
        elsewhere("rm f", share)
        file.write(b"x")
    assert merged.records() == [
        EventRecord(2, 0, Event.ATTRIB),
        EventRecord(2, 0, Event.DELETE_SELF),
    ]
    assert merged.host_watches() == 0


def test_a_directory_that_this_process_moved_is_still_followed(merged: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    merged.watch(2, share / "a/b", Event.CREATE)
    (share / "a/b").rename(share / "c")
    elsewhere(": > c/f", share)
    assert merged.records() == [EventRecord(2, 0, Event.CREATE, b"f")]
    elsewhere("rm c/f; rmdir c", share)
    assert merged.records() == [EventRecord(2, 0, Event.DELETE_SELF | Event.ISDIR)]


def test_a_directory_that_this_process_moved_out_falls_silent(merged: Host, share: Path) -> None:
    (share / "a/b").mkdir(parents=True)
    merged.watch(2, share / "a/b", Event.CREATE)
    (share / "a").rename(share.parent / "outside")
    assert merged.records() == []
    elsewhere(": > b/secret", share.parent / "outside")
    assert merged.records() == []
    assert merged.host_watches() == 0


def test_execution_is_told(merged: Host, share: Path) -> None:
    (share / "script").write_text("#!/bin/sh\n")
    (share / "script").chmod(0o700)
    assert merged.watch(2, share / "script", Event.OPEN_EXEC) == Event.OPEN_EXEC
    elsewhere("./script", share)
    assert merged.records() == [EventRecord(2, 0, Event.OPEN_EXEC)]


def test_merged_events_are_told_in_an_order_in_which_they_can_have_happened(
    host: Host, share: Path
) -> None:
    host.watch(1, share)
    (share / "f").write_bytes(b"x")
    child = [Event.OPEN, Event.MODIFY, Event.CLOSE_WRITE]
    assert host.records() == [
        EventRecord(1, 0, Event.CREATE, b"f"),
        *(EventRecord(1, 0, event | Event.ON_CHILD, b"f") for event in child),
    ]


@pytest.mark.root
def test_a_directory_that_is_not_watched_itself_is_named_to_its_parents_watchers(
    host: Host, share: Path
) -> None:
    (share / "d").mkdir()
    host.watch(1, share, Event.ATTRIB | Event.ON_CHILD)
    (share / "d").chmod(0o700)
    assert host.records() == [EventRecord(1, 0, Event.ATTRIB | Event.ON_CHILD | Event.ISDIR, b"d")]


@pytest.mark.root
def test_without_a_descriptor_to_find_a_directorys_name_a_loss_is_told(share: Path) -> None:
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


def test_a_directory_that_is_gone_when_its_event_is_read_does_no_harm(
    host: Host, share: Path
) -> None:
    (share / "d").mkdir()
    host.watch(1, share, Event.ATTRIB | Event.DELETE | Event.ON_CHILD)
    (share / "d").chmod(0o700)
    (share / "d").rmdir()
    assert host.records()[-1] == EventRecord(1, 0, Event.DELETE | Event.ISDIR, b"d")


def test_an_object_of_a_file_system_without_handles_is_left_to_the_guest(host: Host) -> None:
    fd = os.open("/proc/self/status", os.O_PATH)
    with pytest.raises(OSError, match=r".") as caught:
        host.table.set_mask(2, 0, fd, False, ALL)
    os.close(fd)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert host.host_watches() == 0


def test_an_overflow_of_the_hosts_queue_is_told_once(host: Host, share: Path) -> None:
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
