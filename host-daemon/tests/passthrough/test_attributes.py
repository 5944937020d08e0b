# SPDX-License-Identifier: Apache-2.0
"""Attributes and extended attributes through the passthrough file system and on the host."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes
from farwatchd.passthrough.options import ShareOptions
from tests.support.passthrough_share import IS_ROOT, SharedDirectory, errno_of, settled

#: Version 2, then user::rw- group::r-- other::r-- as (tag, permissions, no id), the same as mode
#: 0644.
ACL = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff")


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True))
    share.fs.set_negotiated(posix_acls=True, writeback=False)
    yield share
    share.close()


@pytest.fixture
def file(share: SharedDirectory) -> Path:
    path = share.path / "file"
    path.write_bytes(b"content")
    return path


def test_getattr_is_the_hosts_stat(share: SharedDirectory, file: Path) -> None:
    nodeid, fh = share.open("file")
    assert share.fs.getattr(nodeid, None) == share.fs.getattr(nodeid, fh) == file.stat()
    assert share.fs.getattr(ROOT, None) == share.path.stat()


def test_getattr_sees_the_host_remove_the_file(share: SharedDirectory, file: Path) -> None:
    nodeid, fh = share.open("file")
    file.unlink()
    assert share.fs.getattr(nodeid, None).st_nlink == 0
    assert share.read(nodeid, fh, 0, 10) == b"content"


def test_statx_adds_the_birth_time(share: SharedDirectory, file: Path) -> None:
    before = time.time_ns()
    nodeid, fh = share.open("file")
    result = share.fs.statx(nodeid, None)
    assert result.stat == file.stat()
    assert result == share.fs.statx(nodeid, fh)
    assert result.btime_ns is None or before - 60 * 10**9 < result.btime_ns < before + 10**9
    assert result.file_attributes & ~result.file_attributes_mask == 0


def test_statfs_is_the_hosts(share: SharedDirectory) -> None:
    mine, hosts = share.fs.statfs(ROOT), os.statvfs(share.path)
    assert (mine.f_bsize, mine.f_blocks, mine.f_namemax) == (
        hosts.f_bsize,
        hosts.f_blocks,
        hosts.f_namemax,
    )


def test_mode_is_set_with_its_special_bits(share: SharedDirectory, file: Path) -> None:
    nodeid = share.lookup("file")
    changed = share.fs.setattr(nodeid, Changes(mode=stat.S_IFREG | 0o5751))
    assert changed.st_mode == file.stat().st_mode == stat.S_IFREG | 0o5751


def test_size_is_set_with_and_without_a_handle(share: SharedDirectory, file: Path) -> None:
    nodeid, fh = share.open("file")
    assert settled(share.fs.setattr, nodeid, Changes(size=3)).st_size == 3
    assert file.read_bytes() == b"con"
    assert settled(share.fs.setattr, nodeid, Changes(size=5, fh=fh)).st_size == 5
    assert file.read_bytes() == b"con\0\0"
    assert errno_of(share.fs.setattr, nodeid, Changes(size=5, fh=999)) == errno.EBADF


def test_size_is_set_through_the_handle_of_a_file_that_may_not_be_written(
    share: SharedDirectory,
) -> None:
    entry, opened = share.create(b"file", 0o444)
    assert settled(share.fs.setattr, entry.nodeid, Changes(size=9, fh=opened.fh)).st_size == 9


def test_times_are_set_separately_and_in_nanoseconds(share: SharedDirectory, file: Path) -> None:
    nodeid = share.lookup("file")
    share.fs.setattr(nodeid, Changes(atime_ns=1_234_567_890_123_456_789, mtime_ns=987_654_321))
    status = share.fs.setattr(nodeid, Changes(mtime_ns=-1_500_000_000))
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, -1_500_000_000)
    before = file.stat().st_ctime_ns
    status = share.fs.setattr(nodeid, Changes(atime_ns=Changes.NOW))
    assert (status.st_atime_ns >= before, status.st_mtime_ns) == (True, -1_500_000_000)
    share.fs.setattr(nodeid, Changes(atime_ns=7, mtime_ns=Changes.NOW))
    assert file.stat().st_atime_ns == 7
    assert file.stat().st_mtime_ns >= before


def test_owner_and_group_are_set_separately(share: SharedDirectory, file: Path) -> None:
    uid, gid = (1000, 1001) if IS_ROOT else (os.geteuid(), os.getegid())
    nodeid = share.lookup("file")
    share.fs.setattr(nodeid, Changes(uid=uid))
    assert (file.stat().st_uid, file.stat().st_gid) == (uid, os.getegid())
    share.fs.setattr(nodeid, Changes(gid=gid))
    assert (file.stat().st_uid, file.stat().st_gid) == (uid, gid)
    assert errno_of(share.fs.setattr, nodeid, Changes(uid=0xFFFFFFFF)) == errno.EINVAL
    assert errno_of(share.fs.setattr, nodeid, Changes(gid=0xFFFFFFFF)) == errno.EINVAL


def test_several_attributes_are_set_by_one_request(share: SharedDirectory, file: Path) -> None:
    changes = Changes(
        mode=0o600, uid=os.geteuid(), gid=os.getegid(), size=2, atime_ns=10**18, mtime_ns=2 * 10**18
    )
    status = settled(share.fs.setattr, share.lookup("file"), changes)
    assert status == file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, 2)
    assert (status.st_atime_ns, status.st_mtime_ns) == (10**18, 2 * 10**18)


def test_nothing_to_change_changes_nothing(share: SharedDirectory, file: Path) -> None:
    before = file.stat()
    assert share.fs.setattr(share.lookup("file"), Changes()) == before
    assert file.stat().st_ctime_ns == before.st_ctime_ns


@pytest.mark.parametrize("name", ["file", "directory"])
def test_extended_attributes_are_set_listed_and_removed(
    share: SharedDirectory, file: Path, name: str
) -> None:
    (share.path / "directory").mkdir()
    fs, nodeid = share.fs, share.lookup(name)
    fs.setxattr(nodeid, b"user.empty", b"", 0, False)
    fs.setxattr(nodeid, b"user.\xffbytes", bytes(range(256)), os.XATTR_CREATE, False)
    assert set(fs.listxattr(nodeid)) == {b"user.empty", b"user.\xffbytes"}
    assert os.getxattr(share.path / name, b"user.\xffbytes") == fs.getxattr(
        nodeid, b"user.\xffbytes"
    )
    assert fs.getxattr(nodeid, b"user.empty") == b""
    assert (
        errno_of(fs.setxattr, nodeid, b"user.empty", b"x", os.XATTR_CREATE, False) == errno.EEXIST
    )
    assert (
        errno_of(fs.setxattr, nodeid, b"user.none", b"x", os.XATTR_REPLACE, False) == errno.ENODATA
    )
    fs.removexattr(nodeid, b"user.empty")
    assert errno_of(fs.getxattr, nodeid, b"user.empty") == errno.ENODATA
    assert errno_of(fs.removexattr, nodeid, b"user.empty") == errno.ENODATA
    assert errno_of(fs.setxattr, nodeid, b"nonsense", b"x", 0, False) == errno.EOPNOTSUPP
    assert errno_of(fs.setxattr, nodeid, b"user." + b"n" * 251, b"x", 0, False) == errno.ERANGE
    assert errno_of(fs.setxattr, nodeid, b"user.big", bytes(65537), 0, False) == errno.E2BIG


def test_extended_attributes_can_be_off(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(xattr=False))
    assert errno_of(share.fs.setxattr, ROOT, b"user.a", b"b", 0, False) == errno.ENOSYS
    assert errno_of(share.fs.getxattr, ROOT, b"user.a") == errno.ENOSYS
    assert errno_of(share.fs.listxattr, ROOT) == errno.ENOSYS
    assert errno_of(share.fs.removexattr, ROOT, b"user.a") == errno.ENOSYS
    share.close()


def test_acls_are_hidden_unless_they_are_on(share: SharedDirectory, file: Path) -> None:
    named = bytes.fromhex(
        "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff"
        " 20000400ffffffff"
    )
    os.setxattr(file, b"system.posix_acl_access", named)
    nodeid = share.lookup("file")
    assert b"system.posix_acl_access" in share.fs.listxattr(nodeid)
    assert share.fs.getxattr(nodeid, b"system.posix_acl_access") == named
    hiding = SharedDirectory(share.path)
    nodeid = hiding.lookup("file")
    assert list(hiding.fs.listxattr(nodeid)) == []
    assert errno_of(hiding.fs.getxattr, nodeid, b"system.posix_acl_access") == errno.EOPNOTSUPP
    assert (
        errno_of(hiding.fs.setxattr, nodeid, b"system.posix_acl_access", ACL, 0, False)
        == errno.EOPNOTSUPP
    )
    hiding.close()


def test_setxattr_of_an_acl_clears_set_group_id_with_kill_sgid(
    share: SharedDirectory, file: Path
) -> None:
    nodeid = share.lookup("file")
    for kill in (False, True):
        file.chmod(0o2755)
        share.fs.setxattr(nodeid, b"system.posix_acl_access", ACL, 0, kill)
        assert stat.S_IMODE(file.stat().st_mode) == (0o644 if kill else 0o2644)
