# SPDX-License-Identifier: Apache-2.0
"""The guest reports events of the host as native inotify would, event for event."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import HostScript, In, compare
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share

pytestmark = pytest.mark.patch("notifications")

ALL = {".": int(In.ALL)}
FILE = {".": int(In.ALL), "file": int(In.ALL)}


@dataclass(frozen=True)
class HostEventCase:
    """A script: `prepare` and `run` get the base directory.

    expect: bits that must occur, so that no script is empty.
    """

    run: HostScript
    expect: In
    prepare: HostScript = lambda base: None
    watched: dict[str, int] = field(default_factory=lambda: ALL)


def a_file(base: Path) -> None:
    (base / "file").write_bytes(b"content")


def in_turn(*steps: HostScript) -> HostScript:
    def run(base: Path) -> None:
        for step in steps:
            step(base)

    return run


def a_file_and_a_directory(base: Path) -> None:
    a_file(base)
    (base / "dir").mkdir()


def open_and_close(base: Path) -> None:
    os.close(os.open(base / "file", os.O_RDONLY))


def append(base: Path) -> None:
    with (base / "file").open("ab") as stream:
        stream.write(b"more")


def exchange(base: Path) -> None:
    (base / "file").rename(base / "dir" / "one")
    (base / "dir" / "one").rename(base / "two")


CASES = {
    "create": HostEventCase(
        lambda base: (base / "new").touch(), In.CREATE | In.OPEN | In.CLOSE_WRITE
    ),
    "write": HostEventCase(append, In.MODIFY | In.CLOSE_WRITE, a_file, FILE),
    "truncate": HostEventCase(lambda base: os.truncate(base / "file", 2), In.MODIFY, a_file, FILE),
    "read": HostEventCase(
        lambda base: (base / "file").read_bytes(), In.ACCESS | In.CLOSE_NOWRITE, a_file, FILE
    ),
    "open read-only": HostEventCase(open_and_close, In.OPEN | In.CLOSE_NOWRITE, a_file, FILE),
    "chmod": HostEventCase(lambda base: (base / "file").chmod(0o600), In.ATTRIB, a_file, FILE),
    "utimes": HostEventCase(lambda base: os.utime(base / "file", (1, 2)), In.ATTRIB, a_file, FILE),
    "setxattr": HostEventCase(
        lambda base: os.setxattr(base / "file", "user.x", b"1"), In.ATTRIB, a_file, FILE
    ),
    "unlink": HostEventCase(lambda base: (base / "file").unlink(), In.DELETE, a_file),
    "unlink a watched file": HostEventCase(
        lambda base: (base / "file").unlink(), In.DELETE_SELF | In.IGNORED, a_file, FILE
    ),
    "unlink one of two names": HostEventCase(
        lambda base: (base / "other").unlink(),
        In.DELETE | In.ATTRIB,
        in_turn(a_file, lambda base: os.link(base / "file", base / "other")),
        FILE,
    ),
    "rename": HostEventCase(
        lambda base: (base / "file").rename(base / "new"), In.MOVED_FROM | In.MOVED_TO, a_file
    ),
    "rename a watched file": HostEventCase(
        lambda base: (base / "file").rename(base / "new"), In.MOVE_SELF, a_file, FILE
    ),
    "rename into a watched directory": HostEventCase(
        lambda base: (base / "file").rename(base / "dir" / "moved"),
        In.MOVED_FROM | In.MOVED_TO,
        a_file_and_a_directory,
        {".": int(In.ALL), "dir": int(In.ALL)},
    ),
    "rename into an unwatched directory": HostEventCase(
        lambda base: (base / "file").rename(base / "dir" / "moved"),
        In.MOVED_FROM,
        a_file_and_a_directory,
    ),
    "rename over a watched file": HostEventCase(
        lambda base: (base / "new").replace(base / "file"),
        In.MOVED_TO | In.DELETE_SELF,
        in_turn(a_file, lambda base: (base / "new").write_bytes(b"")),
        FILE,
    ),
    "two renames": HostEventCase(
        exchange,
        In.MOVED_FROM | In.MOVED_TO,
        a_file_and_a_directory,
        {".": int(In.ALL), "dir": int(In.ALL)},
    ),
    "mkdir": HostEventCase(lambda base: (base / "new").mkdir(), In.CREATE | In.ISDIR),
    "rmdir": HostEventCase(
        lambda base: (base / "dir").rmdir(), In.DELETE | In.ISDIR, a_file_and_a_directory
    ),
    "rmdir of a watched directory": HostEventCase(
        lambda base: (base / "dir").rmdir(),
        In.DELETE_SELF | In.IGNORED,
        a_file_and_a_directory,
        {".": int(In.ALL), "dir": int(In.ALL)},
    ),
    "list a directory": HostEventCase(
        lambda base: os.listdir(base / "dir"),  # noqa: PTH208
        In.OPEN | In.ACCESS | In.ISDIR,
        a_file_and_a_directory,
        {".": int(In.ALL), "dir": int(In.ALL)},
    ),
    "chmod of a directory": HostEventCase(
        lambda base: (base / "dir").chmod(0o700),
        In.ATTRIB | In.ISDIR,
        a_file_and_a_directory,
        {".": int(In.ALL), "dir": int(In.ALL)},
    ),
    "symlink": HostEventCase(lambda base: (base / "new").symlink_to("nowhere"), In.CREATE),
    "hard link": HostEventCase(
        lambda base: os.link(base / "file", base / "new"), In.CREATE | In.ATTRIB, a_file, FILE
    ),
    "a name of one byte": HostEventCase(lambda base: (base / "x").touch(), In.CREATE),
    "a name of 255 bytes": HostEventCase(lambda base: (base / ("x" * 255)).touch(), In.CREATE),
    "a name beyond ASCII": HostEventCase(lambda base: (base / "Käse 🧀").touch(), In.CREATE),
    "a name that is no UTF-8": HostEventCase(
        lambda base: (base / os.fsdecode(b"\xff\xfe")).touch(), In.CREATE
    ),
    "only what was asked for": HostEventCase(
        in_turn(a_file, lambda base: (base / "file").unlink()),
        In.DELETE,
        watched={".": int(In.CREATE | In.DELETE)},
    ),
}


@pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_guest_reports_the_events_of_native_inotify(
    guest: Guest, share: Share, tmp_path: Path, case: HostEventCase
) -> None:
    result = compare(guest, share, tmp_path, case.prepare, case.run, case.watched)
    seen = In(0)
    for event in result.native:
        seen |= event.what
    assert case.expect & ~seen == 0, "the script does not do what it is meant to"
    assert not result.difference(), result.difference()
