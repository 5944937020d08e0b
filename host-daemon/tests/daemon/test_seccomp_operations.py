# SPDX-License-Identifier: Apache-2.0
"""Every operation, its success and its failure, in a daemon whose system calls are restricted.

No operation ends it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import Opcode, SetattrValid
from tests.support.daemon_guest import MountedGuest
from tests.support.daemon_handler import DaemonHandler
from tests.support.daemon_process import running
from tests.support.fuse_client import ROOT, Client

ACL = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff")
WRITES = os.O_RDWR | os.O_CREAT


@pytest.fixture(params=["namespace", "none"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Yield a client of a daemon that ends at the first forbidden call, with all options on."""
    (tmp_path / "shared").mkdir()
    options = (
        "--xattr",
        "--posix-acl",
        "--posix-lock",
        "--flock",
        "--allow-direct-io",
        "--killpriv-v2",
    )
    with running(
        tmp_path / "socket", tmp_path / "shared", f"--sandbox={request.param}", *options
    ) as daemon:
        guest = MountedGuest(daemon)
        client = Client(DaemonHandler(guest))
        client.agreed = guest.init
        yield client
        guest.leave()


def _files(client: Client, uid: int) -> None:
    client.uid = client.gid = uid
    name = b"file%d" % uid
    entry, opened = client.create(ROOT, name, flags=WRITES)
    node, fh = entry.nodeid, opened.fh
    client.write(node, fh, 0, b"data" * 100)
    client.write(node, fh, 0, b"data", write_flags=fuse.WRITE_KILL_SUIDGID)
    client.read(node, fh, 0, 4096)
    client.fsync(node, fh)
    client.fsync(node, fh, datasync=True)
    client.fallocate(node, fh, 0, 0, 8192)
    client.lseek(node, fh, 0, os.SEEK_HOLE)
    other, target = client.create(ROOT, name + b"-copy", flags=WRITES)
    client.copy_file_range((node, fh, 0), (other.nodeid, target.fh, 0), 100)
    client.getattr(node)
    client.getattr(node, fh)
    client.statx(node)
    client.flush(node, fh)
    client.release(node, fh)
    client.setattr(node, SetattrValid.MODE, mode=0o6755)
    client.setattr(node, SetattrValid.UID | SetattrValid.GID, uid=uid, gid=uid)
    client.setattr(node, SetattrValid.SIZE | SetattrValid.KILL_SUIDGID, size=5)
    client.setattr(node, SetattrValid.ATIME | SetattrValid.MTIME_NOW, atime=5)
    for flags in (
        os.O_RDONLY,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_DIRECT,
        os.O_RDWR | os.O_TRUNC,
    ):
        again = client.open(node, flags, fuse.OPEN_KILL_SUIDGID if flags & os.O_TRUNC else 0).fh
        client.setattr(
            node, SetattrValid.SIZE | SetattrValid.FH, size=0, fh=again
        ) if flags & os.O_ACCMODE else None
        client.release(node, again)
    nameless, handle = client.tmpfile(ROOT)
    client.link(nameless.nodeid, ROOT, name + b"-named")
    client.release(nameless.nodeid, handle.fh)


def _names(client: Client) -> None:
    client.mkdir(ROOT, b"dir", 0o2755)
    client.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600)
    client.mknod(ROOT, b"device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    link = client.symlink(ROOT, b"link", b"target")
    client.readlink(link.nodeid)
    client.link(link.nodeid, ROOT, b"link2")
    client.rename(ROOT, b"link2", ROOT, b"link3")
    client.rename(ROOT, b"link3", ROOT, b"link4", 1)
    client.rename(ROOT, b"link4", ROOT, b"link", 2)
    client.unlink(ROOT, b"link4")
    client.rmdir(ROOT, b"dir")
    client.listdir(ROOT)
    client.listdir(ROOT, plus=True)
    fh = client.opendir(ROOT).fh
    client.fsyncdir(ROOT, fh)
    client.fsyncdir(ROOT, fh, datasync=True)
    client.releasedir(ROOT, fh)
    client.statfs()
    client.syncfs()


def _attributes(client: Client) -> None:
    node = client.lookup(ROOT, b"file0").nodeid
    client.setxattr(node, b"user.a", b"value")
    client.getxattr(node, b"user.a")
    client.listxattr(node)
    client.setxattr(node, b"system.posix_acl_access", ACL)
    client.removexattr(node, b"user.a")


def _locks(client: Client) -> None:
    node = client.lookup(ROOT, b"file0").nodeid
    fh = client.open(node).fh
    for flags in (0, fuse.LK_FLOCK):
        for kind in (1, 2):
            args = fuse.lk_in.pack_values(fh, 7, 0, 100, kind, 1, flags, 0)
            client.call(Opcode.SETLK, node, args, 0)
    client.call(
        Opcode.GETLK, node, fuse.lk_in.pack_values(fh, 7, 0, 100, 1, 1, 0, 0), fuse.lk_out.size
    )
    client.release(node, fh)


def _watches(client: Client) -> None:
    client.fsnotify(ROOT, Event.CREATE | Event.MODIFY | Event.ON_CHILD | Event.RENAME)
    file = client.lookup(ROOT, b"file0").nodeid
    client.fsnotify(file, Event.MODIFY | Event.ATTRIB)
    client.fsnotify(file, Event(0))


def _failures(client: Client, shared: Path) -> None:
    node = client.lookup(ROOT, b"file0").nodeid
    gone = client.mkdir(ROOT, b"gone").nodeid
    (shared / "gone").rmdir()
    attempts: list[Callable[[], object]] = [
        lambda: client.lookup(ROOT, b"none"),
        lambda: client.mkdir(ROOT, b"file0"),
        lambda: client.create(ROOT, b"file0", flags=WRITES | os.O_EXCL),
        lambda: client.rename(ROOT, b"none", ROOT, b"other"),
        lambda: client.rename(ROOT, b"file0", gone, b"other"),
        lambda: client.create(gone, b"new"),
        lambda: client.link(gone, ROOT, b"second"),
        lambda: client.getxattr(node, b"user.none"),
        lambda: client.call(Opcode.IOCTL, node, bytes(32)),
        lambda: client.call(Opcode.ACCESS, node, bytes(8)),
        lambda: client.call(600, node),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"[a-z]"):
            attempt()


@pytest.mark.root
def test_no_operation_makes_a_forbidden_call(client: Client, tmp_path: Path) -> None:
    for uid in (0, 1000):
        _files(client, uid)
    client.uid = client.gid = 0
    _names(client)
    _attributes(client)
    _locks(client)
    _watches(client)
    _failures(client, tmp_path / "shared")
    (tmp_path / "shared" / "file0").rename(tmp_path / "shared" / "renamed")
    (tmp_path / "shared" / "renamed").unlink()
    client.forget(client.lookup(ROOT, b"fifo").nodeid)
    client.destroy()
