# SPDX-License-Identifier: Apache-2.0
"""A daemon that is killed and started again, whose guest goes on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
    fsnotify_wait_in,
)
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.daemon_guest import ROOT, Asked, MountedGuest, lock_request, open_file
from tests.support.daemon_process import USER, error_line, wait_until
from tests.support.event_records import decode_all
from tests.support.frontend import FrontEndClosed
from tests.support.hung_file_system import HungFileSystem
from tests.support.mortal_daemon import FunctionCrash, MortalDaemon, mortal
from tests.support.sandboxes import SANDBOXES

#: Inodes by handle, and by path.
FINDING = ["prefer", "never"]


@pytest.fixture(params=SANDBOXES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MortalDaemon]:
    """Yield a daemon in each sandbox, whose VMM need not connect again."""
    with mortal(
        tmp_path, f"--sandbox={request.param}", "--xattr", "--posix-lock", "--flock", "--tag=t"
    ) as host:
        yield host


@pytest.fixture(params=FINDING)
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MortalDaemon]:
    """Yield a daemon that finds inodes in each way, and whose VMM connects again."""
    with mortal(
        tmp_path,
        "--sandbox=none",
        f"--inode-file-handles={request.param}",
        "--posix-lock",
        "--flock",
    ) as host:
        host.reconnect = True
        yield host


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Iterator[MountedGuest]:
    """Yield a guest with the notification queue that has mounted the share."""
    name = "host" if "host" in request.fixturenames else "plain"
    guest = MountedGuest(
        request.getfixturevalue(name).daemon, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY
    )
    yield guest
    guest.leave()


def test_open_files_and_nodeids_outlive_the_daemon(host: MortalDaemon, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    guest.write(nodeid, fh, 0, b"before")
    (host.shared / "dir").mkdir()
    directory = guest.lookup(ROOT, b"dir").nodeid
    inner, inner_fh = guest.create(directory, b"inner")
    guest.release(inner, inner_fh)
    for _ in range(2):
        host.restart(guest)
        assert guest.read(nodeid, fh, 0, 100) == b"before"
        assert guest.lookup(ROOT, b"file").nodeid == nodeid
        assert guest.lookup(ROOT, b"dir").nodeid == directory
        assert guest.lookup(directory, b"inner").nodeid == inner
    assert guest.write(nodeid, fh, 6, b" and after") == 10
    assert (host.shared / "file").read_bytes() == b"before and after"
    assert guest.fails(Opcode.RELEASE, inner, wire.release_in.pack(fh=inner_fh)) == errno.EBADF
    guest.release(nodeid, fh)
    host.restart(guest)
    # One lookup of CREATE, two of LOOKUP.
    guest.front_end.forget(nodeid, 2)
    host.restart(guest)
    assert guest.lookup(ROOT, b"file").nodeid == nodeid
    guest.front_end.forget(nodeid, 2)
    host.restart(guest)
    # No number is given twice.
    assert guest.lookup(ROOT, b"file").nodeid > inner
    assert guest.create(ROOT, b"new")[1] > inner_fh


def test_daemon_that_was_stopped_leaves_the_same(host: MortalDaemon, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    guest.watch(ROOT, Event.CREATE)
    assert host.daemon.end() == 0
    host.start()
    host.go_on(guest)
    assert guest.write(nodeid, fh, 0, b"after") == 5
    assert (host.shared / "file").read_bytes() == b"after"
    assert guest.events(1)[0].mask == Event.WATCHES_LOST


def test_daemon_whose_supervisor_is_killed_leaves_the_same(
    host: MortalDaemon, guest: MountedGuest
) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    serving = host.daemon.pid
    host.daemon.process.kill()
    host.daemon.wait()
    # The one that serves gets SIGTERM.
    wait_until(lambda: not Path(f"/proc/{serving}").exists(), "the daemon's end")
    host.start()
    host.go_on(guest)
    assert guest.write(nodeid, fh, 0, b"after") == 5


def test_daemon_that_has_replaced_another_one_leaves_the_same(
    host: MortalDaemon, guest: MountedGuest
) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    former = host.daemon
    host.replace()
    assert former.wait() == 0
    other, other_fh = guest.create(ROOT, b"other")
    host.restart(guest)
    for number, handle in ((nodeid, fh), (other, other_fh)):
        assert guest.write(number, handle, 0, b"data") == 4
    assert guest.lookup(ROOT, b"other").nodeid == other
    former = host.daemon
    host.replace()
    assert former.wait() == 0
    assert guest.read(nodeid, fh, 0, 9) == b"data"


def test_renamed_directories_are_found(plain: MortalDaemon, guest: MountedGuest) -> None:
    (plain.shared / "a" / "b").mkdir(parents=True)
    (plain.shared / "a" / "b" / "file").write_bytes(b"data")
    a = guest.lookup(ROOT, b"a").nodeid
    b = guest.lookup(a, b"b").nodeid
    file = guest.lookup(b, b"file").nodeid
    fh = open_file(guest, file)
    guest.ask(Opcode.RENAME, ROOT, wire.rename_in.pack(newdir=ROOT) + b"a\0new\0")
    guest.ask(Opcode.RENAME, b, wire.rename_in.pack(newdir=a) + b"file\0moved\0")
    plain.restart(guest)
    assert guest.read(file, fh, 0, 10) == b"data"
    assert guest.lookup(a, b"moved").nodeid == file
    assert guest.lookup(ROOT, b"new").nodeid == a


def test_replaced_file_is_stale_and_never_another_one(
    plain: MortalDaemon, guest: MountedGuest
) -> None:
    path = plain.shared / "file"
    path.write_bytes(b"old")
    nodeid = guest.lookup(ROOT, b"file").nodeid
    fh = open_file(guest, nodeid)
    number = path.stat().st_ino
    plain.kill()
    path.unlink()
    # Until the file system gives the number again, if it does so.
    for attempt in range(100):
        path.with_name(f"other {attempt}").write_bytes(b"new")
        if path.with_name(f"other {attempt}").stat().st_ino == number:
            path.with_name(f"other {attempt}").rename(path)
            break
    else:
        path.write_bytes(b"new")
    plain.start()
    plain.go_on(guest)
    attributes = wire.getattr_in.pack()
    assert guest.fails(Opcode.GETATTR, nodeid, attributes, wire.attr_out.size) == errno.ESTALE
    read = wire.read_in.pack(fh=fh, size=10)
    assert guest.fails(Opcode.READ, nodeid, read, 10) == errno.EIO
    assert guest.fails(Opcode.FLUSH, nodeid, wire.flush_in.pack(fh=fh)) == errno.EIO
    guest.release(nodeid, fh)
    assert guest.lookup(ROOT, b"file").nodeid != nodeid


def test_deleted_open_file_is_an_error(plain: MortalDaemon, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"gone")
    guest.write(nodeid, fh, 0, b"data")
    guest.ask(Opcode.UNLINK, ROOT, b"gone\0")
    plain.restart(guest)
    assert guest.fails(Opcode.READ, nodeid, wire.read_in.pack(fh=fh, size=4), 4) == errno.EIO
    plain.restart(guest)
    assert guest.fails(Opcode.READ, nodeid, wire.read_in.pack(fh=fh, size=4), 4) == errno.EIO
    guest.release(nodeid, fh)
    assert guest.fails(Opcode.RELEASE, nodeid, wire.release_in.pack(fh=fh)) == errno.EBADF


def test_deleted_file_that_another_process_has_open_is_found(
    host: MortalDaemon, guest: MountedGuest
) -> None:
    nodeid, fh = guest.create(ROOT, b"gone")
    guest.write(nodeid, fh, 0, b"data")
    with (host.shared / "gone").open("rb"):
        guest.ask(Opcode.UNLINK, ROOT, b"gone\0")
        host.restart(guest)
        assert guest.read(nodeid, fh, 0, 100) == b"data"


def test_watches_are_requested_again(host: MortalDaemon, guest: MountedGuest) -> None:
    guest.watch(ROOT, Event.CREATE)
    host.restart(guest)
    assert [each.mask for each in guest.events(1)] == [Event.WATCHES_LOST]
    guest.watch(ROOT, Event.CREATE)
    (host.shared / "file").touch()
    assert [each.name for each in guest.events(1)] == [b"file"]


def test_wait_request_is_answered_by_the_next_daemon(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        guest = MountedGuest(host.daemon, notification=False, extra_flags=FUSE_HAS_FSNOTIFY_WAIT)
        asked = Asked(guest, Opcode.FSNOTIFY_WAIT, 0, fsnotify_wait_in.pack(size=4080), 4080)
        host.restart(guest)
        error, payload = asked.answer()
        assert error == 0
        assert [each.mask for each in decode_all(payload)] == [Event.WATCHES_LOST]
        guest.leave()


def test_locks_are_taken_again(host: MortalDaemon, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    other_fh = open_file(guest, nodeid)
    flocked, flocked_fh = guest.create(ROOT, b"flocked")
    guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
    guest.ask(
        Opcode.SETLK,
        flocked,
        wire.lk_in.pack(fh=flocked_fh, lk_type=fcntl.F_WRLCK, lk_flags=wire.LK_FLOCK),
    )
    pending = Asked(guest, Opcode.SETLKW, nodeid, lock_request(other_fh, 2), 0)
    host.restart(guest)
    # The request after it is served when the session goes on.
    guest.front_end.forget(0)
    with (host.shared / "file").open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (host.shared / "flocked").open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unlock = Asked(guest, Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK), 0)
    assert unlock.answer() == (0, b"")
    assert pending.answer() == (0, b"")
    assert guest.fails(Opcode.SETLK, nodeid, lock_request(fh, 3)) == errno.EAGAIN


@pytest.mark.root
def test_locks_on_a_server_s_file_system_are_taken_again(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "file").write_bytes(b"content")
    with mortal(tmp_path, "--sandbox=none", "--posix-lock", "--flock") as host:
        (host.shared / "mounted").mkdir()
        server = HungFileSystem(behind, host.shared / "mounted")
        try:
            guest = MountedGuest(host.daemon)
            nodeid = guest.lookup(guest.lookup(ROOT, b"mounted").nodeid, b"file").nodeid
            fh, other_fh = open_file(guest, nodeid), open_file(guest, nodeid)
            guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
            flock = wire.lk_in.pack(fh=fh, lk_type=fcntl.F_WRLCK, lk_flags=wire.LK_FLOCK)
            guest.ask(Opcode.SETLK, nodeid, flock)
            for _ in range(2):
                host.restart(guest)
                assert guest.read(nodeid, fh, 0, 10) == b"content"
                assert guest.fails(Opcode.SETLK, nodeid, lock_request(other_fh, 2)) == errno.EAGAIN
                with (host.shared / "mounted/file").open("r+") as file:
                    with pytest.raises(BlockingIOError):
                        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with pytest.raises(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            guest.leave()
        finally:
            server.close()


@pytest.mark.root
def test_files_of_a_mount_in_the_share_are_found(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        place = host.shared / "mounted"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        try:
            (place / "file").write_bytes(b"content")
            (place / "other").touch()
            guest = MountedGuest(host.daemon)
            directory = guest.lookup(ROOT, b"mounted").nodeid
            nodeid = guest.lookup(directory, b"file").nodeid
            fh = open_file(guest, nodeid)
            for _ in range(2):
                host.restart(guest)
                assert guest.read(nodeid, fh, 0, 10) == b"content"
                assert guest.lookup(directory, b"file").nodeid == nodeid
                assert guest.lookup(directory, b"other").nodeid
            guest.leave()
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def test_file_whose_lock_another_process_has_taken_is_an_error(
    host: MortalDaemon, guest: MountedGuest
) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    other_fh = open_file(guest, nodeid)
    guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
    host.kill()
    with (host.shared / "file").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host.start()
        host.go_on(guest)
        read = wire.read_in.pack(fh=fh, size=10)
        assert guest.fails(Opcode.READ, nodeid, read, 10) == errno.EIO
        assert guest.fails(Opcode.SETLK, nodeid, lock_request(fh, 1)) == errno.EIO
        # Without a lock there is none to lose.
        assert guest.read(nodeid, other_fh, 0, 10) == b""
    # It stays lost, though the file is there, and nobody has a lock.
    host.restart(guest)
    assert guest.fails(Opcode.READ, nodeid, read, 10) == errno.EIO
    assert guest.read(nodeid, other_fh, 0, 10) == b""
    guest.release(nodeid, fh)


def test_new_guest_begins_a_session_of_its_own(plain: MortalDaemon) -> None:
    guest = MountedGuest(plain.daemon)
    nodeid, _ = guest.create(ROOT, b"file")
    plain.kill()
    guest.leave()
    plain.start()
    guest = MountedGuest(plain.daemon)
    assert (
        guest.fails(Opcode.GETATTR, nodeid, wire.getattr_in.pack(), wire.attr_out.size)
        == errno.ESTALE
    )
    assert guest.names(ROOT)[b"file"] == 0
    other, _ = guest.create(ROOT, b"other")
    plain.restart(guest)
    assert guest.lookup(ROOT, b"other").nodeid == other
    guest.leave()


class Once:
    """A request that must not be done twice."""

    def __init__(
        self,
        opcode: Opcode,
        payload: Callable[[MountedGuest, Path], tuple[int, bytes]],
        room: int,
        done: Callable[[Path], bool],
    ) -> None:
        """``payload``: makes the state before; returns nodeid and payload of the request."""
        self.opcode = opcode
        self.payload = payload
        self.room = room
        self.done = done


def _of_root(payload: bytes) -> Callable[[MountedGuest, Path], tuple[int, bytes]]:
    return lambda _guest, _shared: (ROOT, payload)


def _with_file(payload: bytes) -> Callable[[MountedGuest, Path], tuple[int, bytes]]:
    def prepare(guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
        (shared / "file").write_bytes(b"data")
        guest.lookup(ROOT, b"file")
        return ROOT, payload

    return prepare


def _exchanged(guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
    (shared / "file").write_bytes(b"data")
    (shared / "other").write_bytes(b"more")
    return ROOT, wire.rename2_in.pack(newdir=ROOT, flags=2) + b"file\0other\0"


def _link(guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
    (shared / "file").write_bytes(b"data")
    nodeid = guest.lookup(ROOT, b"file").nodeid
    return ROOT, wire.link_in.pack(oldnodeid=nodeid) + b"name\0"


def _rmdir(_guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
    (shared / "dir").mkdir()
    return ROOT, b"dir\0"


def _append(guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
    (shared / "file").write_bytes(b"data")
    nodeid = guest.lookup(ROOT, b"file").nodeid
    fh = open_file(guest, nodeid, os.O_RDWR | os.O_APPEND)
    return nodeid, wire.write_in.pack(fh=fh, offset=4, size=5) + b" more"


def _removexattr(_guest: MountedGuest, shared: Path) -> tuple[int, bytes]:
    os.setxattr(shared, "user.name", b"value")
    return ROOT, b"user.name\0"


ENTRY = wire.entry_out.size
EXCLUSIVE = os.O_RDWR | os.O_CREAT | os.O_EXCL
ONCE = {
    "mkdir": Once(
        Opcode.MKDIR, _of_root(wire.mkdir_in.pack(mode=0o755) + b"new\0"), ENTRY,
        lambda shared: (shared / "new").is_dir(),
    ),
    "mknod": Once(
        Opcode.MKNOD, _of_root(wire.mknod_in.pack(mode=stat.S_IFREG | 0o644) + b"new\0"), ENTRY,
        lambda shared: (shared / "new").is_file(),
    ),
    "symlink": Once(
        Opcode.SYMLINK, _of_root(b"new\0target\0"), ENTRY,
        lambda shared: (shared / "new").is_symlink(),
    ),
    "create": Once(
        Opcode.CREATE, _of_root(wire.create_in.pack(flags=EXCLUSIVE, mode=0o100644) + b"new\0"),
        ENTRY + wire.open_out.size, lambda shared: (shared / "new").is_file(),
    ),
    "link": Once(Opcode.LINK, _link, ENTRY, lambda shared: (shared / "name").stat().st_nlink == 2),
    "unlink": Once(
        Opcode.UNLINK, _with_file(b"file\0"), 0, lambda shared: not (shared / "file").exists()
    ),
    "rmdir": Once(Opcode.RMDIR, _rmdir, 0, lambda shared: not (shared / "dir").exists()),
    "rename": Once(
        Opcode.RENAME, _with_file(wire.rename_in.pack(newdir=ROOT) + b"file\0new\0"), 0,
        lambda shared: (shared / "new").read_bytes() == b"data"
        and not (shared / "file").exists(),
    ),
    "exchange": Once(
        Opcode.RENAME2, _exchanged, 0,
        lambda shared: (shared / "other").read_bytes() == b"data"
        and (shared / "file").read_bytes() == b"more",
    ),
    "append": Once(
        Opcode.WRITE, _append, wire.write_out.size,
        lambda shared: (shared / "file").read_bytes() == b"data more",
    ),
    "removexattr": Once(
        Opcode.REMOVEXATTR, _removexattr, 0, lambda shared: not os.listxattr(shared)
    ),
}  # fmt: skip
#: Where daemons are killed, one after the other, while they serve one request.
POINTS = [
    FunctionCrash("before", "handle"),
    FunctionCrash("after", "intend"),
    FunctionCrash("before", "commit"),
    FunctionCrash("before", "use"),
    FunctionCrash("after", "use"),
]


@pytest.mark.parametrize("name", ONCE)
def test_request_in_flight_is_done_once(tmp_path: Path, name: str) -> None:
    once = ONCE[name]
    # What changes nothing that the journal has is not written there.
    points = [point for point in POINTS if point.place != "commit" or once.room >= ENTRY]
    with mortal(tmp_path, "--sandbox=none", "--xattr", crash=points[0]) as host:
        guest = MountedGuest(host.daemon)
        nodeid, payload = once.payload(guest, host.shared)
        asked = Asked(guest, once.opcode, nodeid, payload, once.room)
        for point in points[1:]:
            host.killed()
            host.start(crash=point)
        host.killed()
        host.start()
        error, _ = asked.answer()
        assert (error, once.done(host.shared)) == (0, True)
        # The ring goes on.
        assert guest.names(ROOT)
        guest.leave()


def test_name_that_another_process_has_made_is_no_success(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none", crash=FunctionCrash("after", "intend")) as host:
        guest = MountedGuest(host.daemon)
        (host.shared / "new").mkdir()
        made = (host.shared / "new").stat().st_ctime_ns
        wait_until(lambda: time.clock_gettime_ns(5) > made, "a tick of the clock")
        asked = Asked(guest, Opcode.MKDIR, ROOT, wire.mkdir_in.pack(mode=0o755) + b"new\0", ENTRY)
        host.killed()
        host.start()
        host.go_on(guest)
        assert asked.answer()[0] == errno.EEXIST
        guest.leave()


def sockets(pid: int) -> set[str]:
    """Return the sockets that a process has open."""
    links = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            links.add(str(path.readlink()))
    return {link for link in links if link.startswith("socket:")}


def test_name_that_another_process_made_without_a_daemon_is_no_success(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none", crash=FunctionCrash("after", "intend")) as host:
        guest = MountedGuest(host.daemon)
        store = host.store_pid()
        assert store is not None
        # The VMM's connection among them; the other end of the daemon's own is not.
        of_daemon = sockets(host.daemon.pid)
        asked = Asked(guest, Opcode.MKDIR, ROOT, wire.mkdir_in.pack(mode=0o755) + b"new\0", ENTRY)
        host.killed()
        wait_until(
            # It listens still.
            lambda: len(sockets(store) - of_daemon) == 1,
            "the descriptor store's notice",
        )
        ended = time.time_ns()
        wait_until(lambda: time.clock_gettime_ns(5) > ended, "a tick of the clock")
        (host.shared / "new").mkdir()
        host.start(crash=FunctionCrash("before", "handle"))
        # What the end of the next one is does not matter.
        host.killed()
        host.start()
        assert asked.answer()[0] == errno.EEXIST
        guest.leave()


def test_new_file_is_not_removed_for_the_one_before(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none", crash=FunctionCrash("after", "handle")) as host:
        (host.shared / "file").touch()
        guest = MountedGuest(host.daemon)
        asked = Asked(guest, Opcode.UNLINK, ROOT, b"file\0", 0)
        host.killed()
        assert not (host.shared / "file").exists()
        (host.shared / "file").write_bytes(b"of the host")
        host.start()
        host.go_on(guest)
        assert asked.answer()[0] == 0
        assert (host.shared / "file").read_bytes() == b"of the host"
        guest.leave()


def test_new_file_is_not_overwritten_for_the_one_before(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none", crash=FunctionCrash("after", "handle")) as host:
        (host.shared / "file").write_bytes(b"of the guest")
        guest = MountedGuest(host.daemon)
        payload = wire.rename_in.pack(newdir=ROOT) + b"file\0renamed\0"
        asked = Asked(guest, Opcode.RENAME, ROOT, payload, 0)
        host.killed()
        (host.shared / "file").write_bytes(b"of the host")
        host.start()
        host.go_on(guest)
        assert asked.answer()[0] == 0
        assert (host.shared / "file").read_bytes() == b"of the host"
        assert (host.shared / "renamed").read_bytes() == b"of the guest"
        guest.leave()


@pytest.mark.parametrize("opcode", [Opcode.UNLINK, Opcode.RENAME])
def test_file_that_was_not_there_is_not_taken_for_one_that_was(
    tmp_path: Path, opcode: Opcode
) -> None:
    with mortal(tmp_path, "--sandbox=none", crash=FunctionCrash("after", "intend")) as host:
        guest = MountedGuest(host.daemon)
        renamed = wire.rename_in.pack(newdir=ROOT) + b"file\0renamed\0"
        payload = b"file\0" if opcode == Opcode.UNLINK else renamed
        asked = Asked(guest, opcode, ROOT, payload, 0)
        host.killed()
        (host.shared / "file").write_bytes(b"of the host")
        host.start()
        host.go_on(guest)
        assert asked.answer()[0] == errno.ENOENT
        assert (host.shared / "file").read_bytes() == b"of the host"
        guest.leave()


def test_lookup_in_flight_counts_once(tmp_path: Path) -> None:
    points = [
        FunctionCrash("before", "handle"),
        FunctionCrash("before", "commit"),
        FunctionCrash("after", "commit"),
        FunctionCrash("before", "use"),
    ]
    with mortal(tmp_path, "--sandbox=none", crash=points[0]) as host:
        (host.shared / "file").touch()
        guest = MountedGuest(host.daemon)
        asked = Asked(guest, Opcode.LOOKUP, ROOT, b"file\0", ENTRY)
        for point in points[1:]:
            host.killed()
            host.start(crash=point)
        host.killed()
        host.start()
        error, reply = asked.answer()
        nodeid = wire.entry_out.unpack_from(reply).nodeid
        assert error == 0 and guest.lookup(ROOT, b"file").nodeid == nodeid
        guest.front_end.forget(nodeid, 1)
        assert guest.lookup(ROOT, b"file").nodeid == nodeid
        guest.front_end.forget(nodeid, 2)
        assert guest.lookup(ROOT, b"file").nodeid != nodeid
        guest.leave()


@pytest.mark.parametrize(
    "point",
    [
        FunctionCrash("after", "hold"),
        FunctionCrash("before", "complete"),
        FunctionCrash("after", "complete"),
    ],
)
def test_deferred_request_is_answered_once(tmp_path: Path, point: FunctionCrash) -> None:
    with mortal(tmp_path, "--sandbox=none", "--posix-lock", crash=point) as host:
        guest = MountedGuest(host.daemon)
        nodeid, fh = guest.create(ROOT, b"file")
        other_fh = open_file(guest, nodeid)
        guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
        pending = Asked(guest, Opcode.SETLKW, nodeid, lock_request(other_fh, 2), 0)
        if point.place == "complete":
            guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK))
        host.killed()
        host.start()
        host.go_on(guest)
        if point.place != "complete":
            guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK))
        assert pending.answer() == (0, b"")
        assert guest.lookup(ROOT, b"file").nodeid == nodeid
        guest.leave()


#: How often the daemon is killed at any moment.
KILLS = int(os.environ.get("FARWATCH_KILLS", "12"))


class Model:
    """What the guest does to the share, one operation after the other, and what it expects."""

    def __init__(self, guest: MountedGuest, random: Random) -> None:
        self._guest = guest
        self._random = random
        self.files: dict[bytes, bytes] = {}
        self.directories: set[bytes] = set()
        self._count = 0
        self._nodeid, self._fh = guest.create(ROOT, b"log")
        guest.release(self._nodeid, self._fh)
        self._fh = open_file(guest, self._nodeid, os.O_RDWR | os.O_APPEND)
        self.log = b""

    def request(self) -> Asked:
        """Send an operation, and change the model as if it were done."""
        operation = self._random.choice(
            [self._create, self._append, self._mkdir]
            + [self._rename, self._unlink] * bool(self.files)
            + [self._rmdir] * bool(self.directories)
        )
        return operation()

    def _new(self) -> bytes:
        self._count += 1
        return b"name %d" % self._count

    def _create(self) -> Asked:
        name = self._new()
        self.files[name] = b""
        payload = wire.create_in.pack(flags=EXCLUSIVE, mode=0o100644) + name + b"\0"
        return Asked(self._guest, Opcode.CREATE, ROOT, payload, ENTRY + wire.open_out.size)

    def _append(self) -> Asked:
        data = b"%d\n" % self._random.randrange(1 << 30)
        payload = wire.write_in.pack(fh=self._fh, offset=len(self.log), size=len(data)) + data
        self.log += data
        return Asked(self._guest, Opcode.WRITE, self._nodeid, payload, wire.write_out.size)

    def _mkdir(self) -> Asked:
        name = self._new()
        self.directories.add(name)
        payload = wire.mkdir_in.pack(mode=0o755) + name + b"\0"
        return Asked(self._guest, Opcode.MKDIR, ROOT, payload, ENTRY)

    def _rename(self) -> Asked:
        name, new = self._random.choice(sorted(self.files)), self._new()
        self.files[new] = self.files.pop(name)
        payload = wire.rename_in.pack(newdir=ROOT) + name + b"\0" + new + b"\0"
        return Asked(self._guest, Opcode.RENAME, ROOT, payload, 0)

    def _unlink(self) -> Asked:
        name = self._random.choice(sorted(self.files))
        del self.files[name]
        return Asked(self._guest, Opcode.UNLINK, ROOT, name + b"\0", 0)

    def _rmdir(self) -> Asked:
        name = self._random.choice(sorted(self.directories))
        self.directories.discard(name)
        return Asked(self._guest, Opcode.RMDIR, ROOT, name + b"\0", 0)

    def check(self, shared: Path) -> None:
        """Compare the model with the host's directory."""
        found = {os.fsencode(path.name): path for path in shared.iterdir()}
        assert found.keys() == self.files.keys() | self.directories | {b"log"}
        assert all(found[name].is_dir() for name in self.directories)
        assert found[b"log"].read_bytes() == self.log


def test_killed_at_any_moment(plain: MortalDaemon, guest: MountedGuest) -> None:
    seed = int(os.environ.get("FARWATCH_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
    random = Random(seed)
    model = Model(guest, random)
    for number in range(KILLS):
        for _ in range(random.randrange(20)):
            assert model.request().answer()[0] == 0
        asked = model.request()
        until = time.monotonic() + random.random() * 0.001
        while time.monotonic() < until:
            pass
        plain.restart(guest)
        assert asked.answer()[0] == 0, f"seed {seed}, kill {number}"
        model.check(plain.shared)


# The directory


def reason(host: MortalDaemon) -> str:
    """Return what the daemon logged of the state that it does not use."""
    host.daemon.end()
    lines = [line for line in host.daemon.log.splitlines() if "starting afresh" in line]
    assert len(lines) == 1, host.daemon.log
    return lines[0]


def journal(host: MortalDaemon) -> Path:
    """Return the file that has the journal."""
    (found,) = [path for path in host.state.glob("journal.*") if path.stat().st_size]
    return found


def test_damaged_table_of_requests_ends_the_connection(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        guest = MountedGuest(host.daemon)
        guest.create(ROOT, b"file")
        host.kill()
        os.truncate(host.state / "in-flight", 1000)
        host.start()
        # Where the rings go on is not known.
        with pytest.raises((FrontEndClosed, BrokenPipeError)):
            guest.front_end.ask_number(Request.GET_FEATURES)
        guest.leave()
        guest = MountedGuest(host.daemon)
        assert guest.lookup(ROOT, b"file").nodeid
        assert "the table of its requests is damaged" in reason(host)
        guest.leave()
        host.start()


def _truncated(path: Path) -> None:
    os.truncate(path, 100)


def _changed_at(position: int, data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(data)

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_truncated, "longer than its file"),
        (_changed_at(0, b"X"), "does not begin as one does"),
        (_changed_at(8, b"\x63"), "it has version 99, 1 is supported"),
        (_changed_at(16, b"another boot...."), "before the host was started"),
        (_changed_at(48, b"\xff" * 8), "longer than its file"),
        (_changed_at(120, b"\xff" * 20), "a checksum in its journal is wrong"),
        (_changed_at(56, b"\xff\xff\xff\x7f"), "in the middle of a transaction"),
    ],
)
def test_damaged_state_is_not_used(
    tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        guest = MountedGuest(host.daemon)
        guest.create(ROOT, b"file")
        host.kill()
        damage(journal(host))
        host.start()
        host.go_on(guest)
        # The session is another one: the guest has to mount the share again.
        assert guest.fails(Opcode.LOOKUP, ROOT, b"file\0", ENTRY) == errno.EIO
        guest.mount()
        assert guest.lookup(ROOT, b"file").nodeid
        guest.leave()
        assert expected in reason(host)
        host.start()


def test_state_of_a_daemon_with_other_options_is_not_used(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        guest = MountedGuest(host.daemon)
        guest.create(ROOT, b"file")
        host.kill()
        guest.leave()
        host.start("--tag=another")
        assert "other options" in reason(host)
        host.start()


def refused(host: MortalDaemon, *options: str) -> str:
    """Start a daemon that refuses to serve; return its error."""
    daemon = host.launch(*options)
    assert daemon.wait() == 1
    return error_line(daemon.log)


def test_two_daemons_do_not_use_one_state(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        line = refused(host, f"--socket-path={tmp_path / 'other'}")
        assert line == f"farwatchd: --state-dir={host.state}: another daemon uses it"


def test_unusable_state_directories_are_refused(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        where = f"--socket-path={tmp_path / 'other'}"
        place = tmp_path / "place"
        option = f"--state-dir={place}"
        place.touch()
        assert "Not a directory" in refused(host, where, option)
        place.unlink()
        place.mkdir(0o777)
        place.chmod(0o777)
        assert "others may write it; use chmod go-w" in refused(host, where, option)
        place.chmod(0o700)
        (place / "in-flight").symlink_to("/etc/passwd")
        assert "Too many levels of symbolic links" in refused(host, where, option)
        (place / "in-flight").unlink()
        os.link(host.state / "in-flight", place / "in-flight")
        assert "no regular file of its own" in refused(host, where, option)
        inside = host.shared / "state"
        assert "in the shared directory" in refused(host, where, f"--state-dir={inside}")
        missing = tmp_path / "a" / "b"
        assert "No such file or directory" in refused(host, where, f"--state-dir={missing}")


@pytest.mark.root
def test_state_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    with mortal(tmp_path, "--sandbox=none") as host:
        place = tmp_path / "place"
        place.mkdir(0o700)
        os.chown(place, USER.pw_uid, USER.pw_gid)
        where = f"--socket-path={tmp_path / 'other'}"
        line = refused(host, where, f"--state-dir={place}")
        assert f"user {USER.pw_uid} owns it, and not user 0" in line


@pytest.mark.root
def test_full_and_readonly_file_systems_are_said(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    with mortal(tmp_path, "--sandbox=none") as host:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", place], check=True
        )
        try:
            host.kill()
            host.start(f"--state-dir={place}")
            guest = MountedGuest(host.daemon)
            (place / "fill").write_bytes(bytes(os.statvfs(place).f_bavail * 4096))
            # Until the journal needs more room.
            nodeid, fh = guest.create(ROOT, b"file")
            for _ in range(6000):
                guest.front_end.request(Opcode.LOOKUP, ROOT, b"file\0", ENTRY)
            assert guest.write(nodeid, fh, 0, b"data") == 4
            host.kill()
            assert host.daemon.log.count("cannot be kept any more: No space left on device") == 1
            guest.leave()
            # The former journal has made room.
            (place / "more").write_bytes(bytes(os.statvfs(place).f_bavail * 4096))
            assert "there is no room for the state" in refused(host, f"--state-dir={place}")
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            assert "Read-only file system" in refused(host, f"--state-dir={place}")
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
        host.start()
