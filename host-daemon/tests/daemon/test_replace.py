# SPDX-License-Identifier: Apache-2.0
"""A daemon that replaces a running one, whose guest goes on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.handover.channel import HandoverChannel, HandoverError, Kind, encode_hello
from farwatchd.watch.event_record import EventRecord
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
    fsnotify_wait_in,
)
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.state import VERSION
from farwatchd.wire.state_codec import decode
from tests.support.daemon_guest import ROOT, Asked, MountedGuest, lock_request, open_file
from tests.support.daemon_process import (
    AS_USER,
    COMMAND,
    USER,
    DaemonProcess,
    error_line,
    status,
    wait_until,
)
from tests.support.event_records import decode_all
from tests.support.sandboxes import SANDBOXES

#: Events that a replacement must neither lose nor repeat.
WATCHED = Event.CREATE | Event.DELETE | Event.MODIFY | Event.ON_CHILD | Event.OPEN


#: How often a daemon is replaced in one test; KiB between the least and the most memory then.
REPLACEMENTS = int(os.environ.get("FARWATCH_REPLACEMENTS", "8"))
MEMORY_SPREAD = 1024
#: For what the sandbox makes no difference to.
IN_ONE_SANDBOX = pytest.mark.parametrize("fleet", ["none"], indirect=True)


class Fleet:
    """One share, and the daemons that serve it one after the other."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.socket_path = directory / "socket"
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.options = options
        self.daemons: list[DaemonProcess] = []
        self.daemon = self._start("listening on")

    def _start(self, text: str, *options: str) -> DaemonProcess:
        where = [f"--socket-path={self.socket_path}", f"--shared-dir={self.shared}"]
        daemon = DaemonProcess(
            self.socket_path, [*where, "--keep-serving", *self.options, *options]
        )
        self.daemons.append(daemon)
        daemon.wait_for(text)
        return daemon

    def replace(self, *options: str) -> None:
        """Have a new daemon replace the running one."""
        former, self.daemon = self.daemon, self._start("replaced the daemon", "--replace", *options)
        assert former.wait() == 0, former.log
        assert "Traceback" not in former.log and "ERROR" not in former.log, former.log

    def refused(self, *options: str) -> str:
        """Start a daemon that replaces none; return its error."""
        where = [f"--socket-path={self.socket_path}", f"--shared-dir={self.shared}"]
        daemon = DaemonProcess(self.socket_path, [*where, *self.options, "--replace", *options])
        self.daemons.append(daemon)
        assert daemon.wait() == 1
        return error_line(daemon.log)

    def close(self) -> None:
        """End all daemons; the last one must end well."""
        try:
            if self.daemon.process.poll() is None:
                assert self.daemon.end() == 0
            assert "Traceback" not in self.daemon.log and "ERROR" not in self.daemon.log
        finally:
            for daemon in self.daemons:
                if daemon.process.poll() is None:
                    daemon.process.kill()
                    daemon.wait()


@contextlib.contextmanager
def serving(directory: Path, *options: str) -> Iterator[Fleet]:
    """Yield a running daemon, which may be replaced."""
    fleet = Fleet(directory, *options)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(params=SANDBOXES)
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """Yield a daemon in each sandbox."""
    with serving(
        tmp_path, f"--sandbox={request.param}", "--xattr", "--posix-lock", "--flock", "--tag=t"
    ) as fleet:
        yield fleet


@pytest.fixture
def guest(fleet: Fleet) -> Iterator[MountedGuest]:
    """Yield a guest with the notification queue that has mounted the share."""
    guest = MountedGuest(fleet.daemon, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY)
    yield guest
    guest.leave()


def test_files_stay_open_also_deleted_ones(fleet: Fleet, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    guest.write(nodeid, fh, 0, b"before")
    gone, gone_fh = guest.create(ROOT, b"gone")
    guest.write(gone, gone_fh, 0, b"still here")
    guest.ask(Opcode.UNLINK, ROOT, b"gone\0")
    (fleet.shared / "dir").mkdir()
    directory = guest.lookup(ROOT, b"dir").nodeid
    fleet.replace()
    assert guest.read(nodeid, fh, 0, 100) == b"before"
    assert guest.write(nodeid, fh, 6, b" and after") == 10
    assert (fleet.shared / "file").read_bytes() == b"before and after"
    assert guest.read(gone, gone_fh, 0, 100) == b"still here"
    assert guest.lookup(ROOT, b"file").nodeid == nodeid
    assert guest.lookup(ROOT, b"dir").nodeid == directory
    guest.release(gone, gone_fh)
    guest.release(nodeid, fh)
    # Lookup counts go along: one of CREATE, one of LOOKUP.
    guest.front_end.forget(nodeid)
    assert guest.lookup(ROOT, b"file").nodeid == nodeid
    guest.front_end.forget(nodeid, 2)
    # No number is given twice.
    assert guest.lookup(ROOT, b"file").nodeid > max(gone, directory)
    assert guest.create(ROOT, b"new")[1] > gone_fh


@IN_ONE_SANDBOX
def test_directory_is_read_on(fleet: Fleet, guest: MountedGuest) -> None:
    names = {f"file {number}".encode() for number in range(300)}
    for name in names:
        (fleet.shared / os.fsdecode(name)).touch()
    reply = guest.ask(
        Opcode.OPENDIR, ROOT, wire.open_in.pack(flags=os.O_DIRECTORY), wire.open_out.size
    )
    fh = wire.open_out.unpack_from(reply).fh
    found: set[bytes] = set()
    offset = 0
    while batch := guest.ask(
        Opcode.READDIR, ROOT, wire.read_in.pack(fh=fh, offset=offset, size=4096), 4096
    ):
        position = 0
        while position < len(batch):
            entry = wire.dirent.unpack_from(batch, position)
            start = position + wire.dirent.size
            found.add(batch[start : start + entry.namelen])
            offset = entry.off
            position += (wire.dirent.size + entry.namelen + 7) // 8 * 8
        if len(fleet.daemons) == 1:
            fleet.replace()
    assert found == names | {b".", b".."}


@pytest.mark.parametrize("backend", ["auto", "inotify"])
def test_each_event_comes_once(tmp_path: Path, backend: str) -> None:
    with serving(tmp_path, f"--fsnotify-backend={backend}") as fleet:
        (fleet.shared / "dir").mkdir()
        guest = MountedGuest(fleet.daemon, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY)
        own = not guest.flags & FUSE_FSNOTIFY_OTHERS_ONLY
        directory = guest.lookup(ROOT, b"dir").nodeid
        guest.watch(directory, Event.CREATE | Event.DELETE)
        guest.watch(ROOT, Event.CREATE | Event.RENAME)
        expected: list[tuple[int, Event, bytes]] = []
        for number in range(5):
            name = b"host %d" % number
            (fleet.shared / "dir" / os.fsdecode(name)).touch()
            guest.create(directory, b"guest %d" % number)
            fleet.replace()
            (fleet.shared / os.fsdecode(name)).touch()
            guest.create(ROOT, b"guest %d" % number)
            expected += [(directory, Event.CREATE, name), (ROOT, Event.CREATE, name)]
            if own:
                expected += [
                    (directory, Event.CREATE, b"guest %d" % number),
                    (ROOT, Event.CREATE, b"guest %d" % number),
                ]
        (fleet.shared / "dir" / "host 0").unlink()
        expected.append((directory, Event.DELETE, b"host 0"))
        (fleet.shared / "dir").rename(fleet.shared / "other")
        records: list[EventRecord] = []
        while not records or records[-1].mask & Event.RENAME == 0:
            records += guest.events(1)
        moved = records.pop()
        assert (moved.nodeid, moved.name, moved.newname) == (ROOT, b"dir", b"other")
        assert sorted((each.nodeid, each.mask, each.name) for each in records) == sorted(expected)
        guest.leave()


def test_deletion_of_a_watched_file_is_reported(fleet: Fleet, guest: MountedGuest) -> None:
    (fleet.shared / "file").touch()
    nodeid = guest.lookup(ROOT, b"file").nodeid
    guest.watch(nodeid, Event.DELETE_SELF)
    fleet.replace()
    (fleet.shared / "file").unlink()
    assert [(each.nodeid, each.mask) for each in guest.events(1)] == [(nodeid, Event.DELETE_SELF)]


@IN_ONE_SANDBOX
def test_events_that_wait_for_the_guest_go_along(fleet: Fleet) -> None:
    guest = MountedGuest(fleet.daemon, notification=True)
    guest.watch(ROOT, Event.CREATE)
    # More than there are buffers.
    names = [b"file %d" % number for number in range(600)]
    for name in names:
        (fleet.shared / os.fsdecode(name)).touch()
    fleet.replace()
    records = guest.events(len(names))
    assert [each.name for each in records] == names
    guest.leave()


def test_wait_request_is_answered_by_the_successor(fleet: Fleet) -> None:
    guest = MountedGuest(fleet.daemon, notification=False, extra_flags=FUSE_HAS_FSNOTIFY_WAIT)
    assert guest.flags & FUSE_HAS_FSNOTIFY_WAIT
    guest.watch(ROOT, Event.CREATE)
    asked = Asked(guest, Opcode.FSNOTIFY_WAIT, 0, fsnotify_wait_in.pack(size=4080), 4080)
    fleet.replace()
    (fleet.shared / "file").touch()
    error, payload = asked.answer()
    assert error == 0
    assert [each.name for each in decode_all(payload)] == [b"file"]
    guest.leave()


def test_locks_hold_and_a_pending_one_is_taken_later(fleet: Fleet, guest: MountedGuest) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    other_fh = open_file(guest, nodeid)
    guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
    pending = Asked(guest, Opcode.SETLKW, nodeid, lock_request(other_fh, 2), 0)
    fleet.replace()
    with (fleet.shared / "file").open("r+") as host, pytest.raises(BlockingIOError):
        fcntl.lockf(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
    third = lock_request(fh, 3)
    assert guest.fails(Opcode.SETLK, nodeid, third) == errno.EAGAIN
    reply = wire.lk_out.unpack_from(guest.ask(Opcode.GETLK, nodeid, third, wire.lk_out.size))
    assert reply.lk_type == fcntl.F_WRLCK and reply.lk_pid == 1
    unlock = Asked(guest, Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_UNLCK), 0)
    assert unlock.answer() == (0, b"")
    assert pending.answer() == (0, b"")
    assert guest.fails(Opcode.SETLK, nodeid, third) == errno.EAGAIN


@IN_ONE_SANDBOX
def test_interrupted_pending_lock_is_found_by_the_successor(
    fleet: Fleet, guest: MountedGuest
) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    other_fh = open_file(guest, nodeid)
    guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
    pending = Asked(guest, Opcode.SETLKW, nodeid, lock_request(other_fh, 2), 0)
    fleet.replace()
    guest.front_end.send_no_reply(
        Opcode.INTERRUPT, 0, wire.interrupt_in.pack(unique=pending.unique)
    )
    assert pending.answer() == (errno.EINTR, b"")


def test_front_end_goes_on(fleet: Fleet, guest: MountedGuest) -> None:
    fleet.replace()
    guest.front_end.memory_slots = False
    guest.front_end.share_memory()
    guest.front_end.reboot()
    guest.init = guest.mount()
    guest.create(ROOT, b"file")
    fleet.replace()
    # A VM that is paused is replaced, too.
    for index in range(len(guest.front_end.channels)):
        guest.front_end.stop_ring(index)
    fleet.replace()
    for index in range(len(guest.front_end.channels)):
        guest.front_end.start_ring(index)
    assert guest.lookup(ROOT, b"file").attr_size == 0


@IN_ONE_SANDBOX
def test_daemon_without_a_guest_is_replaced_and_serves_the_next(fleet: Fleet) -> None:
    fleet.replace()
    guest = MountedGuest(fleet.daemon)
    guest.create(ROOT, b"file")
    guest.leave()
    fleet.replace()
    guest = MountedGuest(fleet.daemon)
    assert guest.lookup(ROOT, b"file").attr_size == 0
    guest.leave()


def test_files_beside_the_socket_are_the_last_daemon_s(fleet: Fleet) -> None:
    pid_file = fleet.socket_path.with_name("socket.pid")
    names = {"socket", "socket.pid", "socket.handover", "shared"}
    fleet.replace()
    wait_until(
        lambda: pid_file.exists() and pid_file.read_text() == f"{fleet.daemon.process.pid}\n",
        "the process id of the successor",
    )
    assert {each.name for each in fleet.socket_path.parent.iterdir()} == names
    assert fleet.socket_path.with_name("socket.handover").stat().st_mode & 0o777 == 0o600
    fleet.daemon.end()
    assert {each.name for each in fleet.socket_path.parent.iterdir()} == {"shared"}


class OrdinaryDaemon(DaemonProcess):
    """A daemon that an ordinary user runs."""

    command = (sys.executable, "-c", AS_USER)


@pytest.mark.root
@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_another_user_s_daemon_is_not_replaced(sandbox: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="farwatch-user-"))
    os.chown(directory, USER.pw_uid, USER.pw_gid)
    where = [f"--socket-path={directory / 'socket'}", f"--shared-dir={directory}"]
    options = [*where, f"--sandbox={sandbox}"]
    first = OrdinaryDaemon(directory / "socket", options)
    try:
        first.wait_for("listening on")
        other = DaemonProcess(directory / "socket", [*options, "--replace"])
        assert other.wait() == 1
        # In the user namespace of the daemon of nobody, the ids of all others are nobody's.
        reason = "another user's" if sandbox == "none" else "has other namespaces"
        assert reason in error_line(other.log)
        second = OrdinaryDaemon(directory / "socket", [*options, "--replace"])
        second.wait_for("replaced the daemon")
        assert first.wait() == 0
        assert second.end() == 0
    finally:
        first.process.kill()
        shutil.rmtree(directory)


class DaemonWithMount(DaemonProcess):
    """A daemon in a mount namespace, with a mount in its share."""

    command = (
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs none "$1/mounted" && echo inner > "$1/mounted/file" && shift && exec "$@"',
        "-",
    )


@pytest.mark.root
def test_submounts_of_the_first_daemon_stay(tmp_path: Path) -> None:
    (tmp_path / "shared" / "mounted").mkdir(parents=True)
    socket_path, shared = tmp_path / "socket", tmp_path / "shared"
    options = [f"--socket-path={socket_path}", f"--shared-dir={shared}"]
    first = DaemonWithMount(socket_path, [str(shared), *COMMAND, *options])
    second = None
    try:
        first.wait_for("listening on")
        guest = MountedGuest(first)
        mounted = guest.lookup(ROOT, b"mounted").nodeid
        nodeid = guest.lookup(mounted, b"file").nodeid
        second = DaemonProcess(socket_path, [*options, "--replace"])
        second.wait_for("replaced the daemon")
        assert first.wait() == 0
        assert not list((shared / "mounted").iterdir())
        assert guest.read(nodeid, open_file(guest, nodeid), 0, 10) == b"inner\n"
        assert guest.lookup(mounted, b"file").nodeid == nodeid
        guest.leave()
        assert second.wait() == 0
    finally:
        for daemon in (first, second):
            if daemon is not None and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.wait()


def hello(options: dict[str, str], version: int = VERSION) -> bytes:
    return encode_hello(version, options)


OPTIONS = {
    "tag": "t",
    "num-request-queues": "1",
    "uid-map and --gid-map": "None",
    "inode-file-handles": "prefer",
    "fsnotify": "auto",
    "fsnotify-backend": "auto",
    "metrics-socket": "None",
    "state-dir": "None",
}


class Impostor:
    """A successor that stops where a test wants."""

    def __init__(self, fleet: Fleet) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(os.fspath(fleet.socket_path.with_name("socket.handover")))
        sandbox = next(each for each in fleet.options if each.startswith("--sandbox="))
        self.options = {
            **OPTIONS,
            "sandbox": sandbox.partition("=")[2],
            "shared-dir": str(fleet.shared),
        }
        self.channel = HandoverChannel(sock)
        self.file = os.memfd_create("state")

    def greet(self) -> None:
        self.channel.send(Kind.HELLO, hello(self.options))
        for fd in self.channel.expect(Kind.WELCOME, 10).fds:
            os.close(fd)

    def take(self) -> bytes:
        self.channel.send(Kind.READY, b"", [self.file])
        fds, size = self.channel.receive_all_fds(10)
        for fd in fds:
            os.close(fd)
        return os.pread(self.file, int(size), 0)

    def close(self) -> None:
        self.channel.close()
        os.close(self.file)


@IN_ONE_SANDBOX
@pytest.mark.parametrize("step", ["connected", "greeted", "state", "taken", "gone"])
def test_successor_that_dies_leaves_the_session_to_the_old_daemon(
    fleet: Fleet, guest: MountedGuest, step: str
) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    guest.watch(ROOT, Event.CREATE)
    impostor = Impostor(fleet)
    if step != "connected":
        impostor.greet()
    if step in ("state", "taken", "gone"):
        state = decode(impostor.take())
        assert [each.nodeid for each in state.open_files] == [nodeid]
        assert [each.nodeid for each in state.watches] == [ROOT]
    if step in ("taken", "gone"):
        impostor.channel.send(Kind.TAKEN)
    if step == "gone":
        impostor.channel.expect(Kind.GO, 10)
    impostor.close()
    (fleet.shared / "by host").touch()
    assert guest.write(nodeid, fh, 0, b"text") == 4
    assert [each.name for each in guest.events(1)] == [b"by host"]
    if step in ("state", "taken", "gone"):
        fleet.daemon.wait_for("serving on")
    # And then another one replaces it.
    fleet.replace()
    assert guest.read(nodeid, fh, 0, 4) == b"text"
    assert fleet.socket_path.exists()


@IN_ONE_SANDBOX
def test_daemon_that_ends_in_the_middle_ends_its_successor(fleet: Fleet) -> None:
    impostor = Impostor(fleet)
    impostor.greet()
    impostor.take()
    fleet.daemon.process.send_signal(signal.SIGTERM)
    with pytest.raises(HandoverError, match="the running daemon ends"):
        impostor.channel.expect(Kind.GO, 10)
    impostor.close()
    assert fleet.daemon.wait() == 0
    assert not fleet.socket_path.exists()


@IN_ONE_SANDBOX
def test_another_version_is_one_line_and_the_old_daemon_serves_on(
    fleet: Fleet, guest: MountedGuest
) -> None:
    impostor = Impostor(fleet)
    impostor.channel.send(Kind.HELLO, hello(impostor.options, VERSION + 1))
    with pytest.raises(HandoverError, match=rf"version {VERSION} .* takes {VERSION + 1}; restart"):
        impostor.channel.expect(Kind.WELCOME, 10)
    impostor.close()
    guest.create(ROOT, b"file")


@IN_ONE_SANDBOX
def test_malformed_greeting_ends_the_connection(fleet: Fleet, guest: MountedGuest) -> None:
    for garbage in (b"", b"\xff", b"1", b"1\0tag", b"\0\0", b"1\0tag=t", b"9" * 9999):
        impostor = Impostor(fleet)
        impostor.channel.send(Kind.HELLO, garbage)
        with pytest.raises(HandoverError):
            impostor.channel.expect(Kind.WELCOME, 10)
        impostor.close()
        guest.names(ROOT)


@IN_ONE_SANDBOX
def test_message_out_of_order_ends_the_connection(fleet: Fleet, guest: MountedGuest) -> None:
    for kind in Kind:
        if kind is Kind.HELLO:
            continue
        impostor = Impostor(fleet)
        impostor.channel.send(kind, b"", [impostor.file])
        with pytest.raises(HandoverError):
            impostor.channel.expect(Kind.WELCOME, 10)
        impostor.close()
        guest.names(ROOT)


@IN_ONE_SANDBOX
def test_second_successor_is_refused(fleet: Fleet) -> None:
    first = Impostor(fleet)
    first.greet()
    assert "another successor is replacing the daemon" in fleet.refused()
    first.close()
    fleet.replace()


@IN_ONE_SANDBOX
def test_options_that_cannot_change_are_refused(fleet: Fleet, guest: MountedGuest) -> None:
    assert "--tag is t in the running daemon, and other" in fleet.refused("--tag=other")
    assert "--num-request-queues is 1" in fleet.refused("--num-request-queues=2")
    assert "--fsnotify is auto" in fleet.refused("--fsnotify=off")
    guest.create(ROOT, b"file")


def test_another_directory_is_refused(fleet: Fleet, guest: MountedGuest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert f"--shared-dir is {fleet.shared} in" in fleet.refused(f"--shared-dir={elsewhere}")
    moved = tmp_path / "moved"
    fleet.shared.rename(moved)
    fleet.shared.mkdir()
    if "--sandbox=namespace" in fleet.options:
        # The namespace of the running daemon has the directory.
        fleet.replace()
    else:
        assert "it is of another shared directory" in fleet.refused()
    guest.create(ROOT, b"file")
    assert (moved / "file").exists()


def test_replacing_nothing_is_one_line(tmp_path: Path) -> None:
    daemon = DaemonProcess(
        tmp_path / "socket",
        [f"--socket-path={tmp_path / 'socket'}", f"--shared-dir={tmp_path}", "--replace"],
    )
    assert daemon.wait() == 1
    assert error_line(daemon.log).endswith("start without --replace")
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_descriptors_and_memory_do_not_grow(tmp_path: Path) -> None:
    with serving(tmp_path) as fleet:
        guest = MountedGuest(fleet.daemon, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY)
        nodeid, fh = guest.create(ROOT, b"file")
        guest.watch(ROOT, Event.CREATE)
        descriptors, memory = [], []
        for number in range(REPLACEMENTS):
            fleet.replace()
            guest.write(nodeid, fh, 0, b"text")
            (fleet.shared / f"file {number}").touch()
            assert [each.name for each in guest.events(1)] == [b"file %d" % number]
            descriptors.append(fleet.daemon.descriptors())
            memory.append(int(status(fleet.daemon.pid)["RssAnon"].split()[0]))
        print(
            f"{REPLACEMENTS} replacements: {min(descriptors)} to {max(descriptors)} descriptors,"
            f" {min(memory)} to {max(memory)} KiB"
        )
        # That of the share's directory is closed when it was unused for a second.
        assert max(descriptors) - min(descriptors) <= 1, descriptors
        assert max(memory) - min(memory) < MEMORY_SPREAD, memory
        guest.leave()
