# SPDX-License-Identifier: Apache-2.0
"""The whole daemon as a process, driven through its socket by a front-end with guest memory.

No VM is needed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.native import NativeUse, load
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY,
    Event,
    fsnotify_in,
    fsnotify_out,
)
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.virtio_fs import VirtioFsFeature
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import DaemonProcess, running
from tests.support.frontend import FrontEnd
from tests.support.sandboxes import SANDBOXES

BUILT = load(NativeUse.AUTO) is not None


#: The sandbox of a daemon without the native part. The others have it where it was built.
PYTHON = "none, python"


@pytest.fixture(params=[*SANDBOXES, PYTHON])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DaemonProcess]:
    """Yield a daemon in each sandbox, sharing ``tmp_path/shared``."""
    (tmp_path / "shared").mkdir()
    by_python = request.param == PYTHON
    options = [f"--sandbox={'none' if by_python else request.param}", "--xattr"]
    options += ["--native=off"] * by_python
    with running(tmp_path / "socket", tmp_path / "shared", *options) as process:
        by = "the interpreter's code" if by_python or not BUILT else "the native part"
        assert f"serving by {by}" in process.log
        yield process


@pytest.fixture
def guest(daemon: DaemonProcess) -> Iterator[MountedGuest]:
    """Yield a guest with the notification queue that has mounted the share."""
    guest = MountedGuest(daemon)
    yield guest
    guest.leave()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return the shared directory on the host."""
    return tmp_path / "shared"


def test_files_of_each_side_are_seen_by_the_other(guest: MountedGuest, shared: Path) -> None:
    nodeid, fh = guest.create(ROOT, b"from guest")
    data = os.urandom(300_000)
    assert guest.write(nodeid, fh, 5, data) == len(data)
    assert (shared / "from guest").read_bytes() == bytes(5) + data
    assert guest.read(nodeid, fh, 5, len(data) + 100) == data
    guest.release(nodeid, fh)

    (shared / "dir").mkdir()
    (shared / "dir" / "from host").write_bytes(b"hello")
    directory = guest.lookup(ROOT, b"dir").nodeid
    entry = guest.lookup(directory, b"from host")
    assert entry.attr_size == 5
    assert entry.attr_ino == (shared / "dir" / "from host").stat().st_ino
    opened = wire.open_out.unpack_from(
        guest.ask(
            Opcode.OPEN, entry.nodeid, wire.open_in.pack(flags=os.O_RDONLY), wire.open_out.size
        )
    )
    assert guest.read(entry.nodeid, opened.fh, 0, 100) == b"hello"
    guest.release(entry.nodeid, opened.fh)


def test_directory_is_listed_whole_with_nodeids(guest: MountedGuest, shared: Path) -> None:
    for number in range(300):
        (shared / f"file {number}").touch()
    expected = {os.fsencode(name) for name in os.listdir(shared)} | {b".", b".."}  # noqa: PTH208
    assert set(guest.names(ROOT)) == expected
    nodeids = guest.names(ROOT, plus=True)
    assert set(nodeids) == expected
    assert nodeids[b"file 7"] == guest.lookup(ROOT, b"file 7").nodeid


def test_xattrs_and_symlinks_work_where_proc_has_no_name(guest: MountedGuest, shared: Path) -> None:
    nodeid, fh = guest.create(ROOT, b"file")
    value = b"value"
    payload = wire.setxattr_in.pack(size=len(value)) + b"user.key\0" + value
    guest.ask(Opcode.SETXATTR, nodeid, payload)
    assert os.getxattr(shared / "file", "user.key") == value
    reply = guest.ask(Opcode.GETXATTR, nodeid, wire.getxattr_in.pack(size=100) + b"user.key\0", 100)
    assert reply == value
    guest.ask(Opcode.SYMLINK, ROOT, b"link\0/etc/passwd\0", wire.entry_out.size)
    assert os.readlink(shared / "link") == "/etc/passwd"  # noqa: PTH115
    guest.ask(
        Opcode.LINK, ROOT, wire.link_in.pack(oldnodeid=nodeid) + b"second\0", wire.entry_out.size
    )
    assert (shared / "second").samefile(shared / "file")
    guest.release(nodeid, fh)


def test_paths_outside_the_share_are_unreachable(guest: MountedGuest, shared: Path) -> None:
    outside = shared.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (shared / "link").symlink_to(outside)
    for name in (b"..", b".", b"../outside", b"link/secret", b"/etc", b""):
        assert guest.fails(Opcode.LOOKUP, ROOT, name + b"\0", wire.entry_out.size) in (
            errno.EINVAL,
            errno.ENOENT,
        )
    link = guest.lookup(ROOT, b"link")
    assert stat.S_ISLNK(link.attr_mode)
    assert (
        guest.fails(Opcode.LOOKUP, link.nodeid, b"secret\0", wire.entry_out.size) == errno.ENOTDIR
    )
    assert guest.fails(
        Opcode.OPEN, link.nodeid, wire.open_in.pack(flags=os.O_RDONLY), wire.open_out.size
    )
    assert guest.fails(
        Opcode.OPENDIR, link.nodeid, wire.open_in.pack(flags=os.O_RDONLY), wire.open_out.size
    )
    payload = wire.create_in.pack(flags=os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode=0o644) + b"link\0"
    assert guest.fails(Opcode.CREATE, ROOT, payload, wire.entry_out.size + wire.open_out.size)
    assert (outside / "secret").read_text() == "secret"


def test_host_events_arrive_in_order(guest: MountedGuest, shared: Path) -> None:
    assert guest.flags & FUSE_HAS_FSNOTIFY
    assert guest.init.fsnotify_mask & Event.CREATE
    wanted = Event.CREATE | Event.DELETE | Event.MODIFY | Event.ON_CHILD
    assert guest.watch(ROOT, wanted) & wanted == wanted
    (shared / "new").write_bytes(b"data")
    (shared / "new").unlink()
    records = guest.events(3)
    assert [(r.nodeid, r.mask, r.name) for r in records] == [
        (ROOT, Event.CREATE, b"new"),
        (ROOT, Event.MODIFY | Event.ON_CHILD, b"new"),
        (ROOT, Event.DELETE, b"new"),
    ]


def test_watch_of_a_file_ends_with_its_last_name(guest: MountedGuest, shared: Path) -> None:
    (shared / "file").touch()
    entry = guest.lookup(ROOT, b"file")
    guest.watch(entry.nodeid, Event.ATTRIB | Event.DELETE_SELF)
    (shared / "file").unlink()
    records = guest.events(2)
    assert [(r.nodeid, r.mask, r.name) for r in records] == [
        (entry.nodeid, Event.ATTRIB, b""),
        (entry.nodeid, Event.DELETE_SELF, b""),
    ]


@pytest.mark.parametrize("offered", [0, FUSE_FSNOTIFY_OTHERS_ONLY])
@pytest.mark.parametrize("mode", ["remote", "others", "auto"])
def test_own_operations_are_reported_unless_others_only_is_negotiated(
    mode: str, offered: int, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with running(tmp_path / "socket", shared, f"--fsnotify={mode}") as daemon:
        guest = MountedGuest(daemon, extra_flags=offered)
        others_only = bool(offered) and mode != "remote"
        assert bool(guest.flags & FUSE_FSNOTIFY_OTHERS_ONLY) == others_only
        guest.watch(ROOT, Event.CREATE)
        guest.create(ROOT, b"from guest")
        (shared / "from host").touch()
        expected = [b"from host"] if others_only else [b"from guest", b"from host"]
        assert [record.name for record in guest.events(len(expected))] == expected
        guest.leave()


@pytest.mark.root
def test_each_of_two_guests_gets_the_events_of_the_other(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    options = ("--fsnotify=others",)
    with (
        running(tmp_path / "first", shared, *options) as first_daemon,
        running(tmp_path / "second", shared, *options) as second_daemon,
    ):
        first, second = (
            MountedGuest(each, extra_flags=FUSE_FSNOTIFY_OTHERS_ONLY)
            for each in (first_daemon, second_daemon)
        )
        for guest in (first, second):
            guest.watch(ROOT, Event.CREATE)
        for number in range(3):
            first.create(ROOT, b"by first %d" % number)
            second.create(ROOT, b"by second %d" % number)
        (shared / "last").touch()
        for guest, other in ((first, b"second"), (second, b"first")):
            assert [record.name for record in guest.events(4)] == [
                *(b"by %s %d" % (other, number) for number in range(3)),
                b"last",
            ]
            guest.leave()


def test_thousand_files_lose_no_event_with_few_buffers(guest: MountedGuest, shared: Path) -> None:
    guest.watch(ROOT, Event.CREATE)
    names = [f"file {number}".encode() for number in range(1000)]
    for name in names:
        (shared / os.fsdecode(name)).touch()
    assert [r.name for r in guest.events(len(names))] == names


@pytest.mark.root
def test_guest_that_mounts_again_finds_all_and_no_descriptor_is_left_open(
    daemon: DaemonProcess, shared: Path
) -> None:
    for name in ("open", *(f"file {number}" for number in range(50))):
        (shared / name).touch()
    counts = []
    for _ in range(3):
        guest = MountedGuest(daemon)
        assert len(guest.names(ROOT, plus=True)) == 53
        guest.create(ROOT, b"open")
        guest.watch(ROOT, Event.CREATE)
        guest.ask(Opcode.DESTROY, 0)
        guest.init = guest.mount()
        guest.lookup(ROOT, b"open")
        counts.append(daemon.descriptors())
        guest.leave()
    assert len(set(counts)) == 1, counts


def test_rebooted_guest_starts_with_nothing(guest: MountedGuest, shared: Path) -> None:
    (shared / "file").touch()
    nodeid = guest.lookup(ROOT, b"file").nodeid
    guest.front_end.reboot()
    assert (
        guest.fails(Opcode.GETATTR, ROOT, wire.getattr_in.pack(), wire.attr_out.size) == errno.EIO
    )
    guest.init = guest.mount()
    assert (
        guest.fails(Opcode.GETATTR, nodeid, wire.getattr_in.pack(), wire.attr_out.size)
        == errno.ESTALE
    )
    assert guest.lookup(ROOT, b"file").nodeid != nodeid


@pytest.mark.root
def test_descriptors_of_forgotten_inodes_are_closed(
    daemon: DaemonProcess, guest: MountedGuest, shared: Path
) -> None:
    before = daemon.descriptors()
    for number in range(100):
        (shared / f"file {number}").touch()
    nodeids = [guest.lookup(ROOT, f"file {number}".encode()).nodeid for number in range(100)]
    guest.lookup(ROOT, b"file 0")
    assert daemon.descriptors() == before + 100
    payload = wire.batch_forget_in.pack(count=99) + b"".join(
        wire.forget_one.pack(nodeid=nodeid, nlookup=1) for nodeid in nodeids[1:]
    )
    guest.front_end.send_no_reply(Opcode.BATCH_FORGET, 0, payload)
    guest.front_end.forget(nodeids[0])
    assert daemon.descriptors() == before + 1
    guest.front_end.forget(nodeids[0])
    assert daemon.descriptors() == before


def test_vmm_without_a_notification_queue_has_a_share_without_events(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with running(tmp_path / "socket", tmp_path) as daemon:
        guest = MountedGuest(daemon, notification=False)
        assert guest.lookup(ROOT, b"file").attr_size == 4
        assert b"file" in guest.names(ROOT, plus=True)
        guest.leave()


def test_switched_off_events_are_not_offered(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--fsnotify=off") as daemon:
        guest = MountedGuest(daemon, notification=False)
        assert not guest.front_end.offered & VirtioFsFeature.NOTIFICATION
        assert not guest.flags & FUSE_HAS_FSNOTIFY
        assert guest.init.fsnotify_mask == 0
        payload = fsnotify_in.pack(mask=int(Event.CREATE))
        assert guest.fails(Opcode.FSNOTIFY, ROOT, payload, fsnotify_out.size) == errno.ENOSYS
        guest.leave()


def test_tag_and_number_of_queues_are_in_the_configuration(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--tag=work", "--num-request-queues=2") as daemon:
        guest = FrontEnd(daemon.connect(), num_request_queues=2)
        guest.negotiate()
        tag, queues, size = struct.unpack("<36sII", guest.config)
        assert (tag.rstrip(b"\0"), queues, size) == (b"work", 2, 4096)
        guest.close()


def test_watch_beyond_max_watches_is_enospc(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    with running(tmp_path / "socket", tmp_path, "--max-watches=2") as daemon:
        guest = MountedGuest(daemon)
        nodeids = [guest.lookup(ROOT, name).nodeid for name in (b"a", b"b", b"c")]
        payload = fsnotify_in.pack(mask=int(Event.MODIFY))
        for nodeid in nodeids[:2]:
            guest.watch(nodeid, Event.MODIFY)
        assert guest.fails(Opcode.FSNOTIFY, nodeids[2], payload, fsnotify_out.size) == errno.ENOSPC
        guest.front_end.forget(nodeids[0])
        guest.watch(nodeids[2], Event.MODIFY)
        guest.leave()


def test_read_only_share_refuses_changes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with running(tmp_path / "socket", tmp_path, "--readonly") as daemon:
        guest = MountedGuest(daemon)
        nodeid = guest.lookup(ROOT, b"file").nodeid
        open_out = wire.open_out.size
        assert (
            guest.fails(Opcode.OPEN, nodeid, wire.open_in.pack(flags=os.O_RDWR), open_out)
            == errno.EROFS
        )
        assert guest.fails(Opcode.UNLINK, ROOT, b"file\0") == errno.EROFS
        assert (
            guest.fails(Opcode.MKDIR, ROOT, wire.mkdir_in.pack(mode=0o755) + b"dir\0", 128)
            == errno.EROFS
        )
        guest.ask(Opcode.OPEN, nodeid, wire.open_in.pack(flags=os.O_RDONLY), open_out)
        guest.leave()
    assert (tmp_path / "file").read_text() == "text"


def test_single_file_is_shared_in_a_directory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("not shared")
    (tmp_path / "file").write_text("text")
    with running(tmp_path / "socket", tmp_path / "file") as daemon:
        guest = MountedGuest(daemon)
        assert set(guest.names(ROOT)) == {b".", b"..", b"file"}
        entry = guest.lookup(ROOT, b"file")
        assert (entry.attr_size, entry.attr_ino) == (4, (tmp_path / "file").stat().st_ino)
        guest.watch(entry.nodeid, Event.MODIFY)
        # One call: what truncates is an event of its own.
        with (tmp_path / "file").open("r+") as file:
            file.write("other text")
        assert [(record.nodeid, record.mask) for record in guest.events(1)] == [
            (entry.nodeid, Event.MODIFY)
        ]
        opened = wire.open_out.unpack_from(
            guest.ask(
                Opcode.OPEN,
                entry.nodeid,
                wire.open_in.pack(flags=os.O_RDWR),
                wire.open_out.size,
            )
        )
        assert guest.write(entry.nodeid, opened.fh, 0, b"guest") == 5
        assert (tmp_path / "file").read_text() == "guest text"
        # The directory exists in the sandbox only.
        assert guest.fails(Opcode.UNLINK, ROOT, b"file\0") in (errno.EROFS, errno.EBUSY)
        payload = wire.create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=0o600) + b"new\0"
        room = wire.entry_out.size + wire.open_out.size
        assert guest.fails(Opcode.CREATE, ROOT, payload, room) == errno.EROFS
        guest.leave()
    assert {each.name for each in tmp_path.iterdir()} == {"other", "file"}
