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
class FuseMount:
    """A directory of the guest, and where a FUSE server of the guest serves it."""

    directory: str
    mounted: str


@pytest.fixture
def fuse_mount(guest: Guest) -> Iterator[FuseMount]:
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
    yield FuseMount(directory, mounted)
    guest.umount(mounted)
    assert "unmounted" in server.lines(until="unmounted")
    server.stop()
    guest.umount(directory)


def test_changes_behind_a_dev_fuse_mount_are_reported(guest: Guest, fuse_mount: FuseMount) -> None:
    with guest.inotify() as listener:
        top = listener.add(fuse_mount.mounted, In.ALL)
        file = listener.add(f"{fuse_mount.mounted}/file", In.ALL)
        guest.shell(
            f"echo more >> {fuse_mount.directory}/file; mv {fuse_mount.directory}/file"
            f" {fuse_mount.directory}/moved"
        )
        reported = [
            (event.wd, In(event.mask), event.name) for event in listener.read(until="moved")
        ]
    assert (file, In.MODIFY, "") in reported
    assert (top, In.MODIFY, "file") in reported
    assert reported[-2:] == [(top, In.MOVED_FROM, "file"), (top, In.MOVED_TO, "moved")]


def test_changes_through_a_dev_fuse_mount_are_reported_once(
    guest: Guest, fuse_mount: FuseMount
) -> None:
    with guest.inotify() as listener:
        listener.add(fuse_mount.mounted, In.CREATE | In.DELETE)
        guest.shell(f"cd {fuse_mount.mounted}; touch new; rm new; touch end")
        reported = [(In(event.mask), event.name) for event in listener.read(until="end")]
        assert reported == [(In.CREATE, "new"), (In.DELETE, "new"), (In.CREATE, "end")]
        assert listener.read(quiet=0.5, limit=2.0) == []
