# SPDX-License-Identifier: Apache-2.0
"""Cache coherence: a program that has read an event finds the change, whatever was cached.

The guest fills its caches, the host makes one change, and a thread of the guest that waits for the
event looks immediately: by stat, by open and read, or by readdir. It must find what the host finds.
"""

import dataclasses
import errno
import inspect
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import HostScript, In
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import SharedVm
from farwatch_harness.vm.testbed import Share, TestbedSpec

pytestmark = pytest.mark.patch("notifications")

LIMIT = 10.0
POLICIES = ("never", "auto", "always")
WAYS = ("stat", "read", "list")
#: The names that are looked at: those that are there at first, and those that come.
NAMES = ("file", "other", "dir", "dir/inside", "new", "dir/new", "empty")


def look(base: str, how: str, names: list[str]) -> list[Any]:
    """Return what is found at each of `names` below `base`, as plain data.

    It runs in the guest and on the host.
    """
    found: list[Any] = []
    for name in names:
        path = f"{base}/{name}"
        try:
            at = os.lstat(path)
            if how == "stat":
                what: Any = [
                    at.st_ino,
                    at.st_mode,
                    at.st_nlink,
                    at.st_size,
                    at.st_mtime_ns,
                    at.st_ctime_ns,
                ]
            elif how == "list":
                # List before any other call, which could have the directory looked up again.
                what = sorted(os.listdir(path)) if stat.S_ISDIR(at.st_mode) else None  # noqa: PTH208
            elif stat.S_ISREG(at.st_mode):
                fd = os.open(path, os.O_RDONLY)
                what = os.read(fd, 1 << 20).decode()
                os.close(fd)
            else:
                what = os.readlink(path) if stat.S_ISLNK(at.st_mode) else None  # noqa: PTH115
        except OSError as error:
            what = errno.errorcode[error.errno or 0]
        found.append(what)
    return found


LOOK = "import ctypes, errno, mmap, os, select, stat\nfrom typing import Any\n" + inspect.getsource(
    look
)
#: Add watches, then fill the caches.
PRIME = (
    LOOK
    + """
def main(base, names, watched, mask):
    fd = libc.inotify_init1(os.O_CLOEXEC)
    for path in watched:
        if libc.inotify_add_watch(fd, f"{base}/{path}".encode(), ctypes.c_uint32(mask)) < 0:
            raise OSError(ctypes.get_errno(), path)
    return [fd, {how: look(base, how, names) for how in ("list", "read", "stat")}]
"""
)
#: Wait for one event and look immediately.
WAIT = (
    LOOK
    + """
def main(fd, base, names, how, limit):
    if not select.select([fd], [], [], limit)[0]:
        return "no event"
    os.read(fd, 4096)
    return look(base, how, names)
"""
)
#: Map a file and keep it open, wait for an event, and read through the mapping and the descriptor.
MAP = """
import ctypes, mmap, os, select
def main(path, mask, limit, started):
    file = os.open(path, os.O_RDONLY)
    mapping = mmap.mmap(file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    before = mapping[:7].decode()
    fd = libc.inotify_init1(os.O_CLOEXEC)
    if libc.inotify_add_watch(fd, path.encode(), ctypes.c_uint32(mask)) < 0:
        raise OSError(ctypes.get_errno(), path)
    open(started, "w").close()
    try:
        if not select.select([fd], [], [], limit)[0]:
            return "no event"
        return [before, mapping[:7].decode(), os.pread(file, 100, 0).decode()]
    finally:
        mapping.close()
        os.close(file)
        os.close(fd)
"""
CLOSE = "import os\ndef main(fd):\n    os.close(fd)\n"


@dataclass(frozen=True)
class Change:
    """One change on the host, and the event that reports it.

    watched: the sets of paths to watch; each is tried by itself.
    unreported: names whose change the event does not report, such as a file's other names in
    unwatched directories.
    """

    run: HostScript
    event: In
    watched: tuple[tuple[str, ...], ...] = ((".",),)
    unreported: tuple[str, ...] = ()
    prepare: HostScript = lambda base: None


def write(name: str, text: str, flags: int) -> HostScript:
    def run(base: Path) -> None:
        fd = os.open(base / name, os.O_WRONLY | flags)
        os.write(fd, text.encode())
        os.close(fd)

    return run


def a_new_file(base: Path) -> None:
    (base / "new").write_text("later")


CHANGES = {
    "append": Change(write("file", "more", os.O_APPEND), In.MODIFY, ((".",), ("file",))),
    "overwrite with as much": Change(write("file", "CONTENT", 0), In.MODIFY, ((".",), ("file",))),
    "truncate": Change(lambda base: os.truncate(base / "file", 3), In.MODIFY, ((".",), ("file",))),
    "empty": Change(lambda base: os.truncate(base / "file", 0), In.MODIFY, ((".",), ("file",))),
    "grow": Change(lambda base: os.truncate(base / "file", 9000), In.MODIFY, ((".",), ("file",))),
    "chmod": Change(lambda base: (base / "file").chmod(0o600), In.ATTRIB, ((".",), ("file",))),
    "chmod of a directory": Change(
        lambda base: (base / "dir").chmod(0o700), In.ATTRIB, ((".",), ("dir",))
    ),
    "chmod of the watched directory": Change(lambda base: base.chmod(0o700), In.ATTRIB),
    "utimes": Change(lambda base: os.utime(base / "file", (7, 8)), In.ATTRIB, ((".",), ("file",))),
    "create": Change(lambda base: (base / "new").touch(), In.CREATE),
    "create below": Change(lambda base: (base / "dir" / "new").touch(), In.CREATE, (("dir",),)),
    "mkdir": Change(lambda base: (base / "new").mkdir(), In.CREATE),
    "symlink": Change(lambda base: (base / "new").symlink_to("file"), In.CREATE),
    "hard link": Change(
        lambda base: os.link(base / "file", base / "new"), In.CREATE, unreported=("file", "other")
    ),
    "hard link of a watched file": Change(
        lambda base: os.link(base / "file", base / "new"),
        In.ATTRIB,
        (("file",),),
        unreported=("new", "."),
    ),
    "unlink of the last name": Change(
        lambda base: (base / "dir" / "inside").unlink(), In.DELETE_SELF, (("dir/inside",),)
    ),
    "unlink": Change(lambda base: (base / "file").unlink(), In.DELETE),
    "unlink below": Change(lambda base: (base / "dir" / "inside").unlink(), In.DELETE, (("dir",),)),
    "rmdir": Change(lambda base: (base / "empty").rmdir(), In.DELETE),
    "rename, seen where it went": Change(
        lambda base: (base / "file").rename(base / "new"), In.MOVED_TO
    ),
    "rename, seen where it was": Change(
        lambda base: (base / "file").rename(base / "new"), In.MOVED_FROM
    ),
    "rename out": Change(
        lambda base: (base / "file").rename(base / "dir" / "new"), In.MOVED_FROM, ((".", "dir"),)
    ),
    "rename in": Change(
        lambda base: (base / "dir" / "inside").rename(base / "new"), In.MOVED_TO, ((".", "dir"),)
    ),
    "rename out of what is watched": Change(
        lambda base: (base / "file").rename(base / "dir" / "new"),
        In.MOVED_FROM,
        unreported=("dir", "dir/new"),
    ),
    "rename over": Change(
        lambda base: (base / "new").replace(base / "file"), In.MOVED_TO, prepare=a_new_file
    ),
    "rename a directory": Change(lambda base: (base / "dir").rename(base / "new"), In.MOVED_TO),
}


def fill(base: Path) -> None:
    """Create the files: "file" and "other" are two names of one file; all times are old."""
    (base / "file").write_text("content")
    os.link(base / "file", base / "other")
    (base / "dir").mkdir()
    (base / "empty").mkdir()
    (base / "dir" / "inside").write_text("inside")
    for path in (base / "file", base / "dir" / "inside", base / "dir", base / "empty", base):
        os.utime(path, (1, 2))


@pytest.fixture(scope="module", params=POLICIES)
def shared_vms(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, SharedVm]]:
    """Yield a shared VM for each cache policy, in place of the one that all tests share."""
    policy: str = request.param

    def make_spec(name: str) -> TestbedSpec:
        spec = environment.testbed_spec(f"{name}-{policy}", tmp_path_factory.mktemp("share"))
        return dataclasses.replace(spec, daemon_options=(f"--cache={policy}",))

    shared_vm = SharedVm(make_spec)
    yield {"others": shared_vm}
    shared_vm.close()


only_always = pytest.mark.parametrize("shared_vms", ["always"], indirect=True)


def see(
    guest: Guest, share: Share, change: Change, watched: tuple[str, ...], how: str
) -> tuple[Any, Any, Any]:
    """Return what is found before the change, after its event, and on the host.

    Without a watch, look right after the change.
    """
    share.host.mkdir()
    fill(share.host)
    change.prepare(share.host)
    base = str(share.guest)
    names = [name for name in (*NAMES, ".") if name not in change.unreported]
    fd, before = guest.python(PRIME, base, names, watched, int(change.event))
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = (
                pool.submit(guest.python, WAIT, fd, base, names, how, LIMIT, limit=LIMIT)
                if watched
                else None
            )
            change.run(share.host)
            after = (
                guest.python(LOOK + "main = look", base, how, names)
                if waiting is None
                else waiting.result()
            )
    finally:
        guest.python(CLOSE, fd)
    return before[how], after, look(str(share.host), how, names)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_reader_of_an_event_finds_the_change(
    guest: Guest, share: Share, change: Change, how: str
) -> None:
    for number, watched in enumerate(change.watched):
        part = Share(share.host / str(number), share.guest / str(number))
        _before, after, on_host = see(guest, part, change, watched, how)
        assert after == on_host, f"after an event of {watched!r}"


def test_open_file_and_its_mapping_show_the_change(guest: Guest, share: Share) -> None:
    fill(share.host)
    with ThreadPoolExecutor(1) as pool, guest.inotify() as listener:
        listener.add(share.guest, In.CREATE)
        waiting = pool.submit(
            guest.python,
            MAP,
            f"{share.guest}/file",
            int(In.MODIFY),
            LIMIT,
            f"{share.guest}/started",
            limit=LIMIT,
        )
        assert [event.name for event in listener.read(1)] == ["started"]
        write("file", "CONTENT and more", 0)(share.host)
        assert waiting.result() == ["content", "CONTENT", "CONTENT and more"]


def test_unlink_uses_the_current_link_count(guest: Guest, share: Share) -> None:
    """Unlink after the host has added or removed a link.

    Whether the unlink ends the watch depends on the names that remain.
    """
    for name in ("more", "less"):
        (share.host / name).touch()
    (share.host / "less too").hardlink_to(share.host / "less")
    with guest.inotify() as listener:
        more, less = [
            listener.add(share.guest / name, In.ATTRIB | In.DELETE_SELF)
            for name in ("more", "less")
        ]
        guest.shell(f"cd {share.guest}; stat more less")
        (share.host / "more too").hardlink_to(share.host / "more")
        (share.host / "less too").unlink()
        assert [event.wd for event in listener.read(2)] == [more, less]
        for name in ("more", "less"):
            # Unlink without the stat(2) that rm calls before.
            guest.os("unlink", f"{share.guest}/{name}")
        reported = [
            event for event in listener.read(quiet=0.5, limit=LIMIT) if event.mask != In.ATTRIB
        ]
        assert [(event.wd, event.mask) for event in reported] == [
            (less, In.DELETE_SELF),
            (less, In.IGNORED),
        ]
        (share.host / "more too").unlink()
        ended = [(event.wd, event.mask) for event in listener.read(3)]
        assert ended[1:] == [(more, In.DELETE_SELF), (more, In.IGNORED)]


@dataclass(frozen=True)
class NameTaken:
    """How the host takes a file's cached name `old` from it.

    event: what the file's watchers read of it, once or more often.
    left: the name by which the guest deletes the file then.
    """

    run: HostScript
    event: In
    left: str = "new"


def other_link_removed(base: Path) -> None:
    (base / "new").hardlink_to(base / "old")
    (base / "old").unlink()


NAMES_TAKEN = {
    "renamed": NameTaken(lambda base: (base / "old").rename(base / "new"), In.MOVE_SELF),
    "renamed to another directory": NameTaken(
        lambda base: (base / "old").rename(base / "dir" / "new"), In.MOVE_SELF, "dir/new"
    ),
    "linked and unlinked": NameTaken(other_link_removed, In.ATTRIB),
    "renamed twice": NameTaken(
        lambda base: ((base / "old").rename(base / "mid"), (base / "mid").rename(base / "new")),
        In.MOVE_SELF,
    ),
}


# In mode remote the last events of a file that the guest deletes may be missing.
@pytest.mark.patch("others-only")
@pytest.mark.parametrize("held", [False, True], ids=["cached", "open"])
@pytest.mark.parametrize("watch_first", [True, False], ids=["while watched", "before the watch"])
@pytest.mark.parametrize("taken", NAMES_TAKEN.values(), ids=NAMES_TAKEN.keys())
def test_name_that_the_host_took_does_not_hold_the_inode(
    guest: Guest, share: Share, taken: NameTaken, watch_first: bool, held: bool
) -> None:
    """Delete a file whose former name is cached. Its directory is not watched.

    held: a program of the guest has it open by the former name, and closes it at the end.
    """
    mask = In.ATTRIB | In.MOVE_SELF | In.DELETE_SELF
    for name in ("dir", "signals"):
        (share.host / name).mkdir()
    (share.host / "old").touch()
    guest.os("stat", f"{share.guest}/old")
    number = guest.os("open", f"{share.guest}/old", os.O_RDONLY) if held else None
    with guest.inotify() as listener:
        if watch_first:
            listener.add(share.guest / "old", mask)
            listener.add(share.guest / "signals", In.CREATE)
        taken.run(share.host)
        if watch_first:
            (share.host / "signals" / "taken").touch()
            assert {event.mask for event in listener.read(until="taken")} == {
                taken.event,
                In.CREATE,
            }
        else:
            listener.add(share.guest / taken.left, mask)
        guest.os("unlink", f"{share.guest}/{taken.left}")
        assert [event.mask for event in listener.read(1)] == [In.ATTRIB]
        if number is not None:
            guest.os("close", number)
        assert [event.mask for event in listener.read(2)] == [In.DELETE_SELF, In.IGNORED]


@only_always
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_without_a_watch_the_guest_finds_its_cache(
    guest: Guest, share: Share, change: Change
) -> None:
    """Show that the test above can fail.

    Missing names are not cached: the daemon does not allow the guest to.
    """
    stale = []
    for how in WAYS:
        before, after, on_host = see(
            guest, Share(share.host / how, share.guest / how), change, (), how
        )
        stale += [
            now
            for then, now, there in zip(before, after, on_host, strict=True)
            if now == then != there
        ]
    assert stale, "the guest finds this change even without a watch"
