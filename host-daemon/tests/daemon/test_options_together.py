# SPDX-License-Identifier: Apache-2.0
"""A guest's use of the share with options together: each value with each of another option."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from farwatchd.passthrough.cache_flags import DIRECTORY_FLAGS, FILE_FLAGS
from farwatchd.passthrough.options import Cache
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import FUSE_FSNOTIFY_OTHERS_ONLY, Event, fsnotify_in, fsnotify_out
from farwatchd.wire.fuse import InitFlag, Opcode
from tests.support.daemon_guest import ROOT, MountedGuest, lock_request, open_file
from tests.support.daemon_process import AS_USER, COMMAND, USER, DaemonProcess

pytestmark = [pytest.mark.root, pytest.mark.packages]

XATTR = b"user.note"


class Options(NamedTuple):
    """What a daemon is started with."""

    user: str
    sandbox: str
    place: str
    cache: str
    writeback: bool
    xattr: bool
    locks: bool
    handles: str
    native: str
    fsnotify: str
    threads: int

    def arguments(self) -> list[str]:
        """Return the command line."""
        switches = (
            (self.writeback, "--writeback"),
            (self.xattr, "--xattr"),
            (self.locks, "--posix-lock"),
            (self.locks, "--flock"),
        )
        return [
            f"--sandbox={self.sandbox}",
            f"--cache={self.cache}",
            f"--inode-file-handles={self.handles}",
            f"--native={self.native}",
            f"--fsnotify={self.fsnotify}",
            f"--thread-pool-size={self.threads}",
            *[name for wanted, name in switches if wanted],
        ]

    @property
    def possible(self) -> bool:
        """Whether an ordinary user may have this sandbox."""
        return self.user == "root" or self.sandbox != "chroot"


VALUES = (
    ("root", "other"),
    ("namespace", "chroot", "none"),
    ("/var/tmp", "/dev/shm"),
    ("never", "metadata", "auto", "always"),
    (False, True),
    (False, True),
    (False, True),
    ("never", "prefer"),
    ("off", "auto"),
    ("off", "remote", "others"),
    (0, 4),
)


def covering() -> list[Options]:
    """Return few sets of options in which each two values of two options are together."""
    random, chosen = Random(1), []
    wanted = {
        ((first, one), (second, other))
        for first, second in itertools.combinations(range(len(VALUES)), 2)
        for one in VALUES[first]
        for other in VALUES[second]
        if {one, other} != {"other", "chroot"}
    }
    while wanted:
        tried = [Options._make(map(random.choice, VALUES)) for _ in range(100)]
        best = max(
            (each for each in tried if each.possible), key=lambda each: len(pairs(each) & wanted)
        )
        if not wanted.isdisjoint(pairs(best)):
            chosen.append(best)
        wanted -= pairs(best)
    return chosen


def pairs(options: Options) -> set[tuple[tuple[int, object], ...]]:
    return set(itertools.combinations(enumerate(options), 2))


def name_of(options: Options) -> str:
    return " ".join(map(str, options)).replace("/", "")


class ServedWith:
    """A daemon with a guest, on a directory of the daemon's user."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = Path(tempfile.mkdtemp(prefix="farwatch-together-", dir=options.place))
        self.shared = self.place / "shared"
        self.shared.mkdir()
        self.ids = (0, 0)
        if options.user == "other":
            self.ids = USER.pw_uid, USER.pw_gid
            for each in (self.place, self.shared):
                os.chown(each, *self.ids)
        self.place.chmod(0o755)
        self.shared.chmod(0o755)
        (self.shared / "made").write_text("made by the host")
        socket_path = self.place / "socket"
        where = [f"--socket-path={socket_path}", f"--shared-dir={self.shared}"]
        kind = type("Daemon", (DaemonProcess,), {"command": self._command()})
        self.daemon = kind(socket_path, [*where, *options.arguments()])
        self.daemon.wait_for("listening on")
        self.guest = MountedGuest(
            self.daemon,
            options.fsnotify != "off",
            int(InitFlag.HANDLE_KILLPRIV_V2) | FUSE_FSNOTIFY_OTHERS_ONLY,
        )

    def _command(self) -> tuple[str, ...]:
        return COMMAND if self.options.user == "root" else (sys.executable, "-c", AS_USER)

    def close(self) -> None:
        self.guest.leave()
        assert self.daemon.wait() == 0
        assert "Traceback" not in self.daemon.log, self.daemon.log
        assert " ERROR " not in self.daemon.log, self.daemon.log

    def remove(self) -> None:
        if self.daemon.process.poll() is None:
            self.daemon.end(signal.SIGKILL)
        shutil.rmtree(self.place)


@pytest.fixture(params=covering(), ids=name_of)
def served(request: pytest.FixtureRequest) -> Iterator[ServedWith]:
    served = ServedWith(request.param)
    try:
        yield served
        served.close()
    finally:
        served.remove()


def test_guest_uses_the_share_with_options_together(served: ServedWith) -> None:
    check_negotiation(served)
    check_files(served)
    check_names(served)
    check_attributes(served)
    check_locks(served)
    check_events(served)
    check_what_the_host_removes(served)


def check_negotiation(served: ServedWith) -> None:
    options, flags = served.options, served.guest.flags
    assert bool(flags & InitFlag.WRITEBACK_CACHE) == options.writeback
    assert bool(flags & InitFlag.POSIX_LOCKS) == options.locks
    assert bool(flags & InitFlag.FLOCK_LOCKS) == options.locks
    assert bool(flags & FUSE_FSNOTIFY_OTHERS_ONLY) == (options.fsnotify == "others")
    cache = Cache(options.cache)
    entry = served.guest.lookup(ROOT, b"made")
    assert (entry.entry_valid, entry.attr_valid) == (int(cache.seconds),) * 2
    opened = wire.open_out.unpack_from(
        served.guest.ask(Opcode.OPEN, entry.nodeid, wire.open_in.pack(), wire.open_out.size)
    )
    assert opened.open_flags == int(FILE_FLAGS[cache])
    served.guest.release(entry.nodeid, opened.fh)
    listed = wire.open_out.unpack_from(
        served.guest.ask(Opcode.OPENDIR, ROOT, wire.open_in.pack(), wire.open_out.size)
    )
    assert listed.open_flags == int(DIRECTORY_FLAGS[cache])
    served.guest.ask(Opcode.RELEASEDIR, ROOT, wire.release_in.pack(fh=listed.fh))


def check_files(served: ServedWith) -> None:
    guest, path = served.guest, served.shared / "file"
    nodeid, fh = guest.create(ROOT, b"file")
    assert guest.write(nodeid, fh, 0, b"text") == 4
    assert path.read_bytes() == b"text"
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*served.ids, 0o640)
    with path.open("ab") as file:
        file.write(b" of the host")
    assert guest.read(nodeid, fh, 0, 100) == b"text of the host"
    appending = open_file(guest, nodeid, os.O_WRONLY | os.O_APPEND)
    # The guest says where the end is if it caches writes.
    assert guest.write(nodeid, appending, 4 if served.options.writeback else 0, b"!") == 1
    expected = b"text!of the host" if served.options.writeback else b"text of the host!"
    assert path.read_bytes() == expected
    guest.ask(Opcode.FSYNC, nodeid, wire.fsync_in.pack(fh=fh))
    guest.ask(Opcode.SETATTR, nodeid, wire.setattr_in.pack(valid=8, size=2), wire.attr_out.size)
    assert guest.read(nodeid, fh, 0, 100) == b"te"
    for each in (fh, appending):
        guest.ask(Opcode.FLUSH, nodeid, wire.flush_in.pack(fh=each, lock_owner=1))
        guest.release(nodeid, each)
    assert guest.fails(Opcode.READ, nodeid, wire.read_in.pack(fh=fh, size=4), 4) == errno.EBADF


def check_names(served: ServedWith) -> None:
    guest, shared = served.guest, served.shared
    entry = wire.entry_out.size
    made = guest.ask(Opcode.MKDIR, ROOT, wire.mkdir_in.pack(mode=0o755) + b"dir\0", entry)
    directory = wire.entry_out.unpack_from(made).nodeid
    guest.ask(Opcode.RENAME, ROOT, wire.rename_in.pack(newdir=directory) + b"file\0moved\0")
    moved = guest.lookup(directory, b"moved")
    guest.ask(Opcode.LINK, ROOT, wire.link_in.pack(oldnodeid=moved.nodeid) + b"again\0", entry)
    assert guest.lookup(ROOT, b"again").nodeid == moved.nodeid
    made = guest.ask(Opcode.SYMLINK, ROOT, b"link\0dir/moved\0", entry)
    link = wire.entry_out.unpack_from(made).nodeid
    assert guest.ask(Opcode.READLINK, link, b"", 100) == b"dir/moved"
    assert (shared / "link").read_bytes() == b"te"
    expected = {b".", b"..", b"made", b"dir", b"again", b"link"}
    assert set(guest.names(ROOT)) == expected
    assert guest.names(ROOT, plus=True)[b"again"] == moved.nodeid
    assert guest.fails(Opcode.RMDIR, ROOT, b"dir\0") == errno.ENOTEMPTY
    guest.ask(Opcode.UNLINK, directory, b"moved\0")
    guest.ask(Opcode.RMDIR, ROOT, b"dir\0")
    guest.ask(Opcode.UNLINK, ROOT, b"link\0")
    assert guest.fails(Opcode.LOOKUP, ROOT, b"dir\0", entry) == errno.ENOENT
    assert sorted(each.name for each in shared.iterdir()) == ["again", "made"]


def check_attributes(served: ServedWith) -> None:
    guest, path = served.guest, served.shared / "again"
    nodeid = guest.lookup(ROOT, b"again").nodeid
    setting = wire.setxattr_in.pack(size=5) + XATTR + b"\0value"
    getting = wire.getxattr_in.pack(size=100)
    if not served.options.xattr:
        assert guest.fails(Opcode.SETXATTR, nodeid, setting) == errno.ENOSYS
        assert guest.fails(Opcode.LISTXATTR, nodeid, getting, 100) == errno.ENOSYS
        return
    guest.ask(Opcode.SETXATTR, nodeid, setting)
    assert os.getxattr(path, XATTR) == b"value"
    assert guest.ask(Opcode.GETXATTR, nodeid, getting + XATTR + b"\0", 100) == b"value"
    assert XATTR + b"\0" in guest.ask(Opcode.LISTXATTR, nodeid, getting, 100)
    guest.ask(Opcode.REMOVEXATTR, nodeid, XATTR + b"\0")
    assert XATTR not in [os.fsencode(each) for each in os.listxattr(path)]


def check_locks(served: ServedWith) -> None:
    guest, path = served.guest, served.shared / "again"
    nodeid = guest.lookup(ROOT, b"again").nodeid
    fh, other = open_file(guest, nodeid), open_file(guest, nodeid)
    if not served.options.locks:
        assert guest.fails(Opcode.SETLK, nodeid, lock_request(fh, 1)) == errno.ENOSYS
    else:
        guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1))
        assert guest.fails(Opcode.SETLK, nodeid, lock_request(other, 2)) == errno.EAGAIN
        assert is_locked(path)
        guest.ask(Opcode.FLUSH, nodeid, wire.flush_in.pack(fh=fh, lock_owner=1))
        assert not is_locked(path)
        guest.ask(Opcode.SETLK, nodeid, lock_request(other, 2))
    for each in (fh, other):
        guest.release(nodeid, each)
    assert not is_locked(path)


def is_locked(path: Path) -> bool:
    """Return whether another process of the host has a lock."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code, path], check=False, capture_output=True)
    assert done.returncode == 0 or b"BlockingIOError" in done.stderr
    return done.returncode != 0


def check_events(served: ServedWith) -> None:
    guest = served.guest
    mask = Event.CREATE | Event.MODIFY | Event.ON_CHILD
    if served.options.fsnotify == "off":
        asked = fsnotify_in.pack(mask=int(mask))
        assert guest.fails(Opcode.FSNOTIFY, ROOT, asked, fsnotify_out.size) == errno.ENOSYS
        return
    assert guest.watch(ROOT, mask) == mask
    nodeid, fh = guest.create(ROOT, b"by the guest")
    guest.write(nodeid, fh, 0, b"text")
    guest.release(nodeid, fh)
    (served.shared / "by the host").write_text("text")
    own = [(Event.CREATE, b"by the guest"), (Event.MODIFY | Event.ON_CHILD, b"by the guest")]
    others = [(Event.CREATE, b"by the host"), (Event.MODIFY | Event.ON_CHILD, b"by the host")]
    expected = others if served.options.fsnotify == "others" else own + others
    found = [(each.mask, each.name) for each in guest.events(len(expected))]
    assert found == expected


def check_what_the_host_removes(served: ServedWith) -> None:
    guest, path = served.guest, served.shared / "again"
    nodeid = guest.lookup(ROOT, b"again").nodeid
    fh = open_file(guest, nodeid)
    path.unlink()
    # It is there as long as the guest has it open.
    assert guest.read(nodeid, fh, 0, 100) == b"te"
    guest.release(nodeid, fh)
    opening = wire.open_in.pack(flags=os.O_RDONLY)
    assert guest.fails(Opcode.OPEN, nodeid, opening, wire.open_out.size) == errno.ESTALE
    assert guest.fails(Opcode.LOOKUP, ROOT, b"again\0", wire.entry_out.size) == errno.ENOENT
