# SPDX-License-Identifier: Apache-2.0
"""A file system of the share that does not answer keeps neither the VMM nor SIGTERM waiting."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.linux.libc import OFFSET_MAX
from farwatchd.virtio_fs.device import DRAIN_LIMIT
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import Event, fsnotify_in, fsnotify_out
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, UNIQUE, MountedGuest
from tests.support.daemon_process import DaemonProcess, running, wait_until
from tests.support.driver import Buffer
from tests.support.frontend import OUT_HEADER
from tests.support.hung_file_system import HungFileSystem

LIMIT = 20.0
#: Where the kernel waits (proc(5), ``wchan``).
WAITS_FOR_FUSE = ("request_wait_answer", "folio_wait_bit")


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungFileSystem]:
    for name in ("shared/mounted", "behind"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "behind/file").write_bytes(b"content")
    (tmp_path / "behind/empty").mkdir()
    (tmp_path / "behind/link").symlink_to("file")
    (tmp_path / "shared/elsewhere").touch()
    file_system = HungFileSystem(tmp_path / "behind", tmp_path / "shared/mounted")
    yield file_system
    file_system.close()


@pytest.fixture
def daemon(tmp_path: Path, hung: HungFileSystem) -> Iterator[DaemonProcess]:
    options = ("--xattr", "--posix-lock", "--flock")
    with running(tmp_path / "socket", tmp_path / "shared", *options) as process:
        yield process


def sync_hung_directory(daemon: DaemonProcess, guest: MountedGuest, hung: HungFileSystem) -> Buffer:
    """Send an FSYNCDIR that does not end; return where its reply will be.

    Of a directory: the kernel itself waits for a FUSE server when a regular file is closed, also
    when a process ends.
    """
    nodeid = guest.lookup(ROOT, b"mounted").nodeid
    payload = fuse.open_in.pack(flags=os.O_DIRECTORY)
    opened = guest.ask(Opcode.OPENDIR, nodeid, payload, fuse.open_out.size)
    fh = fuse.open_out.unpack_from(opened).fh
    hung.hang()
    reply = guest.start(Opcode.FSYNCDIR, nodeid, fuse.fsync_in.pack(fh=fh))
    wait_until_hung(daemon, 1)
    return reply


def wait_until_hung(daemon: DaemonProcess, threads: int) -> None:
    """Wait until this many threads of the daemon wait for a FUSE server."""
    wait_until(
        lambda: waiting_threads(daemon) >= threads, "a thread that waits for the file system"
    )


def waiting_threads(daemon: DaemonProcess) -> int:
    """Return how many threads wait for an answer of a FUSE server, or a page that one will fill."""
    return len([wait for wait in daemon.waits() if wait.startswith(WAITS_FOR_FUSE)])


def open_file(guest: MountedGuest, flags: int) -> tuple[int, int]:
    """Open the file of the mounted file system; return its nodeid and handle."""
    mounted = guest.lookup(ROOT, b"mounted").nodeid
    nodeid = guest.lookup(mounted, b"file").nodeid
    opened = guest.ask(Opcode.OPEN, nodeid, fuse.open_in.pack(flags=flags), fuse.open_out.size)
    return nodeid, fuse.open_out.unpack_from(opened).fh


def is_served(guest: MountedGuest) -> bool:
    """Look up a file elsewhere in the share."""
    return bool(guest.lookup(ROOT, b"elsewhere").nodeid)


@pytest.mark.root
def test_sigterm_ends_the_daemon_though_a_request_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    sync_hung_directory(daemon, guest, hung)
    assert daemon.end() == 0
    assert "ended by force" in daemon.log or "the host still works" in daemon.log
    guest.leave()


@pytest.mark.root
def test_rings_stop_though_a_request_hangs_and_it_is_completed_later(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    reply = sync_hung_directory(daemon, guest, hung)
    front_end = guest.front_end
    index = front_end.channels.index(front_end.requests())
    began = time.monotonic()
    front_end.stop_ring(index)
    assert time.monotonic() - began < DRAIN_LIMIT + 1
    front_end.start_ring(index)
    hung.resume()
    used = front_end.wait_used(front_end.requests())
    assert used[1] == OUT_HEADER.size
    header = OUT_HEADER.unpack_from(front_end.ram.read(reply.addr, OUT_HEADER.size))
    assert header == (OUT_HEADER.size, 0, UNIQUE)
    guest.leave()


@pytest.mark.root
def test_next_front_end_is_served_though_a_request_of_the_last_one_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    sync_hung_directory(daemon, guest, hung)
    guest.leave()
    following = MountedGuest(daemon)
    assert b"mounted" in following.names(ROOT)
    following.leave()


@pytest.mark.root
def test_read_that_ends_after_a_reboot_does_not_change_memory(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDONLY)
    hung.hang()
    reply = guest.start(Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=4096), 4096)
    wait_until_hung(daemon, 1)
    # The daemon closes the file meanwhile.
    guest.front_end.reboot()
    content = b"\xa5" * reply.length
    guest.front_end.ram.write(reply.addr, content)
    guest.mount()
    assert is_served(guest)
    hung.resume()
    wait_until(lambda: "file" not in open_paths(daemon), "the end of the read")
    assert is_served(guest)
    assert guest.front_end.ram.read(reply.addr, reply.length) == content
    guest.leave()


def open_paths(daemon: DaemonProcess) -> set[str]:
    """Return the names of the files that the daemon has open."""
    names = set()
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(entry.readlink().name)
    return names


REQUESTS: dict[str, Callable[[int, int], tuple[Opcode, int, bytes, int]]] = {
    "flush": lambda nodeid, fh: (Opcode.FLUSH, nodeid, fuse.flush_in.pack(fh=fh), 0),
    "write": lambda nodeid, fh: (
        Opcode.WRITE,
        nodeid,
        fuse.write_in.pack(fh=fh, size=3) + b"new",
        fuse.write_out.size,
    ),
}


@pytest.mark.root
@pytest.mark.parametrize("name", REQUESTS)
def test_other_files_are_served_while_a_file_is_used_that_hangs(
    daemon: DaemonProcess, hung: HungFileSystem, name: str
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDWR)
    hung.hang()
    guest.start(*REQUESTS[name](nodeid, fh))
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    guest.front_end.requests().queue.want_interrupts(True)
    hung.resume()
    guest.front_end.wait_used(guest.front_end.requests())
    assert is_served(guest)
    guest.leave()


class Nodes:
    """What the guest knows of the mounted file system."""

    def __init__(self, guest: MountedGuest) -> None:
        self.root = guest.lookup(ROOT, b"mounted").nodeid
        self.file = guest.lookup(self.root, b"file").nodeid
        self.link = guest.lookup(self.root, b"link").nodeid
        self.file_fh = self._open(guest, Opcode.OPEN, self.file, os.O_RDWR)
        self.directory_fh = self._open(guest, Opcode.OPENDIR, self.root, os.O_DIRECTORY)

    def open_again(self, guest: MountedGuest) -> int:
        """Open the file once more."""
        return self._open(guest, Opcode.OPEN, self.file, os.O_RDWR)

    def _open(self, guest: MountedGuest, opcode: Opcode, nodeid: int, flags: int) -> int:
        opened = guest.ask(opcode, nodeid, fuse.open_in.pack(flags=flags), fuse.open_out.size)
        return int(fuse.open_out.unpack_from(opened).fh)


def lock(fh: int, owner: int, kind: int = fcntl.F_WRLCK, flags: int = 0) -> bytes:
    """Return the arguments of a request for a lock on the whole file."""
    return bytes(fuse.lk_in.pack_values(fh, owner, 0, OFFSET_MAX, kind, 1, flags, 0))


ENTRY, ATTR = fuse.entry_out.size, fuse.attr_out.size
#: Opcode, nodeid, arguments and room of a request on the mounted file system; its errno if it
#: fails.
NAMED: dict[str, Callable[[Nodes], tuple[Opcode, int, bytes, int]]] = {
    "look up": lambda at: (Opcode.LOOKUP, at.root, b"file\0", ENTRY),
    "look up what is missing": lambda at: (Opcode.LOOKUP, at.root, b"none\0", ENTRY),
    "look up the mount point": lambda at: (Opcode.LOOKUP, ROOT, b"mounted\0", ENTRY),
    "getattr": lambda at: (Opcode.GETATTR, at.file, fuse.getattr_in.pack(), ATTR),
    "getattr of an open file": lambda at: (
        Opcode.GETATTR,
        at.file,
        fuse.getattr_in.pack(getattr_flags=fuse.GETATTR_FH, fh=at.file_fh),
        ATTR,
    ),
    "statx": lambda at: (Opcode.STATX, at.file, fuse.statx_in.pack(), fuse.statx_out.size),
    "chmod": lambda at: (
        Opcode.SETATTR,
        at.file,
        fuse.setattr_in.pack(valid=fuse.SetattrValid.MODE, mode=0o600),
        ATTR,
    ),
    "truncate": lambda at: (
        Opcode.SETATTR,
        at.file,
        fuse.setattr_in.pack(valid=fuse.SetattrValid.SIZE, size=1),
        ATTR,
    ),
    "truncate an open file": lambda at: (
        Opcode.SETATTR,
        at.file,
        fuse.setattr_in.pack(
            valid=fuse.SetattrValid.SIZE | fuse.SetattrValid.FH, size=1, fh=at.file_fh
        ),
        ATTR,
    ),
    "watch": lambda at: (
        Opcode.FSNOTIFY,
        at.file,
        fsnotify_in.pack(mask=int(Event.MODIFY)),
        fsnotify_out.size,
    ),
    "getlk": lambda at: (Opcode.GETLK, at.file, lock(at.file_fh, 1), fuse.lk_out.size),
    "setlk": lambda at: (Opcode.SETLK, at.file, lock(at.file_fh, 1), 0),
    "setlkw": lambda at: (Opcode.SETLKW, at.file, lock(at.file_fh, 1), 0),
    "flock": lambda at: (Opcode.SETLK, at.file, lock(at.file_fh, 1, flags=fuse.LK_FLOCK), 0),
    "readlink": lambda at: (Opcode.READLINK, at.link, b"", 4096),
    "statfs": lambda at: (Opcode.STATFS, at.root, b"", fuse.statfs_out.size),
    "syncfs": lambda at: (Opcode.SYNCFS, at.root, bytes(8), 0),
    "setxattr": lambda at: (
        Opcode.SETXATTR,
        at.file,
        fuse.setxattr_in.pack(size=1) + b"user.a\0v",
        0,
    ),
    "getxattr": lambda at: (
        Opcode.GETXATTR,
        at.file,
        fuse.getxattr_in.pack(size=99) + b"user.a\0",
        99,
    ),
    "listxattr": lambda at: (Opcode.LISTXATTR, at.file, fuse.getxattr_in.pack(size=99), 99),
    "removexattr": lambda at: (Opcode.REMOVEXATTR, at.file, b"user.a\0", 0),
    "symlink": lambda at: (Opcode.SYMLINK, at.root, b"new\0file\0", ENTRY),
    "mknod": lambda at: (
        Opcode.MKNOD,
        at.root,
        fuse.mknod_in.pack(mode=stat.S_IFREG | 0o644) + b"new\0",
        ENTRY,
    ),
    "mkdir": lambda at: (Opcode.MKDIR, at.root, fuse.mkdir_in.pack(mode=0o755) + b"new\0", ENTRY),
    "create": lambda at: (
        Opcode.CREATE,
        at.root,
        fuse.create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=stat.S_IFREG | 0o640) + b"new\0",
        ENTRY + fuse.open_out.size,
    ),
    "create what exists": lambda at: (
        Opcode.CREATE,
        at.root,
        fuse.create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=stat.S_IFREG | 0o640) + b"file\0",
        ENTRY + fuse.open_out.size,
    ),
    "unnamed file": lambda at: (
        Opcode.TMPFILE,
        at.root,
        fuse.create_in.pack(flags=os.O_RDWR, mode=stat.S_IFREG | 0o640) + b"#\0",
        ENTRY + fuse.open_out.size,
    ),
    "unlink": lambda at: (Opcode.UNLINK, at.root, b"file\0", 0),
    "rmdir": lambda at: (Opcode.RMDIR, at.root, b"empty\0", 0),
    "rename": lambda at: (
        Opcode.RENAME,
        at.root,
        fuse.rename_in.pack(newdir=at.root) + b"file\0new\0",
        0,
    ),
    "exchange": lambda at: (
        Opcode.RENAME2,
        at.root,
        fuse.rename2_in.pack(newdir=at.root, flags=2) + b"file\0empty\0",
        0,
    ),
    "link": lambda at: (
        Opcode.LINK,
        at.root,
        fuse.link_in.pack(oldnodeid=at.file) + b"new\0",
        ENTRY,
    ),
    "open": lambda at: (Opcode.OPEN, at.file, fuse.open_in.pack(), fuse.open_out.size),
    "opendir": lambda at: (
        Opcode.OPENDIR,
        at.root,
        fuse.open_in.pack(flags=os.O_DIRECTORY),
        fuse.open_out.size,
    ),
    "readdir": lambda at: (
        Opcode.READDIR,
        at.root,
        fuse.read_in.pack(fh=at.directory_fh, size=4096),
        4096,
    ),
    "readdirplus": lambda at: (
        Opcode.READDIRPLUS,
        at.root,
        fuse.read_in.pack(fh=at.directory_fh, size=4096),
        4096,
    ),
    "seek": lambda at: (
        Opcode.LSEEK,
        at.file,
        fuse.lseek_in.pack(fh=at.file_fh, whence=os.SEEK_DATA),
        fuse.lseek_out.size,
    ),
}
#: What a FUSE server has not, or has nothing of.
ERRORS = {
    "look up what is missing": errno.ENOENT,
    "getxattr": errno.EOPNOTSUPP,
    "listxattr": errno.EOPNOTSUPP,
    "setxattr": errno.EOPNOTSUPP,
    "removexattr": errno.EOPNOTSUPP,
}


@pytest.mark.root
@pytest.mark.parametrize("name", NAMED)
def test_other_files_are_served_while_an_operation_hangs(
    daemon: DaemonProcess, hung: HungFileSystem, name: str
) -> None:
    guest = MountedGuest(daemon)
    opcode, nodeid, arguments, room = NAMED[name](Nodes(guest))
    hung.hang()
    reply = guest.start(opcode, nodeid, arguments, room)
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    assert b"mounted" in guest.names(ROOT, plus=True)
    guest.front_end.requests().queue.want_interrupts(True)
    hung.resume()
    guest.front_end.wait_used(guest.front_end.requests())
    header = OUT_HEADER.unpack_from(guest.front_end.ram.read(reply.addr, OUT_HEADER.size))
    assert header[1:] == (-ERRORS.get(name, 0), UNIQUE)
    assert is_served(guest)
    guest.leave()


@pytest.mark.root
def test_tasks_of_a_disk_run_though_all_threads_for_servers_hang(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    root = guest.lookup(ROOT, b"mounted").nodeid
    nodeid, fh = guest.create(ROOT, b"new")
    hung.hang()
    for _ in range(8):
        guest.start(Opcode.LOOKUP, root, b"file\0", ENTRY)
    wait_until_hung(daemon, 4)
    guest.ask(Opcode.FSYNC, nodeid, fuse.fsync_in.pack(fh=fh))
    hung.resume()
    guest.leave()


@pytest.mark.root
def test_first_lookup_of_a_mount_that_hangs(daemon: DaemonProcess, hung: HungFileSystem) -> None:
    guest = MountedGuest(daemon)
    hung.hang()
    assert b"mounted" in guest.names(ROOT, plus=True)
    guest.start(Opcode.LOOKUP, ROOT, b"mounted\0", ENTRY)
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    hung.resume()
    guest.leave()


@pytest.mark.root
def test_lookup_that_ends_after_a_reboot_leaves_nothing(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    root = guest.lookup(ROOT, b"mounted").nodeid
    hung.hang()
    guest.start(Opcode.LOOKUP, root, b"file\0", ENTRY)
    wait_until_hung(daemon, 1)
    guest.front_end.reboot()
    guest.mount()
    assert is_served(guest)
    hung.resume()
    wait_until(lambda: not waiting_threads(daemon), "the end of the lookup")
    assert is_served(guest)
    wait_until(lambda: "file" not in open_paths(daemon), "the descriptor to be closed")
    guest.leave()


@pytest.mark.root
def test_mounted_file_system_of_a_server_is_used(
    daemon: DaemonProcess, hung: HungFileSystem, tmp_path: Path
) -> None:
    guest = MountedGuest(daemon)
    root = guest.lookup(ROOT, b"mounted").nodeid
    assert set(guest.names(root, plus=True)) == {b".", b"..", b"file", b"empty", b"link"}
    nodeid, fh = guest.create(root, b"new")
    assert guest.write(nodeid, fh, 0, b"text") == 4
    assert guest.read(nodeid, fh, 0, 9) == b"text"
    guest.release(nodeid, fh)
    behind = tmp_path / "behind"
    assert (behind / "new").read_bytes() == b"text"
    made = fuse.mkdir_in.pack(mode=0o777, umask=0o027) + b"made\0"
    guest.ask(Opcode.MKDIR, root, made, ENTRY)
    assert stat.S_IMODE((behind / "made").stat().st_mode) == 0o750
    assert guest.fails(Opcode.MKDIR, root, made, ENTRY) == errno.EEXIST
    exclusive = fuse.create_in.pack(flags=os.O_EXCL | os.O_CREAT, mode=stat.S_IFREG) + b"new\0"
    room = ENTRY + fuse.open_out.size
    assert guest.fails(Opcode.CREATE, root, exclusive, room) == errno.EEXIST
    again, _fh = guest.create(root, b"new")
    assert again == nodeid
    guest.ask(Opcode.UNLINK, root, b"new\0")
    assert guest.fails(Opcode.UNLINK, root, b"new\0") == errno.ENOENT
    assert guest.fails(Opcode.LOOKUP, root, b"new\0", ENTRY) == errno.ENOENT
    assert guest.fails(Opcode.RMDIR, root, b"file\0") == errno.ENOTDIR
    guest.leave()


@pytest.mark.root
def test_other_files_are_served_while_a_file_is_closed_that_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDWR)
    hung.hang()
    guest.release(nodeid, fh)
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    hung.resume()
    guest.leave()


@pytest.mark.root
def test_tasks_of_the_next_guest_run_though_all_threads_hang(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    nodeid, fh = open_file(guest, os.O_RDONLY)
    hung.hang()
    for _ in range(8):
        guest.start(Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=4096), 4096)
    wait_until_hung(daemon, 4)
    guest.leave()
    following = MountedGuest(daemon)
    nodeid, fh = following.create(ROOT, b"new")
    following.ask(Opcode.FSYNC, nodeid, fuse.fsync_in.pack(fh=fh))
    hung.resume()
    following.leave()


def guest_with_a_lock(daemon: DaemonProcess) -> tuple[MountedGuest, Nodes, int]:
    """Mount a guest whose owner 1 has a lock; return it, its nodes, and one more handle."""
    guest = MountedGuest(daemon)
    at = Nodes(guest)
    other = at.open_again(guest)
    guest.ask(Opcode.SETLK, at.file, lock(at.file_fh, 1))
    return guest, at, other


@pytest.mark.root
def test_other_files_are_served_while_the_release_of_locks_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest, at, other = guest_with_a_lock(daemon)
    assert guest.fails(Opcode.SETLK, at.file, lock(other, 2)) == errno.EAGAIN
    hung.hang()
    guest.start(Opcode.FLUSH, at.file, fuse.flush_in.pack(fh=at.file_fh, lock_owner=1))
    wait_until_hung(daemon, 1)
    assert is_served(guest)
    guest.front_end.requests().queue.want_interrupts(True)
    hung.resume()
    guest.front_end.wait_used(guest.front_end.requests())
    guest.ask(Opcode.SETLK, at.file, lock(other, 2))
    guest.leave()


@pytest.mark.root
def test_file_with_a_lock_is_closed_though_its_server_hangs(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest, at, other = guest_with_a_lock(daemon)
    hung.hang()
    guest.ask(Opcode.RELEASE, at.file, fuse.release_in.pack(fh=at.file_fh))
    assert is_served(guest)
    hung.resume()
    wait_until(
        lambda: guest.front_end.request(Opcode.SETLK, at.file, lock(other, 2))[0] == 0,
        "the release of the lock",
    )
    guest.leave()


@pytest.mark.root
def test_next_front_end_is_served_though_a_lock_of_the_last_one_cannot_be_released(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest = MountedGuest(daemon)
    at = Nodes(guest)
    guest.ask(Opcode.SETLK, at.file, lock(at.file_fh, 1))
    hung.hang()
    guest.leave()
    following = MountedGuest(daemon)
    assert is_served(following)
    hung.resume()
    at = Nodes(following)
    wait_until(
        lambda: following.front_end.request(Opcode.SETLK, at.file, lock(at.file_fh, 1))[0] == 0,
        "the release of the lock",
    )
    following.leave()


@pytest.mark.root
def test_pending_lock_is_interrupted_while_the_server_is_asked_for_it(
    daemon: DaemonProcess, hung: HungFileSystem
) -> None:
    guest, at, other = guest_with_a_lock(daemon)
    # Before: once the server has answered, the loop asks it for the lock, and would wait, too.
    hung.hang()
    reply = guest.start(Opcode.SETLKW, at.file, lock(other, 2))
    assert is_served(guest)
    wait_until_hung(daemon, 1)
    guest.front_end.requests().queue.want_interrupts(True)
    guest.front_end.send_no_reply(Opcode.INTERRUPT, 0, fuse.interrupt_in.pack(unique=UNIQUE))
    guest.front_end.wait_used(guest.front_end.requests())
    header = OUT_HEADER.unpack_from(guest.front_end.ram.read(reply.addr, OUT_HEADER.size))
    assert header[1:] == (-errno.EINTR, UNIQUE)
    hung.resume()
    wait_until(lambda: not waiting_threads(daemon), "the server's answer")
    guest.ask(Opcode.SETLK, at.file, lock(at.file_fh, 1, fcntl.F_UNLCK))
    # The interrupted one has not got it.
    guest.ask(Opcode.SETLK, at.file, lock(at.file_fh, 3))
    guest.leave()
