# SPDX-License-Identifier: Apache-2.0
"""The resource limits of a guest in a running daemon.

Beyond a limit the guest gets an error, all else goes on, and released resources can be used again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.wire import fuse as wire
from farwatchd.wire import vhost_user as vu
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_handler import DaemonHandler
from tests.support.daemon_process import running
from tests.support.fuse_client import Client

FILES = 200


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    shared.mkdir()
    for number in range(FILES):
        (shared / f"{number}").write_text(f"{number}")
    return shared


@contextlib.contextmanager
def client_of(tmp_path: Path, shared: Path, *options: str) -> Iterator[Client]:
    """Yield a client of a daemon in which it uses nothing yet."""
    with running(tmp_path / "socket", shared, *options) as daemon:
        guest = MountedGuest(daemon)
        client = Client(DaemonHandler(guest))
        client.agreed = guest.init
        yield client
        guest.leave()


def until_refused(what: Callable[[int], object]) -> tuple[int, int]:
    """Call until it fails; return the number of successes, and the errno."""
    for number in range(FILES):
        try:
            what(number)
        except OSError as error:
            return number, error.errno or 0
    raise AssertionError(f"it was done {FILES} times")


def test_open_files_beyond_the_limit_are_enfile(tmp_path: Path, shared: Path) -> None:
    with client_of(tmp_path, shared, "--rlimit-nofile=80") as client:
        node = client.lookup(ROOT, b"7").nodeid
        handles = [client.open(node).fh]
        count, number = until_refused(lambda _: handles.append(client.open(node).fh))
        assert (number, count > 20) == (errno.ENFILE, True)
        for attempt in (lambda: client.create(ROOT, b"new"), lambda: client.opendir(ROOT)):
            with pytest.raises(OSError, match=os.strerror(errno.ENFILE)):
                attempt()
        # Open files can be used, known inodes can be looked up.
        assert client.read(node, handles[0], 0, 10) == b"7"
        assert client.getattr(node).attr_size == 1
        for fh in handles:
            client.release(node, fh)
        assert client.read(node, client.open(node).fh, 0, 10) == b"7"
        assert client.lookup(ROOT, b"8").attr_size == 1


@pytest.mark.parametrize("handles", ["never", "prefer"])
def test_inodes_beyond_the_limit_are_enfile(handles: str, tmp_path: Path, shared: Path) -> None:
    options = ("--max-inodes=50", f"--inode-file-handles={handles}")
    with client_of(tmp_path, shared, *options) as client:
        nodes: list[int] = []
        count, number = until_refused(
            lambda which: nodes.append(client.lookup(ROOT, b"%d" % which).nodeid)
        )
        assert (count, number) == (49, errno.ENFILE)
        made: list[Callable[[], object]] = [
            lambda: client.mkdir(ROOT, b"made"),
            lambda: client.create(ROOT, b"made"),
            lambda: client.symlink(ROOT, b"made", b"7"),
            lambda: client.mknod(ROOT, b"made", 0o100600),
        ]
        for make in made:
            with pytest.raises(OSError, match=os.strerror(errno.ENFILE)):
                make()
            assert not os.path.lexists(shared / "made")
        # Listing goes on without them.
        listed = client.listdir(ROOT, plus=True)
        assert {entry.name for entry in listed} >= {b"%d" % which for which in range(FILES)}
        assert client.lookup(ROOT, b"3").nodeid == nodes[3]
        assert client.read(nodes[3], client.open(nodes[3]).fh, 0, 10) == b"3"
        client.batch_forget(*((node, 1000) for node in nodes))
        for which in range(49):
            client.lookup(ROOT, b"%d" % (100 + which))


def test_inodes_by_descriptor_beyond_the_limit_are_enfile(tmp_path: Path, shared: Path) -> None:
    with client_of(tmp_path, shared, "--rlimit-nofile=80", "--inode-file-handles=never") as client:
        nodes: list[int] = []
        count, number = until_refused(
            lambda which: nodes.append(client.lookup(ROOT, b"%d" % which).nodeid)
        )
        assert (number, count > 20) == (errno.ENFILE, True)
        assert client.getattr(nodes[3]).attr_size == 1
        client.batch_forget(*((node, 1) for node in nodes))
        assert client.lookup(ROOT, b"150").nodeid


def test_watches_beyond_the_limit_are_enospc(tmp_path: Path, shared: Path) -> None:
    with client_of(tmp_path, shared, "--max-watches=10") as client:
        count, number = until_refused(
            lambda which: client.fsnotify(client.lookup(ROOT, b"%d" % which).nodeid, Event.MODIFY)
        )
        # The table may have watches of its own, on the directory that they are in.
        assert (number, 1 <= count <= 10) == (errno.ENOSPC, True)
        node = client.lookup(ROOT, b"0").nodeid
        assert client.fsnotify(node, Event.MODIFY | Event.ATTRIB) == Event.MODIFY | Event.ATTRIB
        client.fsnotify(node, Event(0))
        client.forget(node, 1000)
        client.fsnotify(client.lookup(ROOT, b"150").nodeid, Event.MODIFY)


def test_requests_beyond_the_size_limits_are_refused(tmp_path: Path, shared: Path) -> None:
    with client_of(tmp_path, shared, "--xattr") as client:
        node = client.lookup(ROOT, b"7").nodeid
        fh = client.open(node).fh
        most = client.agreed.max_write
        data = os.urandom(most)
        assert client.write(node, fh, 0, data) == most
        assert client.read(node, fh, 0, most) == data
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            client.write(node, fh, 0, data + b"x")
        # The limit of a read is in the guest's pages, which may be larger than 4 KiB.
        assert client.read(node, fh, 0, 2 * most) == data
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            client.call(Opcode.MKDIR, ROOT, wire.mkdir_in.pack() + b"x" * most + b"\0")
        with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
            client.call(Opcode.LOOKUP, ROOT, b"x" * 60_000 + b"\0")
        with pytest.raises(OSError, match=os.strerror(errno.E2BIG)):
            client.setxattr(node, b"user.large", bytes(65537))
        assert client.getattr(node).attr_size == most


@pytest.mark.parametrize("handles", ["never", "prefer"])
def test_guest_without_descriptors_keeps_its_connection(
    handles: str, tmp_path: Path, shared: Path
) -> None:
    """The front-end's messages that bring a descriptor, and another connection, still work."""
    options = ("--rlimit-nofile=64", f"--inode-file-handles={handles}")
    with running(tmp_path / "socket", shared, *options) as daemon:
        guest = MountedGuest(daemon)
        client = Client(DaemonHandler(guest))
        client.agreed = guest.init
        node = client.lookup(ROOT, b"7").nodeid
        assert until_refused(lambda _: client.open(node))[1] == errno.ENFILE
        queue = guest.front_end.channels[2]
        guest.front_end.set(
            vu.FrontEndRequest.SET_VRING_CALL, vu.number.pack(value=2), [queue.call]
        )
        other = daemon.connect()
        assert client.getattr(node).attr_size == 1
        assert daemon.process.poll() is None
        other.close()
        guest.leave()
