# SPDX-License-Identifier: Apache-2.0
"""A guest migrates between daemons that run as processes, with all that it has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.virtqueue.dirty_log import PAGE_SIZE
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
    fsnotify_wait_in,
)
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, Asked, MountedGuest, lock_request, open_file
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.event_records import decode_all
from tests.support.frontend import OUT_HEADER
from tests.support.kernel_features import kernel_knows_paths
from tests.support.shared_log import Log, log_size, set_logging, share_log
from tests.support.state_migration import Migration, load_state, migrate

pytestmark = pytest.mark.root

LOCKS = ("--posix-lock", "--flock")
WAIT_FLAGS = FUSE_HAS_FSNOTIFY_WAIT | FUSE_FSNOTIFY_OTHERS_ONLY


class Hosts:
    """Two daemons: of one directory, or the second one of a copy of it."""

    def __init__(self, directory: Path, *options: str, sandbox: str = "none") -> None:
        self._directory = directory
        self._options = (*options, f"--sandbox={sandbox}")
        self.shared = directory / "shared"
        self.shared.mkdir()
        self._daemons: list[DaemonProcess] = []
        self.guests: list[MountedGuest] = []
        self.source = self.start()

    def start(
        self, *options: str, shared: Path | None = None, socket_path: Path | None = None
    ) -> DaemonProcess:
        """Start one more daemon."""
        if socket_path is None:
            socket_path = self._directory / f"socket {len(self._daemons)}"
        where = [f"--socket-path={socket_path}", f"--shared-dir={shared or self.shared}"]
        daemon = DaemonProcess(socket_path, [*where, "--keep-serving", *self._options, *options])
        self._daemons.append(daemon)
        daemon.wait_for("listening on")
        return daemon

    def copy(self) -> Path:
        """Return a copy of the shared directory, with other inode numbers."""
        copied = self._directory / "copy"
        # So that the numbers are not the same by chance on a file system that counts.
        (self._directory / "other").mkdir()
        subprocess.run(["cp", "-a", self.shared, copied], check=True)
        return copied

    def guest(self, notification: bool = False, flags: int = 0) -> MountedGuest:
        self.guests.append(MountedGuest(self.source, notification, flags))
        return self.guests[-1]

    def close(self, expected: str = "") -> None:
        for guest in self.guests:
            guest.leave()
        for daemon in self._daemons:
            if daemon.process.poll() is None:
                assert daemon.end() == 0
            assert "Traceback" not in daemon.log
            errors = [line for line in daemon.log.splitlines() if " ERROR " in line]
            assert all(expected and expected in line for line in errors), daemon.log

    def kill(self) -> None:
        for daemon in self._daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.wait()


@contextlib.contextmanager
def hosts_with(*options: str, sandbox: str = "none", expected: str = "") -> Iterator[Hosts]:
    directory = Path(tempfile.mkdtemp(prefix="farwatch-migration-"))
    hosts = Hosts(directory, *options, sandbox=sandbox)
    try:
        yield hosts
        hosts.close(expected)
    finally:
        hosts.kill()
        shutil.rmtree(directory)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with hosts_with() as hosts:
        yield hosts


def fill(hosts: Hosts) -> None:
    (hosts.shared / "dir").mkdir()
    (hosts.shared / "dir" / "file").write_text("content")
    (hosts.shared / "link").symlink_to("dir/file")


@pytest.mark.parametrize("sandbox", ["none", "namespace", "chroot"])
@pytest.mark.parametrize("mode", ["find-paths", "file-handles"])
@pytest.mark.parametrize("kept", ["prefer", "never"])
def test_inodes_and_open_files_go_on(sandbox: str, mode: str, kept: str) -> None:
    options = (f"--migration-mode={mode}", f"--inode-file-handles={kept}")
    with hosts_with(*options, sandbox=sandbox) as hosts:
        fill(hosts)
        guest = hosts.guest()
        directory = guest.lookup(ROOT, b"dir").nodeid
        file = guest.lookup(directory, b"file")
        link = guest.lookup(ROOT, b"link").nodeid
        fh = open_file(guest, file.nodeid)
        assert guest.write(file.nodeid, fh, 7, b" and more") == 9
        migrate(guest, hosts.start())
        assert guest.read(file.nodeid, fh, 0, 100) == b"content and more"
        assert guest.write(file.nodeid, fh, 0, b"C") == 1
        assert guest.ask(Opcode.READLINK, link, b"", 100) == b"dir/file"
        found = guest.lookup(directory, b"file")
        assert (found.nodeid, found.attr_ino) == (file.nodeid, file.attr_ino)
        assert guest.names(directory) == {b".": 0, b"..": 0, b"file": 0}
        guest.release(file.nodeid, fh)
        made, made_fh = guest.create(ROOT, b"new")
        # No number is given twice.
        assert made not in (directory, file.nodeid, link) and made_fh > fh
        assert (hosts.shared / "dir" / "file").read_text() == "Content and more"


@pytest.mark.parametrize("mode", ["find-paths", "file-handles"])
def test_deleted_open_file_goes_on_in_the_same_file_system(mode: str) -> None:
    with hosts_with(f"--migration-mode={mode}", expected="1 inodes are not found") as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        guest.write(nodeid, fh, 0, b"deleted")
        (hosts.shared / "file").unlink()
        # Another one of the same name is not taken for it.
        (hosts.shared / "file").write_text("another")
        migration = Migration(guest)
        if not kernel_knows_paths(hosts.shared):
            assert migration.arrive(hosts.start()) == 1
            migration.go_on()
            assert guest.read(nodeid, fh, 0, 100) == b"deleted"
            return
        assert migration.arrive(hosts.start()) == 0
        assert guest.read(nodeid, fh, 0, 100) == b"deleted"
        guest.write(nodeid, fh, 7, b" and written")
        assert guest.read(nodeid, fh, 0, 100) == b"deleted and written"
        assert (hosts.shared / "file").read_text() == "another"


def test_file_whose_name_was_removed_is_found_by_another_one() -> None:
    # The descriptor is that of the name by which the guest has found it.
    with hosts_with("--inode-file-handles=never") as hosts:
        fill(hosts)
        guest = hosts.guest()
        directory = guest.lookup(ROOT, b"dir").nodeid
        file = guest.lookup(directory, b"file").nodeid
        (hosts.shared / "second").hardlink_to(hosts.shared / "dir" / "file")
        (hosts.shared / "dir" / "file").unlink()
        (hosts.shared / "dir" / "file").write_text("another")
        migrate(guest, hosts.start(shared=hosts.copy()))
        fh = open_file(guest, file)
        assert guest.read(file, fh, 0, 100) == b"content"


def test_requests_in_flight_are_done_once() -> None:
    with hosts_with("--thread-pool-size=2") as hosts:
        guest = hosts.guest()
        nodeid, made = guest.create(ROOT, b"file")
        guest.release(nodeid, made)
        fh = open_file(guest, nodeid, os.O_RDWR | os.O_APPEND | os.O_SYNC)
        asked = {}
        for number in range(40):
            data = b"%d\n" % number
            payload = wire.write_in.pack(fh=fh, size=len(data)) + data
            each = Asked(guest, Opcode.WRITE, nodeid, payload, wire.write_out.size)
            asked[each.head] = each
        migrate(guest, hosts.start())
        channel, ram = guest.front_end.requests(), guest.front_end.ram
        while asked:
            channel.queue.want_interrupts(True)
            head, size = guest.front_end.wait_used(channel)
            each = asked.pop(head)
            length, error, unique = OUT_HEADER.unpack_from(ram.read(each.reply.addr, size))
            assert (length, error, unique) == (size, 0, each.unique)
        written = (hosts.shared / "file").read_text().split()
        assert sorted(map(int, written)) == list(range(40))


def test_copy_with_other_inode_numbers_is_found_by_path(hosts: Hosts) -> None:
    fill(hosts)
    guest = hosts.guest()
    directory = guest.lookup(ROOT, b"dir").nodeid
    file = guest.lookup(directory, b"file")
    fh = open_file(guest, file.nodeid)
    copied = hosts.copy()
    assert (copied / "dir" / "file").stat().st_ino != file.attr_ino
    migrate(guest, hosts.start(shared=copied))
    assert guest.read(file.nodeid, fh, 0, 100) == b"content"
    guest.write(file.nodeid, fh, 0, b"CONTENT")
    assert guest.lookup(directory, b"file").nodeid == file.nodeid
    assert (copied / "dir" / "file").read_text() == "CONTENT"
    assert (hosts.shared / "dir" / "file").read_text() == "content"


def test_by_handle_a_copy_is_another_directory() -> None:
    with hosts_with("--migration-mode=file-handles", expected="another shared directory") as hosts:
        guest = hosts.guest()
        migration = Migration(guest)
        assert migration.arrive(hosts.start(shared=hosts.copy())) == 1
        migration.go_on()
        guest.create(ROOT, b"file")


@pytest.mark.parametrize("change", ["gone", "other kind", "handle"])
def test_inode_that_is_not_found_aborts_or_is_an_error(change: str) -> None:
    options = ("--migration-verify-handles",) if change == "handle" else ()
    with hosts_with(*options, expected="1 inodes are not found") as hosts:
        fill(hosts)
        guest = hosts.guest()
        directory = guest.lookup(ROOT, b"dir").nodeid
        file = guest.lookup(directory, b"file").nodeid
        kept = guest.lookup(ROOT, b"link").nodeid
        migration = Migration(guest)
        path = hosts.shared / "dir" / "file"
        path.rename(hosts.shared / "moved")
        if change == "other kind":
            path.mkdir()
        elif change == "handle":
            path.write_text("another")
        assert migration.arrive(hosts.start()) == 1
        migration.go_on()
        assert guest.ask(Opcode.READLINK, kept, b"", 100) == b"dir/file"
        # The source goes by handles, and knows the file wherever it is.
        open_file(guest, file)
        (hosts.shared / "moved").rename(hosts.shared / "dir" / "away")
        migration = Migration(guest)
        if change == "gone":
            (hosts.shared / "dir" / "away").unlink()
        # Now it is found where it has moved to, or it is deleted.
        other = hosts.start("--migration-on-error=guest-error")
        shutil.rmtree(path, ignore_errors=True)
        assert migration.arrive(other) == 0
        assert guest.ask(Opcode.READLINK, kept, b"", 100) == b"dir/file"


def test_lost_inode_is_stale_and_lost_file_an_error_at_the_destination() -> None:
    with hosts_with() as hosts:
        fill(hosts)
        guest = hosts.guest()
        directory = guest.lookup(ROOT, b"dir").nodeid
        file = guest.lookup(directory, b"file").nodeid
        fh = open_file(guest, file)
        migration = Migration(guest)
        (hosts.shared / "dir" / "file").unlink()
        (hosts.shared / "dir" / "other").write_text("other")
        assert migration.arrive(hosts.start("--migration-on-error=guest-error")) == 0
        assert guest.fails(Opcode.GETATTR, file, wire.getattr_in.pack(), 1000) == errno.ESTALE
        read = wire.read_in.pack(fh=fh, size=10)
        assert guest.fails(Opcode.READ, file, read, 10) == errno.EIO
        guest.release(file, fh)
        guest.lookup(directory, b"other")


@pytest.mark.parametrize("notification", [True, False])
def test_watchers_get_one_overflow(hosts: Hosts, notification: bool) -> None:
    guest = hosts.guest(notification, WAIT_FLAGS)
    guest.watch(ROOT, Event.CREATE | Event.ON_CHILD)
    waiting = None
    if not notification:
        waiting = Asked(guest, Opcode.FSNOTIFY_WAIT, 0, fsnotify_wait_in.pack(size=4080), 4080)
    migrate(guest, hosts.start())
    if waiting is not None:
        error, payload = waiting.answer()
        assert error == 0
        records = decode_all(payload)
    else:
        records = guest.events(1)
    assert [each.mask for each in records] == [Event.WATCHES_LOST]
    guest.watch(ROOT, Event.CREATE | Event.ON_CHILD)
    (hosts.shared / "made").touch()
    if notification:
        assert [each.name for each in guest.events(1)] == [b"made"]


def test_locks_are_held_at_the_destination() -> None:
    with hosts_with(*LOCKS) as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        other, other_fh = guest.create(ROOT, b"other")
        guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
        flock = wire.lk_in.pack(
            fh=other_fh, owner=2, lk_end=(1 << 63) - 1, lk_type=fcntl.F_WRLCK,
            lk_pid=1, lk_flags=1,
        )  # fmt: skip
        guest.ask(Opcode.SETLK, other, flock)
        # One that waits for the lock of owner 1.
        second = open_file(guest, nodeid)
        waiting = Asked(guest, Opcode.SETLKW, nodeid, lock_request(second, 3), 0)
        migrate(guest, hosts.start())
        with (hosts.shared / "file").open("r+") as stream, pytest.raises(BlockingIOError):
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (hosts.shared / "other").open("r+") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlock = Asked(guest, Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK), 0)
        assert unlock.answer() == (0, b"")
        assert waiting.answer() == (0, b"")


def test_locks_are_held_again_if_the_guest_is_not_migrated() -> None:
    with hosts_with(*LOCKS) as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
        second = open_file(guest, nodeid)
        waiting = Asked(guest, Opcode.SETLKW, nodeid, lock_request(second, 3), 0)
        migration = Migration(guest)
        with (hosts.shared / "file").open("r+") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(stream, fcntl.LOCK_UN)
            # Saved twice, as a snapshot before a migration.
            again = Migration(guest)
            assert len(again.state) == len(migration.state)
            again.go_on()
            with pytest.raises(BlockingIOError):
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlock = Asked(guest, Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK), 0)
        assert unlock.answer() == (0, b"")
        assert waiting.answer() == (0, b"")


def test_guest_goes_to_and_fro_while_it_is_served(hosts: Hosts) -> None:
    guest = hosts.guest(flags=WAIT_FLAGS)
    log = Log(log_size(guest.front_end.ram))
    nodeid, fh = guest.create(ROOT, b"file")
    written = b""
    hosts.source.wait_for("the guest speaks")
    for number in range(6):
        assert share_log(guest.front_end, log) == 0
        assert set_logging(guest.front_end, True) == 0
        part = b"%d" % number
        guest.write(nodeid, fh, len(written), part)
        written += part
        migrate(guest, hosts.start())
        guest.create(ROOT, b"file %d" % number)
    assert guest.read(nodeid, fh, 0, 100) == written == b"012345"
    assert len(list(hosts.shared.iterdir())) == 7
    log.close()


def test_session_goes_back_to_a_snapshot(hosts: Hosts) -> None:
    guest = hosts.guest()
    nodeid, fh = guest.create(ROOT, b"file")
    migration = Migration(guest)
    migration.go_on()
    later, _ = guest.create(ROOT, b"later")
    for index in range(len(guest.front_end.channels)):
        guest.front_end.stop_ring(index)
    assert load_state(guest.front_end, migration.state) == 0
    # The rings are those of the snapshot, too.
    for index in range(len(guest.front_end.channels)):
        guest.front_end.reset_ring(index)
        guest.front_end.start_ring(index)
    guest.write(nodeid, fh, 0, b"again")
    assert guest.fails(Opcode.GETATTR, later, wire.getattr_in.pack(), 1000) == errno.ESTALE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: b"", "shorter than its header"),
        (lambda state: state[:-1], "bytes of"),
        (lambda state: b"X" + state[1:], "does not begin as a state"),
        (lambda state: state[:8] + b"\x63" + state[9:], "it has version 99"),
        (lambda state: state + b"x", "bytes of"),
        (lambda state: state[:-1] + bytes([state[-1] ^ 1]), "checksum"),
    ],
)
def test_state_that_cannot_be_is_refused_and_the_guest_goes_on(change: object, reason: str) -> None:
    assert callable(change)
    with hosts_with(expected=reason) as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        migration = Migration(guest)
        assert migration.arrive(hosts.start(), change(migration.state)) == 1
        migration.go_on()
        guest.write(nodeid, fh, 0, b"here")


def test_session_before_init_is_migrated(hosts: Hosts) -> None:
    guest = hosts.guest()
    guest.ask(Opcode.DESTROY, 0)
    migrate(guest, hosts.start())
    guest.mount()
    guest.create(ROOT, b"file")


def test_unlinked_inode_that_nobody_has_open_does_not_abort(hosts: Hosts) -> None:
    fill(hosts)
    guest = hosts.guest()
    nodeid = guest.lookup(ROOT, b"link").nodeid
    (hosts.shared / "link").unlink()
    migrate(guest, hosts.start(shared=hosts.copy()))
    assert guest.fails(Opcode.GETATTR, nodeid, wire.getattr_in.pack(), 1000) == errno.ESTALE


def test_destination_with_a_state_directory_keeps_the_session(tmp_path: Path) -> None:
    with hosts_with() as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        options = [f"--state-dir={tmp_path}"]
        other = hosts.start(*options)
        migrate(guest, other)
        guest.write(nodeid, fh, 0, b"before")
        other.end(signal.SIGKILL)
        hosts.start(*options, socket_path=other.socket_path)
        assert guest.read(nodeid, fh, 0, 100) == b"before"


def test_killed_daemon_has_all_memory_logged_by_the_next_one(tmp_path: Path) -> None:
    """What it has written and not logged nobody knows."""
    with hosts_with(f"--state-dir={tmp_path}") as hosts:
        guest = hosts.guest()
        nodeid, fh = guest.create(ROOT, b"file")
        ram = guest.front_end.ram
        log = Log(log_size(ram))
        assert share_log(guest.front_end, log) == 0
        assert set_logging(guest.front_end, True) == 0
        # The message is handled when the next request is.
        guest.write(nodeid, fh, 0, b"before")
        log.take()
        hosts.source.end(signal.SIGKILL)
        hosts.start(socket_path=hosts.source.socket_path)
        pages = {
            addr
            for region in ram.regions
            for addr in range(region.guest_addr, region.guest_addr + region.size, PAGE_SIZE)
        }
        assert log.take() == pages
        guest.write(nodeid, fh, 0, b"text")
        used = guest.front_end.requests().queue.used
        assert used // PAGE_SIZE * PAGE_SIZE in log.take()
        log.close()


def test_descriptors_are_those_of_the_session(hosts: Hosts) -> None:
    guest = hosts.guest()
    for number in range(20):
        guest.create(ROOT, b"file %d" % number)
    source, other = hosts.source, hosts.start()
    idle = other.descriptors()
    migrate(guest, other)
    wait_until(lambda: source.descriptors() <= idle, "the end of the session at the source")
    guest.leave()
    hosts.guests.clear()
    wait_until(lambda: other.descriptors() <= idle, "the end of the session")
