# SPDX-License-Identifier: Apache-2.0
"""A guest that tries to get out of the share.

It uses names, links, magic links, and renames by other processes.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire.fuse import Opcode, SetattrValid
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import TIMEOUT, DaemonProcess, running
from tests.support.sandboxes import SANDBOXES

SECRET = "what the guest must not see"
ENTRY = wire.entry_out.size
CREATED = ENTRY + wire.open_out.size
#: Names that lead elsewhere wherever they are not taken for one name in a directory.
NAMES = [
    b"..",
    b".",
    b"",
    b"/",
    b"../secret",
    b"/etc/passwd",
    b"dir/../../secret",
    b"dir/",
    b"out/secret",
    b"//",
]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a share with a file, a directory and links to the outside, and a secret beside it."""
    shared = tmp_path / "shared"
    (shared / "dir").mkdir(parents=True)
    (shared / "file").write_text("inside")
    (tmp_path / "secret").write_text(SECRET)
    (shared / "to-secret").symlink_to("../secret")
    (shared / "to-absolute").symlink_to(tmp_path / "secret")
    (shared / "out").symlink_to("..")
    (shared / "to-root").symlink_to("/")
    (shared / "self").symlink_to("/proc/self/root")
    return shared


@pytest.fixture(params=SANDBOXES)
def guest(request: pytest.FixtureRequest, tmp_path: Path, shared: Path) -> Iterator[MountedGuest]:
    """Yield a guest of a daemon in each sandbox; nothing outside the share may change."""
    before = (tmp_path / "secret").stat()
    with running(tmp_path / "socket", shared, f"--sandbox={request.param}", "--xattr") as daemon:
        guest = MountedGuest(daemon)
        yield guest
        guest.leave()
    assert (tmp_path / "secret").read_text() == SECRET
    after = (tmp_path / "secret").stat()
    assert (after.st_mode, after.st_nlink, after.st_mtime_ns) == (
        before.st_mode,
        before.st_nlink,
        before.st_mtime_ns,
    )
    assert {path.name for path in tmp_path.iterdir()} <= {"secret", "shared", "socket"}


def named_requests(name: bytes, file: int) -> list[tuple[int, int, bytes, int]]:
    """Return every operation that takes names, with this one in each of its places.

    Each is opcode, nodeid, arguments, room.
    """
    end = name + b"\0"
    good = b"good\0"
    return [
        (Opcode.LOOKUP, ROOT, end, ENTRY),
        (Opcode.SYMLINK, ROOT, end + b"target\0", ENTRY),
        (Opcode.MKNOD, ROOT, wire.mknod_in.pack(mode=stat.S_IFREG | 0o600) + end, ENTRY),
        (Opcode.MKDIR, ROOT, wire.mkdir_in.pack(mode=0o700) + end, ENTRY),
        (Opcode.UNLINK, ROOT, end, 0),
        (Opcode.RMDIR, ROOT, end, 0),
        (Opcode.RENAME, ROOT, wire.rename_in.pack(newdir=ROOT) + end + good, 0),
        (Opcode.RENAME, ROOT, wire.rename_in.pack(newdir=ROOT) + b"file\0" + end, 0),
        (Opcode.RENAME2, ROOT, wire.rename2_in.pack(newdir=ROOT) + end + good, 0),
        (Opcode.RENAME2, ROOT, wire.rename2_in.pack(newdir=ROOT, flags=2) + b"file\0" + end, 0),
        (Opcode.LINK, ROOT, wire.link_in.pack(oldnodeid=file) + end, ENTRY),
        (
            Opcode.CREATE,
            ROOT,
            wire.create_in.pack(flags=os.O_RDWR, mode=stat.S_IFREG | 0o600) + end,
            CREATED,
        ),
    ]


def test_names_that_point_elsewhere_are_refused(guest: MountedGuest, shared: Path) -> None:
    before = sorted(shared.rglob("*"))
    file = guest.lookup(ROOT, b"file").nodeid
    for name in NAMES:
        for opcode, nodeid, payload, room in named_requests(name, file):
            assert guest.fails(opcode, nodeid, payload, room) == errno.EINVAL, (
                name,
                Opcode(opcode),
            )
    assert sorted(shared.rglob("*")) == before


@pytest.mark.parametrize("name", [b"to-secret", b"to-absolute", b"out", b"to-root", b"self"])
def test_links_are_never_followed_on_the_host(
    name: bytes, guest: MountedGuest, tmp_path: Path
) -> None:
    entry = guest.lookup(ROOT, name)
    assert stat.S_ISLNK(entry.attr_mode)
    node = entry.nodeid
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_PATH):
        assert guest.fails(Opcode.OPEN, node, wire.open_in.pack(flags=flags), 64) == errno.ELOOP
    assert guest.fails(Opcode.OPENDIR, node, wire.open_in.pack(), 64) == errno.ENOTDIR
    create = (
        wire.create_in.pack(flags=os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode=stat.S_IFREG | 0o666)
        + name
        + b"\0"
    )
    assert guest.fails(Opcode.CREATE, ROOT, create, CREATED) == errno.ELOOP
    for below in (b"secret", b"etc"):
        assert guest.fails(Opcode.LOOKUP, node, below + b"\0", ENTRY) == errno.ENOTDIR
    size = wire.setattr_in.pack(valid=int(SetattrValid.SIZE))
    assert guest.fails(Opcode.SETATTR, node, size, wire.attr_out.size) == errno.EINVAL
    times = wire.setattr_in.pack(valid=int(SetattrValid.MTIME), mtime=5)
    guest.ask(Opcode.SETATTR, node, times, wire.attr_out.size)
    guest.ask(Opcode.LINK, ROOT, wire.link_in.pack(oldnodeid=node) + b"second\0", ENTRY)
    assert (tmp_path / "shared" / "second").is_symlink()
    mode = wire.setattr_in.pack(valid=int(SetattrValid.MODE), mode=0o777)
    assert guest.fails(Opcode.SETATTR, node, mode, wire.attr_out.size) in (
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
    )


def test_unknown_nodeids_and_handles_are_refused(guest: MountedGuest) -> None:
    for nodeid in (0, 2, 3, 1 << 32, (1 << 64) - 1):
        assert guest.fails(Opcode.LOOKUP, nodeid, b"file\0", ENTRY) in (errno.ESTALE, errno.ENOENT)
        assert guest.fails(Opcode.OPEN, nodeid, wire.open_in.pack(), 64) in (
            errno.ESTALE,
            errno.ENOENT,
        )
    node = guest.lookup(ROOT, b"file").nodeid
    for fh in (0, 3, 4, 5, 1 << 31, (1 << 64) - 1):
        assert (
            guest.fails(Opcode.READ, node, wire.read_in.pack(fh=fh, size=100), 100) == errno.EBADF
        )


def test_listing_shows_no_inode_above_the_share(guest: MountedGuest, tmp_path: Path) -> None:
    outside = tmp_path.stat().st_ino
    assert guest.names(ROOT, plus=True)[b".."] == 0
    assert guest.lookup(ROOT, b"dir").attr_ino != outside


def test_parent_of_a_directory_moved_out_of_the_share_is_unreachable(
    guest: MountedGuest, tmp_path: Path, shared: Path
) -> None:
    (shared / "dir" / "below").mkdir()
    node = guest.lookup(ROOT, b"dir").nodeid
    below = guest.lookup(node, b"below").nodeid
    (shared / "dir").rename(tmp_path / "moved")
    try:
        for nodeid in (node, below):
            assert guest.fails(Opcode.LOOKUP, nodeid, b"..\0", ENTRY) == errno.EINVAL
            assert guest.names(nodeid, plus=True)[b".."] == 0
            assert guest.fails(Opcode.LOOKUP, nodeid, b"secret\0", ENTRY) == errno.ENOENT
    finally:
        (tmp_path / "moved").rename(shared / "dir")


class Swapper(threading.Thread):
    """A thread of the host that exchanges a directory of the share and a link to the outside."""

    def __init__(self, shared: Path) -> None:
        super().__init__()
        self._shared = shared
        self._end = threading.Event()
        self.swaps = 0

    def run(self) -> None:
        names = ("swapped", "link", "aside")
        first, second, aside = (self._shared / name for name in names)
        while not self._end.is_set():
            first.rename(aside)
            second.rename(first)
            aside.rename(second)
            self.swaps += 1

    def stop(self) -> None:
        self._end.set()
        self.join(TIMEOUT)


def test_renames_between_lookup_and_use_stay_in_the_share(
    guest: MountedGuest, shared: Path
) -> None:
    (shared / "swapped").mkdir()
    (shared / "swapped" / "secret").write_text("decoy")
    (shared / "link").symlink_to("..")
    swapper = Swapper(shared)
    swapper.start()
    seen = set()
    try:
        for _ in range(1500):
            seen.add(_read_through(guest, b"swapped", b"secret"))
    finally:
        swapper.stop()
    assert swapper.swaps > 10
    assert seen <= {b"decoy", errno.ENOENT, errno.ENOTDIR}
    # Otherwise the test has tried nothing.
    assert b"decoy" in seen and len(seen) > 1


def _read_through(guest: MountedGuest, directory: bytes, name: bytes) -> bytes | int:
    """Return what the guest reads at a path, or the errno."""
    error, reply = guest.front_end.request(Opcode.LOOKUP, ROOT, directory + b"\0", ENTRY)
    if error:
        return error
    node = wire.entry_out.unpack_from(reply).nodeid
    error, reply = guest.front_end.request(Opcode.LOOKUP, node, name + b"\0", ENTRY)
    if error:
        return error
    file = wire.entry_out.unpack_from(reply).nodeid
    opened = wire.open_out.unpack_from(
        guest.ask(Opcode.OPEN, file, wire.open_in.pack(), wire.open_out.size)
    )
    data = guest.read(file, opened.fh, 0, 100)
    guest.release(file, opened.fh)
    return data


class ProcDaemon(DaemonProcess):
    """A daemon whose share has a /proc mounted in it, in a mount namespace of their own."""

    command = ("unshare", "-m", "sh", "-c", 'mount --rbind /proc "$0" && exec "$@"')


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.root
def test_magic_links_are_links_like_any_other(sandbox: str, tmp_path: Path, shared: Path) -> None:
    (shared / "proc").mkdir()
    options = [
        str(shared / "proc"),
        *(sys.executable, "-m", "farwatchd"),
        *(
            f"--socket-path={tmp_path}/socket",
            f"--shared-dir={shared}",
            f"--sandbox={sandbox}",
            "--xattr",
        ),
    ]
    daemon = ProcDaemon(tmp_path / "socket", options)
    daemon.wait_for("listening on")
    guest = MountedGuest(daemon)
    node = ROOT
    for name in (b"proc", str(daemon.pid).encode()):
        node = guest.lookup(node, name).nodeid
    for name in (b"root", b"cwd", b"exe"):
        entry = guest.lookup(node, name)
        assert stat.S_ISLNK(entry.attr_mode)
        assert guest.fails(Opcode.OPEN, entry.nodeid, wire.open_in.pack(), 64) == errno.ELOOP
        assert guest.fails(Opcode.OPENDIR, entry.nodeid, wire.open_in.pack(), 64) == errno.ENOTDIR
        assert guest.fails(Opcode.LOOKUP, entry.nodeid, b"etc\0", ENTRY) == errno.ENOTDIR
        linked = wire.link_in.pack(oldnodeid=entry.nodeid) + b"linked\0"
        assert guest.fails(Opcode.LINK, ROOT, linked, ENTRY) in (errno.EXDEV, errno.EPERM)
    guest.leave()
    assert daemon.end() == 0
    assert not list((shared / "proc").iterdir())
    assert subprocess.run(["mountpoint", "-q", str(shared / "proc")], check=False).returncode != 0
