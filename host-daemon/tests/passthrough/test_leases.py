# SPDX-License-Identifier: Apache-2.0
"""Leases of host processes (fcntl(2), F_SETLEASE).

A request that opens or truncates the file waits for the lease holder; other requests do not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes, Lock, OperationDeferred
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.wire.fuse import SetattrValid
from tests.support.fuse_client import Client
from tests.support.passthrough_share import DAEMON, SharedDirectory, errno_of

#: Holds a lease on the file of its argument until a line comes, or, if polite, another process
#: wants the file: a lease to write, unless it is a reader.
HOLDER = """
import fcntl, signal, sys
reads = sys.argv[2] == "reader"
file = open(sys.argv[1], "rb" if reads else "r+b")
def asked(*_):
    if sys.argv[2] == "polite":
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, asked)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK if reads else fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.readline()
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


@contextmanager
def leased(
    path: Path, polite: bool = False, kind: str = "stubborn"
) -> Iterator[Callable[[], None]]:
    """Have another process hold a lease on a file; gives what makes it release the lease."""
    command = [sys.executable, "-c", HOLDER, str(path), "polite" if polite else kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"

        def release() -> None:
            holder.communicate("\n", timeout=10)

        try:
            yield release
        finally:
            holder.kill()


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    (tmp_path / "file").write_bytes(b"content")
    share = SharedDirectory(tmp_path)
    yield share
    share.close()


def create(share: SharedDirectory, nodeid: int) -> object:
    return share.fs.create(DAEMON, ROOT, b"file", 0o644, os.O_WRONLY | os.O_TRUNC, 0, False)


OPERATIONS: dict[str, Callable[[SharedDirectory, int], object]] = {
    "open": lambda share, nodeid: share.fs.open(nodeid, os.O_RDONLY, False),
    "open to truncate": lambda share, nodeid: share.fs.open(
        nodeid, os.O_WRONLY | os.O_TRUNC, False
    ),
    "create": create,
    "truncate": lambda share, nodeid: share.fs.setattr(nodeid, Changes(size=0, mtime_ns=5)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_a_leased_file_is_deferred(share: SharedDirectory, name: str) -> None:
    nodeid = share.lookup("file")
    with leased(share.path / "file") as release:
        with pytest.raises(OperationDeferred) as caught:
            OPERATIONS[name](share, nodeid)
        # Others are served meanwhile.
        assert share.fs.getattr(nodeid, None).st_size == 7
        release()
        result = caught.value.complete(caught.value.task())
    assert (share.path / "file").stat().st_size == (7 if name == "open" else 0)
    if name == "truncate":
        assert result.st_mtime_ns == 5
    else:
        opened = result[1] if name == "create" else result
        assert os.fstat(share.passthrough.share.open_files.fd(nodeid, opened.fh)).st_nlink == 1


def test_second_lock_owner_of_a_file_that_is_read_breaks_no_lease(share: SharedDirectory) -> None:
    path = share.path / "file"
    nodeid, fh = share.open("file", os.O_RDONLY)
    to_read, to_write = (Lock(kind, 0, 9, 1) for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK))
    with leased(path, kind="reader"):
        share.fs.setlk(nodeid, fh, 0xA, to_read)
        share.fs.setlk(nodeid, fh, 0xB, to_read)
        # The kernel has not asked the holder for it.
        assert not _breaks(path)
        # No correct guest asks for that with this file.
        assert errno_of(share.fs.setlk, nodeid, fh, 0xC, to_write) == errno.EAGAIN
        assert _breaks(path)


def _breaks(path: Path) -> bool:
    """Return whether a lease on a file is being broken."""
    inode = str(path.stat().st_ino)
    leases = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (found,) = (line for line in leases if "LEASE" in line and line[5].endswith(f":{inode}"))
    return "BREAKING" in found


def test_open_with_o_nonblock_of_a_leased_file_is_eagain(share: SharedDirectory) -> None:
    nodeid = share.lookup("file")
    with leased(share.path / "file"):
        flags = os.O_RDONLY | os.O_NONBLOCK
        assert errno_of(share.fs.open, nodeid, flags, False) == errno.EAGAIN


def test_failure_after_waiting_leaves_no_inode_behind(share: SharedDirectory) -> None:
    with leased(share.path / "file"):
        with pytest.raises(OperationDeferred) as caught:
            create(share, 0)
        known = len(share.passthrough.share.inodes)
        with pytest.raises(PermissionError):
            caught.value.complete(PermissionError(errno.EACCES, "refused"))
    assert len(share.passthrough.share.inodes) == known - 1


def test_session_replies_when_the_lease_is_released(share: SharedDirectory) -> None:
    client = Client(Session(share.fs, None, SessionOptions()))
    client.init()
    path = share.path / "file"
    node = client.lookup(ROOT, b"file").nodeid
    with leased(path, polite=True):
        fh = client.open(node).fh
    assert client.read(node, fh, 0, 10) == b"content"
    client.release(node, fh)
    with leased(path, polite=True):
        assert client.setattr(node, SetattrValid.SIZE, size=3).attr_size == 3
    with leased(path, polite=True):
        entry, opened = client.create(ROOT, b"file")
        assert (entry.nodeid, client.read(node, opened.fh, 0, 10)) == (node, b"con")
