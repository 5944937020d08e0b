# SPDX-License-Identifier: Apache-2.0
"""Rules for owners: who is who on the host, what the guest sees, who may own nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes, Requester
from farwatchd.passthrough.id_map import IdMap, IdTranslation, make_translation, parse_rule
from farwatchd.passthrough.options import ShareOptions
from hypothesis import given
from hypothesis import strategies as st
from tests.support.passthrough_share import SharedDirectory, errno_of

LAST = (1 << 32) - 2
#: What a container manager says: two users, each the same on both sides, and nobody else.
ONLY_TWO = (
    *("forbid-guest:0:1000", "map:1000:1000:1", "forbid-guest:1001:999"),
    *("map:2000:2000:1", "forbid-guest:2001:4294965294"),
)


def id_map(*rules: str) -> IdMap:
    return IdMap(map(parse_rule, rules))


@pytest.mark.parametrize(
    ("rules", "guest", "host"),
    [
        ((), 0, 0),
        (("map:1000:5000:10",), 1000, 5000),
        (("map:1000:5000:10",), 1009, 5009),
        (("map:1000:5000:10",), 1010, 1010),
        (("map:1000:5000:10",), 999, 999),
        (("guest:0:100:5", "guest:5:0:5"), 4, 104),
        (("guest:0:100:5", "guest:5:0:5"), 5, 0),
        (("host:5000:1000:10",), 1000, 1000),
        ((f"squash-guest:0:501:{LAST + 1}",), 0, 501),
        ((f"squash-guest:0:501:{LAST + 1}",), LAST, 501),
        (ONLY_TWO, 1000, 1000),
        (ONLY_TWO, 2000, 2000),
        (ONLY_TWO, 0, None),
        (ONLY_TWO, 1001, None),
        (ONLY_TWO, LAST, None),
    ],
)
def test_ids_are_translated_to_the_host(
    rules: tuple[str, ...], guest: int, host: int | None
) -> None:
    if host is None:
        assert errno_of(id_map(*rules).to_host, guest) == errno.EPERM
    else:
        assert id_map(*rules).to_host(guest) == host


@pytest.mark.parametrize(
    ("rules", "host", "guest"),
    [
        (("map:1000:5000:10",), 5009, 1009),
        (("map:1000:5000:10",), 1000, 1000),
        (("guest:1000:5000:10",), 5000, 5000),
        (("host:5000:1000:10",), 5003, 1003),
        (("squash-host:0:7:1000",), 999, 7),
        (("squash-host:0:7:1000",), 1000, 1000),
        (("squash-guest:0:501:4294967295", "host:501:0:1"), 501, 0),
        (ONLY_TWO, 0, 0),
    ],
)
def test_ids_are_translated_to_the_guest(rules: tuple[str, ...], host: int, guest: int) -> None:
    assert id_map(*rules).to_guest(host) == guest


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 10)), max_size=4),
    st.integers(0, 70),
)
def test_map_rule_translates_both_ways(ranges: list[tuple[int, int, int]], number: int) -> None:
    try:
        found = IdMap(parse_rule(f"map:{guest}:{host}:{count}") for guest, host, count in ranges)
    except ValueError:
        return
    named = [range(guest, guest + count) for guest, _, count in ranges]
    if any(number in each for each in named):
        assert found.to_guest(found.to_host(number)) == number
    else:
        assert found.to_host(number) == number


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is not one of guest"),
        ("nap:0:0:1", "'nap' is not one of guest, host, squash-guest"),
        ("map:0:1", "is not map:source base:target base:count"),
        ("map:0:1:2:3", "is not map:source base:target base:count"),
        ("map:0:-1:2", "is not map:source base:target base:count"),
        ("map:0::2", "is not map:source base:target base:count"),
        ("forbid-guest:0:1:2", "is not forbid-guest:base:count"),
        ("map:1:0:4294967295", "ids are 0 to 4294967294"),
        ("map:0:1:4294967295", "ids are 0 to 4294967294"),
        ("squash-guest:0:4294967295:1", "ids are 0 to 4294967294"),
    ],
)
def test_invalid_rules_are_refused(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_rule(text)


@pytest.mark.parametrize(
    ("rules", "number"),
    [
        (("map:0:0:10", "forbid-guest:9:1"), 9),
        (("map:0:100:10", "map:20:109:1"), 109),
        (("squash-host:0:1:10", "host:3:0:1"), 3),
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: tuple[str, ...], number: int) -> None:
    with pytest.raises(ValueError, match=f"are about the same id: {number}"):
        id_map(*rules)


def shared(path: Path, users: tuple[str, ...], groups: tuple[str, ...]) -> SharedDirectory:
    found = make_translation(
        [parse_rule(text) for text in users], [parse_rule(text) for text in groups]
    )
    assert isinstance(found, IdTranslation)
    return SharedDirectory(path, ShareOptions(xattr=True, id_translation=found))


@pytest.mark.root
def test_new_files_have_translated_ids_and_the_guest_sees_its_own(
    tmp_path: Path,
) -> None:
    share = shared(tmp_path, ("map:1000:5000:1",), ("map:1001:6000:1", "map:7:70:1"))
    requester = Requester(1000, 1001, 1)
    made = [
        share.create(b"file", requester=requester)[0],
        share.fs.mkdir(requester, ROOT, b"directory", 0o755, 0),
        share.fs.mknod(requester, ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, 0),
        share.fs.symlink(requester, ROOT, b"link", b"target"),
        share.fs.tmpfile(requester, ROOT, 0o600, os.O_RDWR, 0)[0],
        share.fs.link(share.lookup("file"), ROOT, b"second"),
    ]
    assert {(entry.stat.st_uid, entry.stat.st_gid) for entry in made} == {(1000, 1001)}
    found = [path.lstat() for path in tmp_path.iterdir()]
    assert len(found) == 5
    assert {(status.st_uid, status.st_gid) for status in found} == {(5000, 6000)}
    share.close()


@pytest.mark.root
def test_the_guest_gives_files_to_its_own_users(tmp_path: Path) -> None:
    share = shared(tmp_path, ("map:1000:5000:1",), ("map:1001:6000:1",))
    (tmp_path / "file").touch()
    nodeid = share.lookup("file")
    changed = share.fs.setattr(nodeid, Changes(uid=1000, gid=1001))
    assert (changed.st_uid, changed.st_gid) == (1000, 1001)
    assert ((tmp_path / "file").stat().st_uid, (tmp_path / "file").stat().st_gid) == (5000, 6000)
    assert share.fs.statx(nodeid, None).stat == share.fs.getattr(nodeid, None) == changed
    # All else is what it is on the host.
    host = (tmp_path / "file").stat()
    for name in (
        "st_mode",
        "st_ino",
        "st_size",
        "st_mtime_ns",
        "st_ctime_ns",
        "st_blocks",
        "st_blksize",
        "st_nlink",
    ):
        assert getattr(changed, name) == getattr(host, name)
    share.fs.setattr(nodeid, Changes(uid=3))
    assert ((tmp_path / "file").stat().st_uid, (tmp_path / "file").stat().st_gid) == (3, 6000)
    share.close()


def test_forbidden_ids_neither_create_nor_own_files(tmp_path: Path) -> None:
    share = shared(tmp_path, ("forbid-guest:1000:10",), ("forbid-guest:1000:10",))
    (tmp_path / "file").touch()
    nodeid = share.lookup("file")
    before = (tmp_path / "file").stat()
    for requester in (Requester(1000, 0, 1), Requester(0, 1009, 1), Requester(0, 0, 1, group=1005)):
        assert errno_of(share.fs.mkdir, requester, ROOT, b"new", 0o755, 0) == errno.EPERM
        assert (
            errno_of(share.fs.create, requester, ROOT, b"new", 0o644, os.O_RDWR, 0, False)
            == errno.EPERM
        )
    changes = Changes(mode=0o777, uid=1000), Changes(gid=1000)
    assert {errno_of(share.fs.setattr, nodeid, each) for each in changes} == {errno.EPERM}
    assert (tmp_path / "file").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    share.close()
