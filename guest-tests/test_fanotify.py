# SPDX-License-Identifier: Apache-2.0
"""fanotify and dnotify in the guest report events of the host as inotify does."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from farwatch_harness.oracle.compare import HostScript, In
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.guest_fanotify import GROUP, TARGET, FanFlag, FanMask, group
from farwatch_harness.vm.testbed import Share

pytestmark = pytest.mark.patch("notifications")

MODES = pytest.mark.parametrize("testbed", ["others", "remote"], indirect=True)


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)


#: Each step on the host, with mask and name of the events that a mark of the directory reports.
STEPS: list[tuple[HostScript, list[tuple[FanMask, str]]]] = [
    (lambda base: (base / "a").touch(), [(FanMask.CREATE, "a")]),
    (lambda base: append(base / "a"), [(FanMask.MODIFY, "a")]),
    (lambda base: (base / "a").chmod(0o600), [(FanMask.ATTRIB, "a")]),
    (
        lambda base: (base / "a").rename(base / "b"),
        [(FanMask.MOVED_FROM, "a"), (FanMask.MOVED_TO, "b")],
    ),
    (lambda base: (base / "b").unlink(), [(FanMask.DELETE, "b")]),
    (lambda base: (base / "sub").mkdir(), [(FanMask.CREATE | FanMask.ONDIR, "sub")]),
    (lambda base: (base / "sub").rmdir(), [(FanMask.DELETE | FanMask.ONDIR, "sub")]),
]
DIRECTORY = (
    FanMask.CREATE | FanMask.DELETE | FanMask.MOVED_FROM | FanMask.MOVED_TO
    | FanMask.MODIFY | FanMask.ATTRIB | FanMask.ON_CHILD | FanMask.ONDIR
)  # fmt: skip


@MODES
def test_fan_report_dfid_name_has_directory_handle_and_name(guest: Guest, share: Share) -> None:
    with group(guest, FanFlag.REPORT_DFID_NAME) as listener:
        listener.mark(share.guest, DIRECTORY)
        directory = listener.handle(share.guest)
        for step, expected in STEPS:
            step(share.host)
            seen = listener.read(len(expected))
            assert [(event.mask, event.infos) for event in seen] == [
                (mask, [(directory, name)]) for mask, name in expected
            ]
        assert listener.quiet()


@MODES
def test_fan_report_fid_has_the_handle_of_the_file(guest: Guest, share: Share) -> None:
    file = share.host / "file"
    file.touch()
    with group(guest, FanFlag.REPORT_FID) as listener:
        listener.mark(
            share.guest / "file",
            FanMask.MODIFY | FanMask.ATTRIB | FanMask.MOVE_SELF | FanMask.DELETE_SELF,
        )
        handle = listener.handle(share.guest / "file")
        steps: list[tuple[Callable[[], object], FanMask]] = [
            (lambda: append(file), FanMask.MODIFY),
            (lambda: file.chmod(0o600), FanMask.ATTRIB),
            (lambda: file.rename(share.host / "moved"), FanMask.MOVE_SELF),
        ]
        for step, mask in steps:
            step()
            assert [(event.mask, event.infos) for event in listener.read(1)] == [
                (mask, [(handle, "")])
            ]
        (share.host / "moved").unlink()
        last = FanMask(0)
        while not last & FanMask.DELETE_SELF:
            (event,) = listener.read(1)
            assert event.infos == [(handle, "")]
            last |= event.mask
        assert last == FanMask.ATTRIB | FanMask.DELETE_SELF


@MODES
def test_ignore_mark_hides_events_of_the_host(guest: Guest, share: Share) -> None:
    (share.host / "file").touch()
    with group(guest, FanFlag.REPORT_FID) as listener:
        listener.mark(share.guest / "file", FanMask.MODIFY | FanMask.ATTRIB)
        listener.mark(
            share.guest / "file",
            FanMask.MODIFY,
            FanFlag.MARK_IGNORED_MASK | FanFlag.MARK_IGNORED_SURV_MODIFY,
        )
        append(share.host / "file")
        (share.host / "file").chmod(0o600)
        assert [event.mask for event in listener.read(1)] == [FanMask.ATTRIB]
        assert listener.quiet()


@pytest.mark.patch("child-ignore-mask")
@MODES
def test_ignore_mark_of_a_child_applies_to_the_mark_of_its_directory(
    guest: Guest, share: Share
) -> None:
    for name in ("ignored", "heard"):
        (share.host / name).touch()
    with group(guest, FanFlag.REPORT_DFID_NAME) as listener:
        listener.mark(share.guest, FanMask.MODIFY | FanMask.ATTRIB | FanMask.ON_CHILD)
        flags = FanFlag.MARK_IGNORED_MASK | FanFlag.MARK_IGNORED_SURV_MODIFY
        listener.mark(share.guest / "ignored", FanMask.MODIFY, flags)
        append(share.host / "ignored")
        append(share.host / "heard")
        assert [(event.mask, event.infos[0][1]) for event in listener.read(1)] == [
            (FanMask.MODIFY, "heard")
        ]
        (share.host / "ignored").chmod(0o600)
        assert [(event.mask, event.infos[0][1]) for event in listener.read(1)] == [
            (FanMask.ATTRIB, "ignored")
        ]
        assert listener.quiet()


def renames_seen(
    guest: Guest, base: PurePosixPath, marked: Sequence[str], rename: Callable[[str, str], object]
) -> Any:
    """Return the events of renames from one/ and in it.

    The group has marks for FAN_RENAME, FAN_MOVED_FROM and FAN_MOVED_TO. File handles are replaced
    by the names of their files. one/ and two/ are in the guest's directory `base`, with file/ and
    dir/.
    """
    with group(
        guest, FanFlag.REPORT_FID | FanFlag.REPORT_DFID_NAME | FanFlag.REPORT_TARGET_FID
    ) as listener:
        objects = {
            listener.handle(base / name): name for name in ("one", "two", "one/file", "one/dir")
        }
        for name in marked:
            listener.mark(
                base / name,
                FanMask.RENAME | FanMask.MOVED_FROM | FanMask.MOVED_TO | FanMask.ONDIR,
            )
        # An inode in use keeps its handle in FUSE.
        used = [guest.os("open", str(base / name), os.O_RDONLY) for name in ("one/file", "one/dir")]
        seen = []
        for old, new in (
            ("one/file", "one/renamed"),
            ("one/renamed", "two/moved"),
            ("one/dir", "two/dir"),
        ):
            # The guest finds the object of a rename on the host by its old name, if it was looked
            # up.
            guest.os("stat", str(base / old))
            rename(old, new)
            reported = any(PurePosixPath(name).parent.name in marked for name in (old, new))
            events = listener.read(1) if reported else []
            while more := listener.read(1, 0.5):
                events += more
            for event in events:
                infos = [
                    (kind, objects.get(handle, "?"), name)
                    for kind, (handle, name) in zip(event.kinds, event.infos, strict=True)
                ]
                seen.append((event.mask, infos))
        for fd in used:
            guest.os("close", fd)
        return seen


@pytest.mark.patch("rename-one-event")
@MODES
@pytest.mark.parametrize("marked", [("one", "two"), ("one",), ("two",)], ids="+".join)
def test_fan_rename_is_one_event_as_on_a_local_file_system(
    guest: Guest, share: Share, marked: Sequence[str]
) -> None:
    local = PurePosixPath("/run/farwatch/renames")
    for base in (share.guest, local):
        for name in ("one", "two", "one/dir"):
            guest.os("makedirs", str(base / name))
        guest.write_file(str(base / "one/file"), b"")
    try:
        there = renames_seen(
            guest,
            local,
            marked,
            lambda old, new: guest.os("rename", str(local / old), str(local / new)),
        )
        here = renames_seen(
            guest, share.guest, marked, lambda old, new: (share.host / old).rename(share.host / new)
        )
    finally:
        guest.shell(f"rm -r {local}")
    assert any(mask & FanMask.RENAME for mask, _infos in there)
    if "one" not in marked:
        # The guest does not know an object that comes from a directory without a watch.
        there = [(mask, [info for info in infos if info[0] != TARGET]) for mask, infos in there]
    assert here == there


@MODES
def test_group_with_descriptors_reads_own_events(guest: Guest, share: Share) -> None:
    (share.host / "file").touch()
    path = f"{share.guest}/file"
    # In mode remote the server also reports own operations, but its events have no open file.
    with guest.inotify() as watcher, group(guest, FanFlag(0)) as listener:
        watcher.add(path, In.CLOSE_WRITE)
        listener.mark(share.guest / "file", FanMask.CLOSE_WRITE)
        guest.write_file(path, b"by the guest")
        assert [(event.mask, event.path) for event in listener.read(1)] == [
            (FanMask.CLOSE_WRITE, path)
        ]
        assert [event.mask for event in watcher.read(1)] == [In.CLOSE_WRITE]
        assert listener.quiet()


@MODES
def test_fan_open_exec_is_reported_beside_events_of_the_host(guest: Guest, share: Share) -> None:
    (share.host / "script").write_text("#!/bin/sh\n")
    (share.host / "script").chmod(0o755)
    path = share.guest / "script"
    # The server reports the open as OPEN, not as OPEN_EXEC.
    with guest.inotify() as watcher, group(guest, FanFlag.REPORT_FID) as listener:
        watcher.add(path, In.OPEN)
        listener.mark(path, FanMask.OPEN_EXEC)
        assert guest.run(path).status == 0
        assert [event.mask for event in listener.read(1)] == [FanMask.OPEN_EXEC]


@MODES
@pytest.mark.parametrize("kind", [FanFlag.MARK_MOUNT, FanFlag.MARK_FILESYSTEM])
def test_mount_and_filesystem_marks_read_own_events_only(
    guest: Guest, share: Share, kind: FanFlag
) -> None:
    (share.host / "file").touch()
    path = f"{share.guest}/file"
    # The inotify watch makes the server report events of the host.
    with guest.inotify() as watcher, group(guest, FanFlag(0)) as listener:
        watcher.add(path, In.MODIFY)
        listener.mark(share.guest, FanMask.MODIFY | FanMask.CLOSE_WRITE, kind)
        append(share.host / "file")
        assert [event.mask for event in watcher.read(1)] == [In.MODIFY]
        assert listener.quiet()
        guest.write_file(path, b"by the guest")
        # The guest's own operations are reported once.
        masks = FanMask(0)
        for event in listener.read(1):
            assert event.path == path
            masks |= event.mask
        while not masks & FanMask.CLOSE_WRITE:
            (event,) = listener.read(1)
            masks |= event.mask
        assert masks == FanMask.MODIFY | FanMask.CLOSE_WRITE
        assert listener.quiet()


PERMISSION = (
    GROUP
    + """
import threading

def main(path, allowed, denied, perm, mount_mark, content):
    fd = new(content)
    mark(fd, mount_mark, perm, path)
    results = {}
    def attempt():
        for name in (allowed, denied):
            try:
                os.close(os.open(name, os.O_RDONLY))
                results[name] = "opened"
            except OSError as error:
                results[name] = error.errno
    opener = threading.Thread(target=attempt)
    opener.start()
    asked = []
    while len(asked) < 2 and select.select([fd], [], [], 10)[0]:
        data = os.read(fd, 65536)
        while data:
            length, _version, _reserved, _header, mask, file, _pid = struct.unpack_from(
                "=IBBHQii", data
            )
            name = os.readlink(f"/proc/self/fd/{file}")
            os.write(fd, struct.pack("=iI", file, 1 if name == allowed else 2))
            os.close(file)
            asked.append([mask, name])
            data = data[length:]
    os.close(fd)
    opener.join(10)
    return [asked, [results.get(allowed), results.get(denied)]]
"""
)


@MODES
def test_permission_events_decide_on_opens_in_the_guest(guest: Guest, share: Share) -> None:
    for name in ("allowed", "denied"):
        (share.host / name).write_text(name)
    allowed, denied = f"{share.guest}/allowed", f"{share.guest}/denied"
    with guest.inotify() as watcher:
        # In mode remote the server reports OPEN of a watched file. The permission event must be
        # raised in spite of that.
        watcher.add(denied, In.OPEN)
        asked, results = guest.python(
            PERMISSION, str(share.guest), allowed, denied,
            int(FanMask.OPEN_PERM), int(FanFlag.MARK_MOUNT),
            int(FanFlag.CLASS_CONTENT), limit=30.0,
        )  # fmt: skip
    assert asked == [[FanMask.OPEN_PERM, allowed], [FanMask.OPEN_PERM, denied]]
    assert results == ["opened", 1]


DNOTIFY = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGRTMIN)
fcntl.fcntl(fd, fcntl.F_NOTIFY, getattr(fcntl, sys.argv[2]) | fcntl.DN_MULTISHOT)
print("watching", flush=True)
while signal.sigtimedwait([signal.SIGRTMIN], 20):
    print("reported", flush=True)
"""


@MODES
@pytest.mark.parametrize(
    ("event", "step"),
    [
        ("DN_CREATE", lambda base: (base / "new").touch()),
        ("DN_MODIFY", lambda base: append(base / "file")),
        ("DN_ATTRIB", lambda base: (base / "file").chmod(0o600)),
        ("DN_DELETE", lambda base: (base / "file").unlink()),
        pytest.param(
            "DN_RENAME",
            lambda base: (base / "file").rename(base / "new"),
            marks=pytest.mark.patch("rename-one-event"),
        ),
    ],
)
def test_dnotify_sends_its_signal(guest: Guest, share: Share, event: str, step: HostScript) -> None:
    (share.host / "file").touch()
    process = guest.spawn("python3", "-c", DNOTIFY, share.guest, event)
    try:
        assert process.lines(count=1) == ["watching"]
        step(share.host)
        assert process.lines(count=1) == ["reported"]
    finally:
        process.stop()
