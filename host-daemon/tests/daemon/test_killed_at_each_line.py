# SPDX-License-Identifier: Apache-2.0
"""A daemon that is killed before any line of its code, while it serves one request.

The oracle is a daemon that is not killed: the reply must be the same, and what the share has.
FARWATCH_LINES is how many lines are tried for each request; without it some requests are.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire.fuse import Opcode, SetattrValid
from tests.support.daemon_guest import ROOT, Asked, MountedGuest, lock_request, open_file
from tests.support.daemon_process import running, wait_until
from tests.support.mortal_daemon import LineCrash, MortalDaemon, mortal

OPTIONS = ("--sandbox=none", "--xattr", "--posix-lock", "--flock")
#: Inodes by handle, and by path.
FINDING = ["prefer", "never"]
LINES = int(os.environ.get("FARWATCH_LINES", "0"))
#: Requests that are tried without it.
SOME = 8
ENTRY = wire.entry_out.size
OPENED = wire.open_out.size
CREATE = os.O_RDWR | os.O_CREAT
EXCLUSIVE = CREATE | os.O_EXCL
#: renameat2(2), setxattr(2) and fallocate(2).
NOREPLACE, EXCHANGE = 1, 2
XATTR_CREATE, XATTR_REPLACE = 1, 2
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE = 1, 2, 8
#: CLOCK_REALTIME_COARSE.
COARSE = 5
#: A block of the file systems that collapse ranges.
BLOCK = 4096


class RequestPlace:
    """A directory of the share for one request, which a daemon serves."""

    def __init__(self, guest: MountedGuest, shared: Path, name: str) -> None:
        self.guest = guest
        self.path = shared / name
        self.path.mkdir()
        self.nodeid = guest.lookup(ROOT, name.encode()).nodeid

    def file(self, name: str = "file", data: bytes = b"data") -> int:
        """Make a file on the host; return its nodeid."""
        (self.path / name).write_bytes(data)
        return self.known(name)

    def known(self, name: str) -> int:
        """Return the nodeid of a name."""
        return int(self.guest.lookup(self.nodeid, name.encode()).nodeid)

    def opened(self, flags: int = os.O_RDWR, data: bytes = b"data") -> tuple[int, int]:
        """Make a file on the host, and open it; return nodeid and file handle."""
        nodeid = self.file(data=data)
        return nodeid, open_file(self.guest, nodeid, flags)

    def contents(self) -> dict[str, tuple[object, ...]]:
        """Return what the directory has, by name, but for times and inode numbers."""
        found: dict[str, tuple[object, ...]] = {}
        for path in [self.path, *self.path.iterdir()]:
            status = path.lstat()
            data: object = None
            if stat.S_ISREG(status.st_mode):
                data = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                data = path.readlink()
            xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            name = "" if path == self.path else path.name
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            found[name] = (
                status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev,
                data, xattrs, int(status.st_mtime) == 12345,
            )  # fmt: skip
        return found


class Prepared(NamedTuple):
    """A request that is prepared; ``after`` uses what it has made."""

    opcode: Opcode
    nodeid: int
    payload: bytes
    room: int = 0
    after: Callable[[RequestPlace, bytes], object] | None = None
    #: Errors that are right for a request that may have been done.
    allowed: tuple[int, ...] = ()


def _entry_counts(place: RequestPlace, reply: bytes, more: int = 0) -> int:
    """See that the guest has the nodeid of a reply as often as it was given."""
    nodeid = int(wire.entry_out.unpack_from(reply).nodeid)
    guest, getattr_in = place.guest, wire.getattr_in.pack()
    guest.ask(Opcode.GETATTR, nodeid, getattr_in, wire.attr_out.size)
    if more:
        guest.front_end.forget(nodeid, more)
        guest.ask(Opcode.GETATTR, nodeid, getattr_in, wire.attr_out.size)
    guest.front_end.forget(nodeid, 1)
    return guest.fails(Opcode.GETATTR, nodeid, getattr_in, wire.attr_out.size)


def _entry(place: RequestPlace, reply: bytes) -> object:
    attributes = wire.entry_out.unpack_from(reply)
    return attributes.attr_mode, attributes.attr_nlink, _entry_counts(place, reply)


def _entry_again(place: RequestPlace, reply: bytes) -> object:
    """Do the same for an inode that was looked up before."""
    return _entry_counts(place, reply, 1)


def _works(place: RequestPlace, nodeid: int, reply: bytes) -> object:
    """Use an open file."""
    guest, fh = place.guest, wire.open_out.unpack_from(reply).fh
    found = guest.write(nodeid, fh, 2, b"xy"), guest.read(nodeid, fh, 0, 10)
    guest.release(nodeid, fh)
    return found, guest.fails(Opcode.RELEASE, nodeid, wire.release_in.pack(fh=fh))


def _created(place: RequestPlace, reply: bytes) -> object:
    nodeid = wire.entry_out.unpack_from(reply).nodeid
    return _works(place, nodeid, reply[ENTRY:]), _entry_counts(place, reply)


def _create(flags: int, mode: int = 0o644) -> Callable[[RequestPlace], Prepared]:
    payload = wire.create_in.pack(flags=flags, mode=stat.S_IFREG | mode) + b"new\0"
    return lambda place: Prepared(Opcode.CREATE, place.nodeid, payload, ENTRY + OPENED, _created)


def _create_existing(flags: int) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        (place.path / "new").write_bytes(b"there")
        return _create(flags)(place)

    return prepare


def _tmpfile(place: RequestPlace) -> Prepared:
    payload = wire.create_in.pack(flags=os.O_RDWR, mode=0o100600) + b"\0"
    return Prepared(Opcode.TMPFILE, place.nodeid, payload, ENTRY + OPENED, _created)


def _new(
    opcode: Opcode, payload: bytes, exists: bool = False
) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        if exists:
            (place.path / "new").mkdir()
        return Prepared(opcode, place.nodeid, payload, ENTRY, _entry)

    return prepare


def _link(exists: bool) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid = place.file()
        if exists:
            (place.path / "new").hardlink_to(place.path / "file")
        payload = wire.link_in.pack(oldnodeid=nodeid) + b"new\0"
        return Prepared(Opcode.LINK, place.nodeid, payload, ENTRY, _entry_again)

    return prepare


def _unlink(opened: bool) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        if opened:
            place.opened()
        else:
            (place.path / "file").touch()
        return Prepared(Opcode.UNLINK, place.nodeid, b"file\0")

    return prepare


def _rmdir(empty: bool) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        (place.path / "dir").mkdir()
        if not empty:
            (place.path / "dir" / "file").touch()
        return Prepared(Opcode.RMDIR, place.nodeid, b"dir\0")

    return prepare


def _rename(*names: str, flags: int = 0, link: bool = False) -> Callable[[RequestPlace], Prepared]:
    """Rename "a" to "b" where the files ``names`` are."""

    def prepare(place: RequestPlace) -> Prepared:
        files = []
        for name in names:
            if name.endswith("/"):
                (place.path / name).mkdir()
                (place.path / name / "inner").write_bytes(b"inner")
                directory = place.known(name.rstrip("/"))
                nodeid = int(place.guest.lookup(directory, b"inner").nodeid)
            else:
                nodeid = place.file(name, name.encode())
            if name != "b":
                files.append((nodeid, open_file(place.guest, nodeid)))
        if link:
            (place.path / "b").hardlink_to(place.path / "a")
        payload = wire.rename2_in.pack(newdir=place.nodeid, flags=flags) + b"a\0b\0"

        def after(place: RequestPlace, _: bytes) -> object:
            return [place.guest.read(*file, 0, 10) for file in files]

        return Prepared(Opcode.RENAME2, place.nodeid, payload, after=after)

    return prepare


def _setattr(by_handle: bool = False, **values: int) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid, fh = place.opened()
        fields = dict(values, fh=fh)
        if by_handle:
            fields["valid"] |= SetattrValid.FH
        return Prepared(Opcode.SETATTR, nodeid, wire.setattr_in.pack(**fields), wire.attr_out.size)

    return prepare


def _write(offset: int, flags: int = 0) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid, fh = place.opened(os.O_RDWR | flags)
        payload = wire.write_in.pack(fh=fh, offset=offset, size=5) + b" more"
        # Nobody knows what a thread has done of it.
        allowed = (errno.EIO,) if flags == os.O_APPEND | os.O_SYNC else ()
        return Prepared(Opcode.WRITE, nodeid, payload, wire.write_out.size, allowed=allowed)

    return prepare


def _fallocate(mode: int, *allowed: int) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid, fh = place.opened(data=b"1" * BLOCK + b"2" * BLOCK)
        payload = wire.fallocate_in.pack(fh=fh, offset=0, length=BLOCK, mode=mode)
        return Prepared(Opcode.FALLOCATE, nodeid, payload, allowed=allowed)

    return prepare


def _copy(place: RequestPlace) -> Prepared:
    nodeid, fh = place.opened()
    other = place.file("other", b"of another file")
    payload = wire.copy_file_range_in.pack(
        fh_in=fh, off_in=1, nodeid_out=other, fh_out=open_file(place.guest, other), off_out=3, len=3
    )
    return Prepared(Opcode.COPY_FILE_RANGE, nodeid, payload, wire.write_out.size)


def _setxattr(flags: int, exists: bool, *allowed: int) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid = place.file()
        if exists:
            os.setxattr(place.path / "file", "user.name", b"former")
        payload = wire.setxattr_in.pack(size=5, flags=flags) + b"user.name\0value"
        # Linux sends the short form.
        payload = payload[:8] + payload[wire.setxattr_in.size :]
        return Prepared(Opcode.SETXATTR, nodeid, payload, allowed=allowed)

    return prepare


def _removexattr(exists: bool) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid = place.file()
        if exists:
            os.setxattr(place.path / "file", "user.name", b"value")
        return Prepared(Opcode.REMOVEXATTR, nodeid, b"user.name\0")

    return prepare


def _open(flags: int) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid = place.file()
        return Prepared(
            Opcode.OPEN, nodeid, wire.open_in.pack(flags=flags), OPENED,
            lambda place, reply: _works(place, nodeid, reply),
        )  # fmt: skip

    return prepare


def _release(place: RequestPlace) -> Prepared:
    nodeid, fh = place.opened()
    payload = wire.release_in.pack(fh=fh)

    def after(place: RequestPlace, _: bytes) -> object:
        return place.guest.fails(Opcode.RELEASE, nodeid, payload)

    return Prepared(Opcode.RELEASE, nodeid, payload, after=after)


def _lookup(exists: bool) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        if exists:
            (place.path / "file").touch()
        return Prepared(Opcode.LOOKUP, place.nodeid, b"file\0", ENTRY, _entry)

    return prepare


def _readdirplus(place: RequestPlace) -> Prepared:
    for name in ("a", "b"):
        (place.path / name).touch()
    opened = place.guest.ask(
        Opcode.OPENDIR, place.nodeid, wire.open_in.pack(flags=os.O_DIRECTORY), OPENED
    )
    payload = wire.read_in.pack(fh=wire.open_out.unpack_from(opened).fh, size=4096)

    def after(place: RequestPlace, reply: bytes) -> object:
        counts, position = [], 0
        while position < len(reply):
            dirent = wire.dirent.unpack_from(reply, position + ENTRY)
            if wire.entry_out.unpack_from(reply, position).nodeid:
                counts.append(_entry_counts(place, reply[position:]))
            position += (ENTRY + wire.dirent.size + dirent.namelen + 7) // 8 * 8
        return counts

    return Prepared(Opcode.READDIRPLUS, place.nodeid, payload, 4096, after)


def _setlk(kind: int, flock: bool = False) -> Callable[[RequestPlace], Prepared]:
    def prepare(place: RequestPlace) -> Prepared:
        nodeid, fh = place.opened()
        request = wire.lk_in.pack(fh=fh, lk_type=kind, lk_flags=wire.LK_FLOCK)
        if not flock:
            request = lock_request(fh, 1, kind)
        place.guest.ask(Opcode.SETLK, nodeid, lock_request(fh, 1, fcntl.F_RDLCK))

        def after(place: RequestPlace, _: bytes) -> object:
            with (place.path / "file").open("rb+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    posix = True
                else:
                    posix = False
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return posix, True
                return posix, False

        return Prepared(Opcode.SETLK, nodeid, request, after=after)

    return prepare


def _flush(place: RequestPlace) -> Prepared:
    prepared = _setlk(fcntl.F_WRLCK)(place)
    fh = wire.lk_in.unpack_from(prepared.payload).fh
    payload = wire.flush_in.pack(fh=fh, lock_owner=1)
    return Prepared(Opcode.FLUSH, prepared.nodeid, payload, after=prepared.after)


_V = SetattrValid
_SYNC = os.O_SYNC
REQUESTS: dict[str, Callable[[RequestPlace], Prepared]] = {
    "create": _create(EXCLUSIVE),
    "create for reading": _create(EXCLUSIVE, 0o444),
    "create or truncate": _create(CREATE | os.O_TRUNC),
    "create existing": _create_existing(CREATE),
    "create existing, truncated": _create_existing(CREATE | os.O_TRUNC),
    "create existing, exclusive": _create_existing(EXCLUSIVE),
    "tmpfile": _tmpfile,
    "mkdir": _new(Opcode.MKDIR, wire.mkdir_in.pack(mode=0o751, umask=0o22) + b"new\0"),
    "mkdir existing": _new(Opcode.MKDIR, wire.mkdir_in.pack(mode=0o751) + b"new\0", exists=True),
    "mknod": _new(Opcode.MKNOD, wire.mknod_in.pack(mode=stat.S_IFREG | 0o640) + b"new\0"),
    "mkfifo": _new(Opcode.MKNOD, wire.mknod_in.pack(mode=stat.S_IFIFO | 0o640) + b"new\0"),
    "symlink": _new(Opcode.SYMLINK, b"new\0target\0"),
    "symlink existing": _new(Opcode.SYMLINK, b"new\0target\0", exists=True),
    "link": _link(exists=False),
    "link existing": _link(exists=True),
    "unlink": _unlink(opened=False),
    "unlink opened": _unlink(opened=True),
    "unlink missing": lambda place: Prepared(Opcode.UNLINK, place.nodeid, b"file\0"),
    "rmdir": _rmdir(empty=True),
    "rmdir not empty": _rmdir(empty=False),
    "rename": _rename("a"),
    "rename over": _rename("a", "b"),
    "rename missing": _rename("b"),
    "rename to another link": _rename("a", link=True),
    "rename directory": _rename("a/"),
    "rename no-replace": _rename("a", flags=NOREPLACE),
    "rename no-replace existing": _rename("a", "b", flags=NOREPLACE),
    "exchange": _rename("a", "b", flags=EXCHANGE),
    "exchange directory": _rename("a/", "b", flags=EXCHANGE),
    "exchange missing": _rename("a", flags=EXCHANGE),
    "chmod": _setattr(valid=_V.MODE, mode=0o604),
    "chown": _setattr(valid=_V.UID | _V.GID, uid=12, gid=34),
    "truncate": _setattr(valid=_V.SIZE, size=2),
    "extend": _setattr(valid=_V.SIZE, size=10),
    "ftruncate": _setattr(by_handle=True, valid=_V.SIZE, size=2),
    "utimes": _setattr(valid=_V.MTIME, mtime=12345),
    "write": _write(2),
    "write after end": _write(9),
    "append": _write(4, os.O_APPEND),
    "write synchronously": _write(2, _SYNC),
    "append synchronously": _write(4, os.O_APPEND | _SYNC),
    "fallocate": _fallocate(0),
    "fallocate keep size": _fallocate(KEEP_SIZE),
    "punch hole": _fallocate(PUNCH_HOLE | KEEP_SIZE),
    "collapse range": _fallocate(COLLAPSE_RANGE, errno.EIO),
    "copy": _copy,
    "setxattr": _setxattr(0, exists=False),
    "setxattr create": _setxattr(XATTR_CREATE, False, errno.EIO),
    "setxattr create existing": _setxattr(XATTR_CREATE, True, errno.EIO),
    "setxattr replace": _setxattr(XATTR_REPLACE, exists=True),
    "setxattr replace missing": _setxattr(XATTR_REPLACE, exists=False),
    "removexattr": _removexattr(exists=True),
    "removexattr missing": _removexattr(exists=False),
    "open": _open(os.O_RDWR),
    "open truncate": _open(os.O_RDWR | os.O_TRUNC),
    "release": _release,
    "lookup": _lookup(exists=True),
    "lookup missing": _lookup(exists=False),
    "readdirplus": _readdirplus,
    "lock": _setlk(fcntl.F_WRLCK),
    "unlock": _setlk(fcntl.F_UNLCK),
    "flock": _setlk(fcntl.F_WRLCK, flock=True),
    "flush": _flush,
}


class Pair:
    """A daemon that is killed, and one that is not, which serve the same requests."""

    def __init__(
        self, host: MortalDaemon, crash: LineCrash, oracle: MountedGuest, shared: Path
    ) -> None:
        self.host = host
        self.guest = MountedGuest(host.daemon)
        self.oracle = oracle
        self.oracle_shared = shared
        self._crash = crash
        self._last = 0
        self._names = map("place {}".format, itertools.count())

    def crash(self, title: str, lines: int, recovery: int | None) -> None:
        """Have the daemon die while it serves a request, and compare.

        ``recovery``: as many lines later the next one dies, too, while it restores the session.
        """
        host, name = self.host, next(self._names)
        place = RequestPlace(self.guest, host.shared, name)
        expected = RequestPlace(self.oracle, self.oracle_shared, name)
        request, model = REQUESTS[title](place), REQUESTS[title](expected)
        before = place.contents()
        made = time.time_ns()
        # What was before the request is distinguished by the clock of the file system.
        wait_until(lambda: time.clock_gettime_ns(COARSE) > made, "a tick of the clock")
        self._crash.in_request(lines, self._last)
        asked = Asked(self.guest, *request[:4])
        self._last = asked.unique
        host.killed()
        self._crash.disarm()
        if recovery is not None:
            self._crash.in_recovery(recovery)
            # It may die before it says that it listens.
            host.daemon = host.launch(crash=self._crash)
            host.killed()
            self._crash.disarm()
        host.start(crash=self._crash)
        error, reply = asked.answer()
        asked_model = Asked(self.oracle, *model[:4])
        model_error, model_reply = asked_model.answer()
        if error != model_error and error in request.allowed:
            assert place.contents() in (before, expected.contents())
            return
        assert (error, len(reply)) == (model_error, len(model_reply)), os.strerror(error)
        assert place.contents() == expected.contents()
        if not error and request.after is not None and model.after is not None:
            assert request.after(place, reply) == model.after(expected, model_reply)


@pytest.fixture(params=FINDING)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Yield the two daemons."""
    finding = f"--inode-file-handles={request.param}"
    crash = LineCrash(tmp_path / "crash")
    shared = tmp_path / "oracle"
    shared.mkdir()
    with (
        running(tmp_path / "oracle-socket", shared, *OPTIONS, finding) as daemon,
        mortal(tmp_path, *OPTIONS, finding, crash=crash) as host,
    ):
        oracle = MountedGuest(daemon)
        pair = Pair(host, crash, oracle, shared)
        yield pair
        pair.guest.leave()
        oracle.leave()


def test_daemon_is_killed_before_any_line(pair: Pair) -> None:
    seed = int(os.environ.get("FARWATCH_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
    random = Random(seed)
    titles = random.sample(sorted(REQUESTS), SOME) if LINES == 0 else list(REQUESTS)
    for title in titles:
        for _ in range(max(1, LINES)):
            # Most requests take about 150 lines, and most recoveries 1000.
            lines = random.randrange(220)
            recovery = None if random.randrange(4) else random.randrange(1200)
            try:
                pair.crash(title, lines, recovery)
            except BaseException as error:
                error.add_note(f"{title}, line {lines}, recovery {recovery}, seed {seed}")
                raise
