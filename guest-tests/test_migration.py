# SPDX-License-Identifier: Apache-2.0
"""A guest that migrates between two QEMUs while its programs use the share."""

import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import GuestProcess
from farwatch_harness.vm.migration import MigratingGuest, start_migrating_guest

pytestmark = [pytest.mark.patch("wait-request"), pytest.mark.daemon]

#: How often the guest migrates in the first test.
TIMES = int(os.environ.get("FARWATCH_MIGRATIONS", "2"))
#: A deleted file goes on at another daemon where that can see whose it was.
_RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
DELETED = "deleted" if _RELEASE >= (6, 13) else "none"
#: Writes, reads and renames until it is to end; the first error ends it earlier. It has an open
#: file, and a deleted one.
LOAD = """
import os, sys
os.chdir(sys.argv[1])
kept = open("kept", "w+")
deleted = open("deleted", "w+") if sys.argv[2] == "deleted" else None
if deleted:
    os.unlink("deleted")
print("started", flush=True)
number = 0
while not os.path.exists("end"):
    text = str(number)
    with open("new", "w") as stream:
        stream.write(text)
    with open("new") as stream:
        assert stream.read() == text
    os.rename("new", "old")
    for stream in filter(None, (kept, deleted)):
        stream.write(text + " ")
        stream.flush()
    number += 1
expected = "".join(f"{each} " for each in range(number))
for stream in filter(None, (kept, deleted)):
    stream.seek(0)
    assert stream.read() == expected
print("ended", flush=True)
"""


@pytest.fixture
def migrating(
    environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[MigratingGuest]:
    shared = tmp_path / "shared"
    for name in ("load", "watched"):
        (shared / name).mkdir(parents=True)
    spec = environment.testbed_spec(request.node.name.split("[")[0], shared)
    with start_migrating_guest(spec) as migrating:
        yield migrating


def start_load(migrating: MigratingGuest, deleted: str) -> GuestProcess:
    # The guest has the host's interpreter at its place.
    python = [str(Path(sys.executable).resolve()), "-X", "utf8", "-ISB", "-c", LOAD]
    load = migrating.guest.spawn(*python, f"{migrating.mount_point}/load", deleted)
    assert load.lines(until="started") == ["started"]
    return load


def listen(migrating: MigratingGuest) -> Any:
    listener = migrating.guest.inotify()
    listener.add(migrating.mount_point / "watched", In.CREATE)
    return listener


def test_guest_migrates_to_and_fro_under_load(migrating: MigratingGuest) -> None:
    shared = migrating.spec.shared
    listener = listen(migrating)
    load = start_load(migrating, DELETED)
    for number in range(TIMES):
        (shared / "watched" / f"before {number}").touch()
        listener.read(until=f"before {number}")
        migrating.migrate()
        (overflow,) = listener.read(count=1)
        assert overflow.mask == In.Q_OVERFLOW
        (shared / "watched" / f"after {number}").touch()
        (event,) = listener.read(until=f"after {number}")
        assert (event.mask, event.name) == (int(In.CREATE), f"after {number}")
    (shared / "load" / "end").touch()
    assert load.lines(until="ended") == ["ended"]
    assert not migrating.host.problems()


def test_guest_goes_on_with_a_copy_of_the_directory(
    migrating: MigratingGuest, tmp_path: Path
) -> None:
    shared, copied = migrating.spec.shared, tmp_path / "copy"
    load = start_load(migrating, "none")
    # A copy of what changes would be another directory: the guest's programs stop.
    migrating.guest.os("kill", load.pid, signal.SIGSTOP)
    migrating.guest.os("sync")
    shutil.copytree(shared, copied)
    migrating.migrate(copied)
    migrating.guest.os("kill", load.pid, signal.SIGCONT)
    (copied / "load" / "end").touch()
    assert load.lines(until="ended") == ["ended"]
    assert (copied / "load" / "kept").read_text() != (shared / "load" / "kept").read_text()


def test_guest_is_saved_to_a_file_and_goes_on(migrating: MigratingGuest, tmp_path: Path) -> None:
    listener = listen(migrating)
    load = start_load(migrating, "none")
    migrating.save(tmp_path / "saved")
    (migrating.spec.shared / "watched" / "meanwhile").touch()
    migrating.restore(tmp_path / "saved")
    (overflow,) = listener.read(count=1)
    assert overflow.mask == In.Q_OVERFLOW
    (migrating.spec.shared / "watched" / "here").touch()
    listener.read(until="here")
    (migrating.spec.shared / "load" / "end").touch()
    assert load.lines(until="ended") == ["ended"]
    assert not migrating.host.problems()


def test_guest_goes_on_at_the_source_if_the_destination_lacks_a_file(
    migrating: MigratingGuest, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    listener = listen(migrating)
    load = start_load(migrating, "deleted")
    with pytest.raises(HarnessError, match="not migrated"):
        migrating.migrate(empty)
    (migrating.spec.shared / "watched" / "here").touch()
    listener.read(until="here")
    (migrating.spec.shared / "load" / "end").touch()
    assert load.lines(until="ended") == ["ended"]
