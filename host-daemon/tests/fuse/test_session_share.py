# SPDX-License-Identifier: Apache-2.0
"""The session over the real file system and the real watch table, without a transport."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import SetattrValid
from tests.support.fuse_client import ROOT, Client
from tests.support.native_part import make_plain
from tests.support.watch_host import MAX_WATCHES, Host


class Mounted:
    """A share with a guest that has mounted it."""

    def __init__(self, share: Path) -> None:
        self.share = share
        self.fs = PassthroughFs(share, ShareOptions(xattr=True))
        self.host = Host(share)
        self.session = Session(
            self.fs, self.host.table, SessionOptions(), make_plain=make_plain(self.fs)
        )
        self.client = Client(self.session)
        self.init = self.client.init()

    def close(self) -> None:
        self.host.close()
        self.fs.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    mounted = Mounted(tmp_path)
    yield mounted
    mounted.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_file_is_created_written_read_renamed_and_deleted(mounted: Mounted) -> None:
    client, share = mounted.client, mounted.share
    entry, opened = client.create(ROOT, b"file", 0o100640)
    data = os.urandom(300_000)
    assert client.write(entry.nodeid, opened.fh, 5, data) == len(data)
    assert (share / "file").read_bytes() == bytes(5) + data
    assert client.read(entry.nodeid, opened.fh, 0, 1 << 20) == bytes(5) + data
    assert client.getattr(entry.nodeid).attr_size == len(data) + 5
    assert client.setattr(entry.nodeid, SetattrValid.SIZE, size=7).attr_size == 7
    client.setattr(entry.nodeid, SetattrValid.MTIME, mtime=(1 << 64) - 2, mtimensec=5)
    assert (share / "file").stat().st_mtime_ns == -2_000_000_000 + 5
    client.setxattr(entry.nodeid, b"user.note", b"\0\xff")
    assert client.getxattr(entry.nodeid, b"user.note") == os.getxattr(share / "file", "user.note")
    client.rename(ROOT, b"file", ROOT, b"renamed")
    client.link(entry.nodeid, ROOT, b"second")
    assert client.getattr(entry.nodeid).attr_nlink == 2
    client.unlink(ROOT, b"renamed")
    client.unlink(ROOT, b"second")
    assert client.read(entry.nodeid, opened.fh, 0, 100) == bytes(5) + data[:2]
    client.release(entry.nodeid, opened.fh)
    assert list(share.iterdir()) == []


def test_tmpfile_gets_a_name_by_link(mounted: Mounted) -> None:
    entry, opened = mounted.client.tmpfile(ROOT)
    mounted.client.write(entry.nodeid, opened.fh, 0, b"late")
    assert list(mounted.share.iterdir()) == []
    mounted.client.link(entry.nodeid, ROOT, b"named")
    assert (mounted.share / "named").read_bytes() == b"late"


def test_large_listing_is_served_in_parts(mounted: Mounted) -> None:
    names = {f"{number:04}".encode() for number in range(2500)}
    for name in names:
        (mounted.share / name.decode()).touch()
    client, size = mounted.client, 1 << 20
    fh = client.opendir(ROOT).fh
    # Nothing else is served while names are read and looked up.
    assert 100 < len(client.readdir(ROOT, fh, 0, size, plus=True)) < 300
    assert 1000 < len(client.readdir(ROOT, fh, 0, size)) < 2500
    client.releasedir(ROOT, fh)
    for plus in (False, True):
        listed = client.listdir(ROOT, size, plus=plus)
        assert {each.name for each in listed} >= names
        assert len(listed) == len({each.name for each in listed})


def test_listing_and_forgetting_a_large_directory_leaks_no_descriptor(mounted: Mounted) -> None:
    names = {b"%d" % number for number in range(700)}
    for name in names:
        (mounted.share / os.fsdecode(name)).touch()
    before = descriptors()
    listed = mounted.client.listdir(ROOT, plus=True)
    assert {entry.name for entry in listed} == names | {b".", b".."}
    found = [entry.entry.nodeid for entry in listed if entry.entry is not None]
    assert len(set(found)) == len(names)
    mounted.client.batch_forget(*((nodeid, 1) for nodeid in found[:350]))
    for nodeid in found[350:]:
        mounted.client.forget(nodeid)
    assert descriptors() == before


def test_changes_of_the_host_after_the_reply_are_reported(mounted: Mounted) -> None:
    client, share = mounted.client, mounted.share
    (share / "dir").mkdir()
    assert mounted.init.fsnotify_mask == mounted.host.table.supported
    nodeid = client.lookup(ROOT, b"dir").nodeid
    wanted = Event.CREATE | Event.DELETE | Event.MODIFY | Event.ON_CHILD
    assert client.fsnotify(nodeid, wanted) == wanted
    (share / "dir" / "new").write_text("text")
    (share / "dir" / "new").unlink()
    reported = [(record.nodeid, record.mask, record.name) for record in mounted.host.records()]
    assert reported == [
        (nodeid, Event.CREATE, b"new"),
        (nodeid, Event.MODIFY | Event.ON_CHILD, b"new"),
        (nodeid, Event.DELETE, b"new"),
    ]


def test_forgetting_an_inode_or_the_guest_ends_its_watch(mounted: Mounted) -> None:
    client, share, host = mounted.client, mounted.share, mounted.host
    (share / "dir").mkdir()
    nodeid = client.lookup(ROOT, b"dir").nodeid
    client.lookup(ROOT, b"dir")
    client.fsnotify(nodeid, Event.CREATE)
    client.forget(nodeid)
    assert len(host.table) == 1
    client.forget(nodeid)
    assert host.host_watches() == 0
    with pytest.raises(OSError) as caught:
        client.fsnotify(nodeid, Event.CREATE)
    assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    client.fsnotify(ROOT, Event.CREATE)
    mounted.session.reset()
    assert host.host_watches() == 0


def test_watch_limit_is_enospc(mounted: Mounted) -> None:
    client, share = mounted.client, mounted.share
    refused = []
    for number in range(MAX_WATCHES + 1):
        (share / f"{number}").mkdir()
        nodeid = client.lookup(ROOT, b"%d" % number).nodeid
        try:
            client.fsnotify(nodeid, Event.CREATE)
        except OSError as error:
            refused.append(error.errno)
    # The table may need a watch of its own, on the directory that they are in.
    assert refused in ([errno.ENOSPC], [errno.ENOSPC] * 2)
