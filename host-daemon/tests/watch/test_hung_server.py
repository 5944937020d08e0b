# SPDX-License-Identifier: Apache-2.0
"""Events of a file system whose server does not answer any more: reading them asks it nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.wire.fsnotify import Event
from tests.support.hung_file_system import HungFileSystem
from tests.support.watch_host import Host

LIMIT = 10.0


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungFileSystem]:
    for name in ("share/mounted", "behind/directory"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("file", "removed"):
        (tmp_path / "behind" / name).touch()
    file_system = HungFileSystem(tmp_path / "behind", tmp_path / "share/mounted")
    yield file_system
    file_system.close()


@pytest.mark.root
def test_events_are_read_though_their_server_hangs(hung: HungFileSystem) -> None:
    mounted = hung.mount_point
    host = Host(mounted.parent, 20, InotifyBackend)
    mask = Event.ATTRIB | Event.CREATE | Event.DELETE
    for nodeid, name in enumerate(("file", "removed", "directory", "."), start=2):
        host.watch(nodeid, mounted / name, mask)
    (mounted / "file").chmod(0o600)
    (mounted / "removed").unlink()
    (mounted / "directory/new").touch()
    (mounted / "directory/new").unlink()
    (mounted / "directory").rmdir()
    hung.hang()
    reader = threading.Thread(target=host.table.process)
    reader.start()
    reader.join(LIMIT)
    waits = reader.is_alive()
    hung.resume()
    reader.join(LIMIT)
    assert not waits
    assert host.records() == [
        EventRecord(2, 0, Event.ATTRIB),
        EventRecord(3, 0, Event.ATTRIB),
        EventRecord(3, 0, Event.DELETE_SELF),
        EventRecord(5, 0, Event.DELETE, b"removed"),
        EventRecord(4, 0, Event.CREATE, b"new"),
        EventRecord(4, 0, Event.DELETE, b"new"),
        EventRecord(4, 0, Event.DELETE_SELF | Event.ISDIR),
        EventRecord(5, 0, Event.DELETE | Event.ISDIR, b"directory"),
    ]
    host.close()
