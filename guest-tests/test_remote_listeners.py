# SPDX-License-Identifier: Apache-2.0
"""Remote events can be distinguished, asked for alone, and left out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pytest
from farwatch_harness.kernel import series
from farwatch_harness.kernel.source_tree import find_source
from farwatch_harness.kernel.versions import current
from farwatch_harness.oracle.compare import In
from farwatch_harness.util import cache, paths, subprocesses
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.guest_fanotify import FanFlag, FanMask, Group, group
from farwatch_harness.vm.testbed import Share

#: The patch of FAN_REMOTE, and that of the sysctl.
FLAG, OPT_OUT = pytest.mark.patch("remote-flag"), pytest.mark.patch("remote-opt-out")
MODES = pytest.mark.parametrize("testbed", ["others", "remote"], indirect=True)
WITH_WAIT = pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)

#: The sysctl that decides for groups that do not ask.
SYSCTL = "/proc/sys/fs/fsnotify/remote_events"
ASKING = FanFlag.REPORT_DFID_NAME | FanFlag.REPORT_REMOTE
REMOTE_ONLY = ASKING | FanFlag.REMOTE_ONLY
ENTRIES = FanMask.CREATE | FanMask.DELETE | FanMask.ONDIR


@contextmanager
def sysctl(guest: Guest, value: int) -> Iterator[None]:
    """Set the sysctl while the block runs."""
    before = guest.read_file(SYSCTL)
    guest.write_file(SYSCTL, b"%d" % value)
    try:
        yield
    finally:
        guest.write_file(SYSCTL, before)


def named(listener: Group, count: int) -> list[tuple[FanMask, str]]:
    """Read events, as mask and name."""
    return [(event.mask, event.infos[0][1]) for event in listener.read(count)]


def masks(listener: Group, count: int) -> list[FanMask]:
    return [event.mask for event in listener.read(count)]


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)


def append_in_guest(guest: Guest, path: PurePath) -> None:
    fd = guest.os("open", str(path), os.O_WRONLY | os.O_APPEND)
    guest.os("write", fd, b"own")
    guest.os("close", fd)


@FLAG
@WITH_WAIT
def test_fan_remote_is_set_on_events_of_the_host(guest: Guest, share: Share) -> None:
    with group(guest, ASKING) as listener:
        listener.mark(
            share.guest,
            ENTRIES | FanMask.MODIFY | FanMask.RENAME | FanMask.ON_CHILD,
        )
        (share.host / "file").touch()
        assert named(listener, 1) == [(FanMask.CREATE | FanMask.REMOTE, "file")]
        append(share.host / "file")
        assert named(listener, 1) == [(FanMask.MODIFY | FanMask.REMOTE, "file")]
        (share.host / "file").rename(share.host / "renamed")
        assert masks(listener, 1) == [FanMask.RENAME | FanMask.REMOTE]
        (share.host / "renamed").unlink()
        assert named(listener, 1) == [(FanMask.DELETE | FanMask.REMOTE, "renamed")]
        (share.host / "dir").mkdir()
        assert named(listener, 1) == [(FanMask.CREATE | FanMask.ONDIR | FanMask.REMOTE, "dir")]


@FLAG
@MODES
def test_fan_remote_is_not_set_on_what_this_kernel_reports(
    guest: Guest, share: Share, request: pytest.FixtureRequest
) -> None:
    # In mode remote the server reports what the guest does.
    others = "[others]" in request.node.name
    own = FanMask(0) if others else FanMask.REMOTE
    with group(guest, ASKING) as listener:
        listener.mark(share.guest, ENTRIES)
        guest.os("mkdir", f"{share.guest}/own")
        assert named(listener, 1) == [(FanMask.CREATE | FanMask.ONDIR | own, "own")]
        (share.host / "host").touch()
        assert named(listener, 1) == [(FanMask.CREATE | FanMask.REMOTE, "host")]


@FLAG
def test_group_that_does_not_ask_reads_no_fan_remote(guest: Guest, share: Share) -> None:
    with group(guest, FanFlag.REPORT_DFID_NAME) as listener:
        listener.mark(share.guest, ENTRIES)
        (share.host / "host").touch()
        assert named(listener, 1) == [(FanMask.CREATE, "host")]


@FLAG
@WITH_WAIT
def test_remote_only_group_reads_events_of_the_server_alone(
    guest: Guest, share: Share, request: pytest.FixtureRequest
) -> None:
    with group(guest, REMOTE_ONLY) as listener:
        listener.mark(share.guest, ENTRIES)
        guest.os("mkdir", f"{share.guest}/own")
        own = [(FanMask.CREATE | FanMask.ONDIR | FanMask.REMOTE, "own")]
        if "[remote]" in request.node.name:
            assert named(listener, 1) == own
        (share.host / "host").touch()
        assert named(listener, 1) == [(FanMask.CREATE | FanMask.REMOTE, "host")]
        guest.os("rmdir", f"{share.guest}/own")
        if "[remote]" in request.node.name:
            assert named(listener, 1) == [(FanMask.DELETE | FanMask.ONDIR | FanMask.REMOTE, "own")]
        (share.host / "host").unlink()
        assert named(listener, 1) == [(FanMask.DELETE | FanMask.REMOTE, "host")]


def refused(call: Any, *args: Any) -> bool:
    """Return whether a call fails with EINVAL."""
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno == errno.EINVAL


@FLAG
def test_flags_that_cannot_be_served_are_refused(guest: Guest, share: Share) -> None:
    assert refused(Group, guest, FanFlag.REPORT_REMOTE)
    assert refused(Group, guest, FanFlag.REPORT_DFID_NAME | FanFlag.REMOTE_ONLY)
    with group(guest, REMOTE_ONLY) as listener:
        for kind in (FanFlag.MARK_MOUNT, FanFlag.MARK_FILESYSTEM):
            assert refused(listener.mark, share.guest, FanMask.MODIFY, kind)
        assert refused(listener.mark, share.guest, FanMask.MODIFY | FanMask.REMOTE)


@FLAG
def test_remote_and_local_events_do_not_merge_in_fanotify(guest: Guest, share: Share) -> None:
    (share.host / "file").touch()
    with group(guest, ASKING) as listener, group(guest, REMOTE_ONLY) as progress:
        for each in (listener, progress):
            each.mark(share.guest, FanMask.MODIFY | FanMask.ON_CHILD)
        append_in_guest(guest, share.guest / "file")
        append(share.host / "file")
        assert named(progress, 1) == [(FanMask.MODIFY | FanMask.REMOTE, "file")]
        assert named(listener, 2) == [
            (FanMask.MODIFY, "file"),
            (FanMask.MODIFY | FanMask.REMOTE, "file"),
        ]


@FLAG
def test_remote_and_local_events_are_one_in_inotify(guest: Guest, share: Share) -> None:
    (share.host / "file").touch()
    with guest.inotify() as watcher, group(guest, REMOTE_ONLY) as progress:
        watcher.add(share.guest / "file", In.MODIFY | In.ATTRIB)
        progress.mark(share.guest / "file", FanMask.MODIFY)
        append_in_guest(guest, share.guest / "file")
        append(share.host / "file")
        assert masks(progress, 1) == [FanMask.MODIFY | FanMask.REMOTE]
        (share.host / "file").chmod(0o600)
        assert [event.mask for event in watcher.read(2)] == [In.MODIFY, In.ATTRIB]


@FLAG
@MODES
def test_delete_self_is_reported_once_and_says_where_it_happened(
    guest: Guest, share: Share
) -> None:
    for name in ("host", "own"):
        (share.host / name).touch()
    with group(guest, FanFlag.REPORT_FID | FanFlag.REPORT_REMOTE) as listener:
        for name in ("host", "own"):
            listener.mark(share.guest / name, FanMask.DELETE_SELF)
        (share.host / "host").unlink()
        assert masks(listener, 1) == [FanMask.DELETE_SELF | FanMask.REMOTE]
        guest.os("unlink", f"{share.guest}/own")
        # In mode remote the report of the server can come first, and is the only one then.
        (mask,) = masks(listener, 1)
        assert mask & ~FanMask.REMOTE == FanMask.DELETE_SELF
        assert listener.quiet()


#: The program of the selftests that hears remote events only.
PROGRAM = "tools/testing/selftests/filesystems/fuse/fanotify_remote.c"


@pytest.fixture(scope="module")
def program() -> Path:
    """Compile the program from the series, without a warning; cached."""
    patches = series.read_series(Path(os.environ.get("FARWATCH_SERIES") or current().folder))
    source = series.patched_content(find_source().path, patches)[PROGRAM]
    assert source is not None

    def make(target: Path) -> None:
        (target / "fanotify_remote.c").write_bytes(source)
        flags = ["-Wall", "-Werror", "-O2", "-o", str(target / "program")]
        subprocesses.run(["gcc", *flags, str(target / "fanotify_remote.c")])

    key = cache.content_key(source)
    return cache.published(paths.cache_root() / "programs" / f"remote-{key}", make) / "program"


@FLAG
def test_program_of_the_selftests_hears_remote_events_only(
    guest: Guest, share: Share, program: Path
) -> None:
    process = guest.spawn(program, share.guest)
    try:
        assert process.lines(count=1) == [f"watching {share.guest}"]
        guest.write_file(share.guest / "own", b"own")
        (share.host / "host").touch()
        (share.host / "host").rename(share.host / "renamed")
        guest.os("unlink", f"{share.guest}/own")
        (share.host / "renamed").unlink()
        assert process.lines(until="DELETE renamed") == [
            "CREATE host",
            "MOVED_FROM host",
            "MOVED_TO renamed",
            "DELETE renamed",
        ]
    finally:
        process.stop()


@OPT_OUT
def test_sysctl_is_1_by_default_and_takes_0_and_1(guest: Guest) -> None:
    assert guest.read_file(SYSCTL) == b"1\n"
    for value in (b"2", b"-1"):
        assert refused(guest.write_file, SYSCTL, value)


@OPT_OUT
@MODES
def test_group_without_remote_events_keeps_its_local_ones(guest: Guest, share: Share) -> None:
    with (
        sysctl(guest, 0),
        guest.inotify() as watcher,
        group(guest, FanFlag.REPORT_DFID_NAME) as plain,
        group(guest, ASKING) as progress,
    ):
        # It asks: the server watches the directory, and reports.
        progress.mark(share.guest, ENTRIES)
        watcher.add(share.guest, In.CREATE | In.DELETE)
        plain.mark(share.guest, ENTRIES)
        (share.host / "host").touch()
        assert named(progress, 1) == [(FanMask.CREATE | FanMask.REMOTE, "host")]
        for operation in ("mkdir", "rmdir"):
            guest.os(operation, f"{share.guest}/own")
            # What the server reports of it, in mode remote, is reported by now.
            assert [name for _mask, name in named(progress, 1)] == ["own"]
        assert [(event.mask, event.name) for event in watcher.read(quiet=0.5)] == [
            (In.CREATE | In.ISDIR, "own"),
            (In.DELETE | In.ISDIR, "own"),
        ]
        # fanotify merges them.
        assert named(plain, 1) == [(FanMask.CREATE | FanMask.DELETE | FanMask.ONDIR, "own")]
        assert plain.quiet()


@OPT_OUT
@MODES
def test_own_deletion_is_reported_once_without_remote_events(guest: Guest, share: Share) -> None:
    (share.host / "file").touch()
    with (
        sysctl(guest, 0),
        guest.inotify() as watcher,
        group(guest, FanFlag.REPORT_FID | FanFlag.REPORT_REMOTE) as progress,
    ):
        progress.mark(share.guest / "file", FanMask.DELETE_SELF)
        watcher.add(share.guest / "file", In.DELETE_SELF)
        guest.os("unlink", f"{share.guest}/file")
        assert [event.mask for event in watcher.read(quiet=0.5)] == [In.DELETE_SELF, In.IGNORED]
        (mask,) = masks(progress, 1)
        assert mask & ~FanMask.REMOTE == FanMask.DELETE_SELF


@OPT_OUT
@MODES
def test_removal_on_the_host_leaves_the_watch_of_a_local_listener(
    guest: Guest, share: Share
) -> None:
    (share.host / "file").touch()
    fd = guest.os("open", f"{share.guest}/file", os.O_WRONLY)
    with (
        sysctl(guest, 0),
        guest.inotify() as watcher,
        group(guest, FanFlag.REPORT_FID | FanFlag.REPORT_REMOTE) as progress,
    ):
        progress.mark(share.guest / "file", FanMask.DELETE_SELF)
        watcher.add(share.guest / "file", In.MODIFY | In.DELETE_SELF)
        (share.host / "file").unlink()
        assert masks(progress, 1) == [FanMask.DELETE_SELF | FanMask.REMOTE]
        guest.os("write", fd, b"still open")
        assert [event.mask for event in watcher.read(1)] == [In.MODIFY]
    guest.os("close", fd)


@OPT_OUT
@MODES
def test_sysctl_counts_when_the_group_is_made(guest: Guest, share: Share) -> None:
    with (
        group(guest, FanFlag.REPORT_DFID_NAME) as made_at_1,
        guest.inotify() as watcher_at_1,
        sysctl(guest, 0),
        guest.inotify() as watcher_at_0,
        group(guest, FanFlag.REPORT_DFID_NAME) as made_at_0,
    ):
        made_at_1.mark(share.guest, ENTRIES)
        watcher_at_1.add(share.guest, In.CREATE)
        (share.host / "first").touch()
        assert named(made_at_1, 1) == [(FanMask.CREATE, "first")]
        assert [event.name for event in watcher_at_1.read(1)] == ["first"]
        guest.write_file(SYSCTL, b"1")
        made_at_0.mark(share.guest, ENTRIES)
        watcher_at_0.add(share.guest, In.CREATE)
        (share.host / "second").touch()
        assert named(made_at_1, 1) == [(FanMask.CREATE, "second")]
        assert [event.name for event in watcher_at_1.read(1)] == ["second"]
        assert made_at_0.quiet()
        assert watcher_at_0.read(quiet=0.5, limit=1.0) == []


DNOTIFY = """
import fcntl, os, signal, sys
path, first, second, knob = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGRTMIN)
for value, mask in ((first, fcntl.DN_CREATE), (second, fcntl.DN_DELETE)):
    with open(knob, "w") as file:
        file.write(value)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, mask | fcntl.DN_MULTISHOT)
print("watching", flush=True)
while signal.sigtimedwait([signal.SIGRTMIN], 20):
    print("reported", flush=True)
"""


@OPT_OUT
@MODES
@pytest.mark.parametrize("first", [0, 1])
def test_dnotify_stays_with_what_the_sysctl_was_first(
    guest: Guest, share: Share, first: int
) -> None:
    with sysctl(guest, first), group(guest, ASKING) as progress:
        progress.mark(share.guest, FanMask.CREATE | FanMask.DELETE)
        process = guest.spawn(
            "python3", "-c", DNOTIFY, share.guest, str(first), str(1 - first), SYSCTL
        )
        try:
            assert process.lines(count=1) == ["watching"]
            (share.host / "host").touch()
            assert named(progress, 1) == [(FanMask.CREATE | FanMask.REMOTE, "host")]
            (share.host / "host").unlink()
            assert named(progress, 1) == [(FanMask.DELETE | FanMask.REMOTE, "host")]
            guest.write_file(share.guest / "own", b"")
            guest.os("unlink", f"{share.guest}/own")
            expected = 4 if first else 2
            assert process.lines(count=expected + 1, limit=3.0) == ["reported"] * expected
        finally:
            process.stop()
