# SPDX-License-Identifier: Apache-2.0
"""Events are FUSE's, not virtiofs's: a server on /dev/fuse reports them as well."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.guest_client import Guest

pytestmark = pytest.mark.patch("devfuse")


@dataclass(frozen=True)
class Served:
    """A directory of the guest, and where a FUSE server of the guest serves it."""

    directory: str
    mounted: str


@pytest.fixture
def served(guest: Guest) -> Iterator[Served]:
    folder = guest.shell("mktemp -d").strip()
    directory, mounted = f"{folder}/directory", f"{folder}/mounted"
    guest.shell(
        f"mkdir {directory} {mounted}; mount -t tmpfs tmpfs {directory}; echo content >"
        f" {directory}/file"
    )
    server = guest.spawn(
        sys.executable,
        str(Path(__file__).parent / "servers" / "fuse_server.py"),
        directory,
        mounted,
    )
    assert "mounted" in server.lines(until="mounted")
    yield Served(directory, mounted)
    guest.umount(mounted)
    assert "unmounted" in server.lines(until="unmounted")
    server.stop()
    guest.umount(directory)


def test_what_happens_behind_the_mount_is_seen_on_it(guest: Guest, served: Served) -> None:
    with guest.inotify() as listener:
        top = listener.add(served.mounted, In.ALL)
        file = listener.add(f"{served.mounted}/file", In.ALL)
        guest.shell(
            f"echo more >> {served.directory}/file; mv {served.directory}/file"
            f" {served.directory}/moved"
        )
        told = [(event.wd, In(event.mask), event.name) for event in listener.read(until="moved")]
    assert (file, In.MODIFY, "") in told
    assert (top, In.MODIFY, "file") in told
    assert told[-2:] == [(top, In.MOVED_FROM, "file"), (top, In.MOVED_TO, "moved")]


def test_what_is_done_through_the_mount_is_seen_once(guest: Guest, served: Served) -> None:
    with guest.inotify() as listener:
        listener.add(served.mounted, In.CREATE | In.DELETE)
        guest.shell(
            f"touch {served.mounted}/new; rm {served.mounted}/new; touch {served.mounted}/end"
        )
        told = [(In(event.mask), event.name) for event in listener.read(until="end")]
        assert told == [(In.CREATE, "new"), (In.DELETE, "new"), (In.CREATE, "end")]
        assert listener.read(quiet=0.5, limit=2.0) == []
