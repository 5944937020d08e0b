# SPDX-License-Identifier: Apache-2.0
"""Audit is a user of fsnotify inside the kernel: what the host does changes nothing for it.

A rule for a path has a mark on its directory, and follows the name by the events of the guest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.guest_client import Guest, GuestProcess
from farwatch_harness.vm.testbed import Share

pytestmark = [
    pytest.mark.patch("notifications"),
    pytest.mark.parametrize("testbed", ["others", "remote"], indirect=True),
]

AUDIT_WRITES = Path(__file__).parent / "programs" / "audit_writes.py"
EVENTS = In.CREATE | In.DELETE | In.MOVE_SELF


@contextmanager
def audit(guest: Guest, path: PurePath) -> Iterator[GuestProcess]:
    """Audit the writes to a path of the guest."""
    process = guest.spawn("python3", AUDIT_WRITES, path)
    assert process.lines(count=1) == ["auditing"]
    yield process
    assert process.stop() == 0


def write(guest: Guest, path: PurePath, command: str) -> None:
    """Write to a file, by a new process named `command`."""
    guest.shell(f"printf {command} > /proc/$$/comm; echo > {path}")


def writes_to_a_name_that_moves(guest: Guest, directory: PurePath) -> list[str]:
    """Return what is audited while the guest makes, moves and replaces the file of the rule."""
    guest.os("mkdir", str(directory))
    file = directory / "file"
    with audit(guest, file) as process:
        write(guest, file, "created")
        write(guest, file, "again")
        guest.shell(f"mv {file} {directory}/other")
        write(guest, directory / "other", "other")
        write(guest, file, "new")
        lines = process.lines(until="new")
    guest.shell(f"rm -r {directory}")
    return lines


def test_audit_rule_follows_the_guest_s_events(guest: Guest, share: Share) -> None:
    on_share = writes_to_a_name_that_moves(guest, share.guest / "dir")
    assert on_share == writes_to_a_name_that_moves(guest, Path("/run/audit-test"))
    assert {"written by created", "written by again", "written by new"} <= set(on_share)


def test_reports_change_no_audit_rule(guest: Guest, share: Share) -> None:
    """Have the host make, delete and move the path while the guest watches the directory."""
    directory = share.guest / "dir"
    guest.os("mkdir", str(directory))
    with audit(guest, directory / "file") as process:
        with guest.inotify() as listener:
            listener.add(directory, EVENTS)
            (share.host / "dir" / "file").touch()
            (share.host / "dir" / "file").unlink()
            assert [event.mask for event in listener.read(2)] == [In.CREATE, In.DELETE]
            write(guest, directory / "other", "other")
            (share.host / "dir").rename(share.host / "moved")
            assert In.MOVE_SELF in [event.mask for event in listener.read(2)]
        # The rule is still there, as if the directory had not been moved.
        write(guest, share.guest / "moved" / "file", "written")
        write(guest, share.guest / "moved" / "file", "end")
        assert process.lines(until="end") == ["written by written", "written by end"]
