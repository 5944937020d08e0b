# SPDX-License-Identifier: Apache-2.0
"""A daemon in a user namespace with an id map of its own.

The tests check who owns the guest's files, what the guest may do, and the errors.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.sandbox.idmaps import IdRange, parse_range
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import COMMAND, TIMEOUT, error_line, running, status

FIRST = 100_000
MAPS = f"--uid-map=:0:{FIRST}:1000:", f"--gid-map=:0:{FIRST + 1}:1000:"


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that every user can reach."""
    path = Path(tempfile.mkdtemp(prefix="farwatch-maps-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def shared(place: Path) -> Path:
    """Return a shared directory of the namespace's root."""
    shared = place / "shared"
    shared.mkdir()
    os.chown(shared, FIRST, FIRST + 1)
    return shared


def mkdir(guest: MountedGuest, name: bytes, uid: int, gid: int) -> int:
    """Return the errno of making a directory, 0 if it succeeds."""
    payload = fuse.mkdir_in.pack(mode=0o755) + name + b"\0"
    return guest.front_end.request(
        Opcode.MKDIR, ROOT, payload, fuse.entry_out.size, uid=uid, gid=gid
    )[0]


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("--inode-file-handles=never",)])
def test_new_files_have_ids_of_the_range_and_the_guest_sees_its_own_ids(
    place: Path, shared: Path, options: tuple[str, ...]
) -> None:
    with running(place / "socket", shared, *MAPS, *options) as daemon:
        guest = MountedGuest(daemon)
        assert [
            mkdir(guest, name, uid, gid) for name, uid, gid in ((b"root", 0, 0), (b"user", 7, 9))
        ] == [0, 0]
        found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in shared.iterdir()}
        assert found == {"root": (FIRST, FIRST + 1), "user": (FIRST + 7, FIRST + 10)}
        seen = {name: guest.lookup(ROOT, name) for name in (b"root", b"user")}
        assert {name: (entry.attr_uid, entry.attr_gid) for name, entry in seen.items()} == {
            b"root": (0, 0),
            b"user": (7, 9),
        }
        # Nobody beyond the range can own anything.
        assert mkdir(guest, b"beyond", 1000, 0) != 0
        assert mkdir(guest, b"device", 0, 0) == 0
        payload = fuse.mknod_in.pack(mode=stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)) + b"null\0"
        assert guest.front_end.request(Opcode.MKNOD, ROOT, payload, fuse.entry_out.size)[0] != 0
        assert sorted(path.name for path in shared.iterdir()) == ["device", "root", "user"]


@pytest.mark.root
def test_daemon_in_a_user_namespace_has_no_rights_outside(place: Path, shared: Path) -> None:
    with running(place / "socket", shared, *MAPS) as daemon:
        kept = status(daemon.pid)
        assert (set(kept["Uid"].split()), set(kept["Gid"].split())) == (
            {str(FIRST)},
            {str(FIRST + 1)},
        )
        assert kept["Groups"] == ""
        (place / "secret").write_text("root's")
        (place / "secret").chmod(0o600)
        guest = MountedGuest(daemon)
        (shared / "secret").hardlink_to(place / "secret")
        node = guest.lookup(ROOT, b"secret").nodeid
        assert (
            guest.front_end.request(Opcode.OPEN, node, fuse.open_in.pack(flags=os.O_RDONLY), 16)[0]
            != 0
        )


def refusal(place: Path, shared: Path, *options: str) -> str:
    """Return the last line of a daemon that cannot start."""
    command = [*COMMAND, f"--socket-path={place}/socket", f"--shared-dir={shared}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 1
    assert sorted(path.name for path in place.iterdir()) == ["shared"]
    return error_line(done.stderr)


@pytest.mark.root
def test_share_unreadable_by_userns_root_fails_with_one_line(place: Path, shared: Path) -> None:
    os.chown(shared, 0, 0)
    shared.chmod(0o700)
    line = refusal(place, shared, *MAPS)
    assert line == f"farwatchd: cannot enter {shared} in the namespace: Permission denied"


@pytest.mark.root
def test_ranges_that_are_not_permitted_fail_with_one_line(place: Path, shared: Path) -> None:
    line = refusal(place, shared, *MAPS, f"--uid-map=:5:{FIRST + 5000}:10:")
    assert line == "farwatchd: --uid-map, --gid-map: cannot write uid_map: Invalid argument"


@pytest.mark.parametrize(
    ("text", "found"),
    [(":0:100000:65536:", IdRange(0, 100000, 65536)), ("/7/8/1/", IdRange(7, 8, 1))],
)
def test_valid_ranges_are_parsed(text: str, found: IdRange) -> None:
    assert parse_range(text) == found


@pytest.mark.parametrize(
    "text", ["", ":", "0:1:2", ":0:1:2", ":0:1:-2:", ":a:1:2:", ":0:1:0:", ":0:4294967295:1:"]
)
def test_invalid_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not :namespace id|there must be one at least"):
        parse_range(text)
