# SPDX-License-Identifier: Apache-2.0
"""The guest reports events of the host as native inotify would, event for event."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import HostScript, In, compare
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

pytestmark = pytest.mark.patch("notifications")

MODES = pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)
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


@MODES
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


@MODES
def test_excl_unlink_leaves_out_what_happens_to_a_file_that_the_host_unlinked(
    testbed: Testbed, guest: Guest, share: Share
) -> None:
    mask = In.DELETE | In.MODIFY | In.CLOSE_WRITE | In.CREATE
    file = share.host / "file"
    with file.open("wb", buffering=0) as stream, guest.inotify() as strict, guest.inotify() as all_:
        strict.add(share.guest, mask | In.EXCL_UNLINK)
        all_.add(share.guest, mask)
        stream.write(b"1")
        for each in (strict, all_):
            assert In(each.read(count=1)[0].mask) == In.MODIFY
        file.unlink()
        for each in (strict, all_):
            assert In(each.read(count=1)[0].mask) == In.DELETE
        stream.write(b"2")
        stream.close()
        assert [In(event.mask) for event in all_.read(count=2)] == [In.MODIFY, In.CLOSE_WRITE]
        file.write_bytes(b"")
        assert [In(event.mask) for event in strict.read(count=2)] == [In.CREATE, In.CLOSE_WRITE]


@MODES
@pytest.mark.patch("overflow")
def test_directory_that_leaves_the_share_and_returns_is_reported_again(
    testbed: Testbed, guest: Guest, share: Share
) -> None:
    below = share.host / "dir" / "below"
    below.mkdir(parents=True)
    outside = testbed.shared.parent / f"{share.host.name}-outside"
    with guest.inotify() as directory, guest.inotify() as deeper:
        directory.add(share.guest / "dir", In.CREATE | In.MOVE_SELF)
        deeper.add(share.guest / "dir" / "below", In.CREATE)
        for name in ("first", "second"):
            (share.host / "dir").rename(outside)
            assert In(directory.read(count=1)[0].mask) == In.MOVE_SELF
            outside.rename(share.host / "dir")
            # Nobody in the guest looks the name up.
            returned = [In(event.mask) for event in directory.read(count=2)]
            assert returned == [In.Q_OVERFLOW, In.MOVE_SELF]
            assert [In(event.mask) for event in deeper.read(count=1)] == [In.Q_OVERFLOW]
            (share.host / "dir" / name).touch()
            (below / name).touch()
            for each in (directory, deeper):
                created = each.read(count=1)
                assert [(In(event.mask), event.name) for event in created] == [(In.CREATE, name)]
