# SPDX-License-Identifier: Apache-2.0
"""Directory entries of the passthrough file system: created, removed, renamed.

None leads out of the share.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes, FileSystem, Requester
from farwatchd.passthrough import share as share_module
from farwatchd.passthrough.options import ShareOptions
from tests.support.passthrough_share import (
    DAEMON,
    IS_ROOT,
    USER,
    SharedDirectory,
    errno_of,
    identity,
    names_in,
    open_descriptors,
)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LONGEST = b"n" * 255
NAMES = [b"plain", LONGEST, b"\xff\xfe not utf-8", b" \n\\", "grün".encode()]


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    path = tmp_path / "share"
    path.mkdir()
    share = SharedDirectory(path)
    yield share
    share.close()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_created_found_renamed_and_removed(
    share: SharedDirectory, name: bytes
) -> None:
    made = share.fs.mkdir(DAEMON, ROOT, name, 0o755, 0)
    assert names_in(share.path) == {name}
    assert share.find(ROOT, name).nodeid == made.nodeid
    share.fs.rename(ROOT, name, ROOT, b"other", 0)
    assert share.fs.lookup(ROOT, name) is None
    assert share.find(ROOT, b"other").nodeid == made.nodeid
    share.fs.rename(ROOT, b"other", ROOT, name, 0)
    share.fs.rmdir(ROOT, name)
    assert not names_in(share.path)


def test_a_name_that_is_too_long_for_the_host_is_its_errno(share: SharedDirectory) -> None:
    assert errno_of(share.fs.lookup, ROOT, LONGEST + b"n") == errno.ENAMETOOLONG
    assert errno_of(share.fs.mkdir, DAEMON, ROOT, LONGEST + b"n", 0o755, 0) == errno.ENAMETOOLONG


def test_failures_are_those_of_the_host(share: SharedDirectory) -> None:
    fs, path = share.fs, share.path
    (path / "full").mkdir()
    (path / "full/child").touch()
    (path / "file").touch()
    file = share.lookup("file")
    assert errno_of(fs.rmdir, ROOT, b"full") == errno.ENOTEMPTY
    assert errno_of(fs.rmdir, ROOT, b"file") == errno.ENOTDIR
    assert errno_of(fs.unlink, ROOT, b"full") == errno.EISDIR
    assert errno_of(fs.unlink, ROOT, b"none") == errno.ENOENT
    assert errno_of(fs.mkdir, DAEMON, ROOT, b"file", 0o755, 0) == errno.EEXIST
    assert errno_of(fs.symlink, DAEMON, ROOT, b"file", b"x") == errno.EEXIST
    assert errno_of(fs.mknod, DAEMON, ROOT, b"file", stat.S_IFREG | 0o644, 0, 0) == errno.EEXIST
    assert errno_of(fs.link, file, ROOT, b"full") == errno.EEXIST
    assert errno_of(fs.lookup, file, b"child") == errno.ENOTDIR
    assert errno_of(fs.rename, ROOT, b"full", share.lookup("full"), b"in-itself", 0) == errno.EINVAL


def test_unknown_nodeids_are_stale(share: SharedDirectory) -> None:
    fs = share.fs
    assert errno_of(fs.lookup, 77, b"x") == errno.ESTALE
    assert errno_of(fs.getattr, 77, None) == errno.ESTALE
    assert errno_of(fs.mkdir, DAEMON, 77, b"x", 0o755, 0) == errno.ESTALE
    assert errno_of(fs.rename, ROOT, b"x", 77, b"x", 0) == errno.ESTALE
    assert errno_of(fs.link, 77, ROOT, b"x") == errno.ESTALE
    assert errno_of(fs.open, 77, os.O_RDONLY, False) == errno.ESTALE
    assert errno_of(fs.setattr, 77, Changes(mode=0o600)) == errno.ESTALE
    # docs/protocol.md
    assert errno_of(fs.watch_target, 77) == errno.ENOENT


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_mknod_makes_each_kind(share: SharedDirectory, kind: int) -> None:
    entry = share.fs.mknod(DAEMON, ROOT, b"node", kind | 0o666, 0, 0o027)
    assert entry.stat.st_mode == kind | 0o640 == (share.path / "node").stat().st_mode


def test_mknod_makes_devices_where_the_host_permits_it(share: SharedDirectory) -> None:
    device = os.makedev(5, 300)
    failed = errno_of(share.fs.mknod, DAEMON, ROOT, b"node", stat.S_IFCHR | 0o600, device, 0)
    if failed:
        assert failed == errno.EPERM
        assert not (share.path / "node").exists()
    else:
        assert (share.path / "node").stat().st_rdev == device


def test_special_files_are_never_opened_on_the_host(share: SharedDirectory) -> None:
    os.mkfifo(share.path / "fifo")
    (share.path / "link").symlink_to("fifo")
    (share.path / "directory").mkdir()
    assert errno_of(share.open, "fifo", os.O_RDONLY) == errno.ENXIO
    assert errno_of(share.open, "link", os.O_RDONLY) == errno.ELOOP
    assert errno_of(share.open, "directory", os.O_RDONLY) == errno.EISDIR
    assert errno_of(share.create, b"fifo") == errno.ENXIO
    assert errno_of(share.create, b"link") == errno.ELOOP
    assert errno_of(share.fs.setattr, share.lookup("fifo"), Changes(size=0)) == errno.EINVAL
    assert errno_of(share.fs.setattr, share.lookup("directory"), Changes(size=0)) == errno.EISDIR


def test_no_symbolic_link_leads_out_of_the_share(share: SharedDirectory) -> None:
    outside = share.path.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    fs = share.fs
    directory = fs.symlink(DAEMON, ROOT, b"directory", os.fsencode(outside))
    file = fs.symlink(DAEMON, ROOT, b"file", os.fsencode(outside / "secret"))
    before = (outside / "secret").stat()

    assert stat.S_ISLNK(directory.stat.st_mode)
    assert errno_of(fs.lookup, directory.nodeid, b"secret") == errno.ENOTDIR
    assert errno_of(fs.mkdir, DAEMON, directory.nodeid, b"new", 0o755, 0) == errno.ENOTDIR
    assert errno_of(fs.unlink, directory.nodeid, b"secret") == errno.ENOTDIR
    assert errno_of(fs.rename, directory.nodeid, b"secret", ROOT, b"mine", 0) == errno.ENOTDIR
    assert errno_of(fs.opendir, directory.nodeid, 0) == errno.ENOTDIR
    assert (
        errno_of(fs.create, DAEMON, directory.nodeid, b"new", 0o644, os.O_RDWR, 0, False)
        == errno.ENOTDIR
    )
    assert errno_of(fs.open, file.nodeid, os.O_RDWR, False) == errno.ELOOP
    assert errno_of(share.create, b"file", 0o644, os.O_RDWR | os.O_TRUNC) == errno.ELOOP
    assert errno_of(fs.setattr, file.nodeid, Changes(size=0)) == errno.EINVAL
    assert errno_of(fs.setattr, file.nodeid, Changes(mode=0o777)) in (errno.EOPNOTSUPP, errno.ELOOP)
    assert errno_of(fs.setxattr, file.nodeid, b"user.a", b"b", 0, False) == errno.EPERM
    fs.setattr(file.nodeid, Changes(mtime_ns=10**18, atime_ns=10**18))
    assert fs.getattr(file.nodeid, None).st_mtime_ns == 10**18
    hard = fs.link(file.nodeid, ROOT, b"hard")
    assert hard.nodeid == file.nodeid
    assert fs.readlink(hard.nodeid) == os.fsencode(outside / "secret")
    if IS_ROOT:
        fs.setattr(file.nodeid, Changes(uid=7, gid=8))
        assert (share.path / "file").lstat().st_uid == 7

    assert names_in(outside) == {b"secret"}
    after = (outside / "secret").stat()
    assert (outside / "secret").read_text() == "secret"
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_nlink) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        1,
    )


def test_a_directory_replaced_by_a_link_after_lookup_is_still_the_directory(
    share: SharedDirectory,
) -> None:
    outside = share.path.parent / "outside"
    outside.mkdir()
    (share.path / "directory").mkdir()
    directory = share.lookup("directory")
    (share.path / "directory").rename(share.path / "moved")
    (share.path / "directory").symlink_to(outside)
    share.fs.create(DAEMON, directory, b"file", 0o644, os.O_RDWR, 0, False)
    assert (share.path / "moved/file").exists()
    assert not names_in(outside)


def test_readlink_returns_the_target_unchanged(share: SharedDirectory) -> None:
    target = b"/" + b"t" * 4094
    assert share.fs.readlink(share.fs.symlink(DAEMON, ROOT, b"link", target).nodeid) == target
    assert errno_of(share.fs.symlink, DAEMON, ROOT, b"longer", target + b"t") == errno.ENAMETOOLONG
    assert errno_of(share.fs.readlink, ROOT) == errno.EINVAL


def test_rename_flags_pass_through(share: SharedDirectory) -> None:
    (share.path / "a").write_text("a")
    (share.path / "b").write_text("b")
    assert errno_of(share.fs.rename, ROOT, b"a", ROOT, b"b", RENAME_NOREPLACE) == errno.EEXIST
    share.fs.rename(ROOT, b"a", ROOT, b"b", RENAME_EXCHANGE)
    assert ((share.path / "a").read_text(), (share.path / "b").read_text()) == ("b", "a")
    assert errno_of(share.fs.rename, ROOT, b"a", ROOT, b"none", RENAME_EXCHANGE) == errno.ENOENT
    assert (
        errno_of(share.fs.rename, ROOT, b"a", ROOT, b"b", RENAME_NOREPLACE | RENAME_EXCHANGE)
        == errno.EINVAL
    )
    share.fs.rename(ROOT, b"a", ROOT, b"b", 0)
    assert (share.path / "b").read_text() == "b"
    assert not (share.path / "a").exists()


def test_link_adds_a_name_to_an_inode(share: SharedDirectory) -> None:
    entry, _ = share.create(b"a")
    again = share.fs.link(entry.nodeid, ROOT, b"b")
    assert again.nodeid == entry.nodeid
    assert again.stat.st_nlink == 2
    assert (share.path / "a").samefile(share.path / "b")
    (share.path / "d").mkdir()
    assert errno_of(share.fs.link, share.lookup("d"), ROOT, b"e") == errno.EPERM


def test_link_finds_a_file_that_the_host_has_moved(share: SharedDirectory) -> None:
    entry, _ = share.create(b"a")
    (share.path / "a").rename(share.path / "moved")
    (share.path / "a").write_text("another")
    share.fs.link(entry.nodeid, ROOT, b"b")
    assert (share.path / "moved").samefile(share.path / "b")


def test_a_temporary_file_gets_its_name_by_link(share: SharedDirectory) -> None:
    entry, opened = share.fs.tmpfile(DAEMON, ROOT, 0o666, os.O_RDWR, 0o026)
    assert entry.stat.st_nlink == 0
    assert not names_in(share.path)
    share.write(entry.nodeid, opened.fh, 0, b"temporary")
    linked = share.fs.link(entry.nodeid, ROOT, b"named")
    assert linked.nodeid == entry.nodeid
    assert (share.path / "named").read_text() == "temporary"
    assert stat.S_IMODE((share.path / "named").stat().st_mode) == 0o640


def test_an_exclusive_temporary_file_gets_no_name(share: SharedDirectory) -> None:
    entry, _ = share.fs.tmpfile(DAEMON, ROOT, 0o666, os.O_RDWR | os.O_EXCL, 0)
    assert errno_of(share.fs.link, entry.nodeid, ROOT, b"named") == errno.ENOENT


def test_create_opens_what_is_there_unless_exclusive(share: SharedDirectory) -> None:
    (share.path / "there").write_text("content")
    assert errno_of(share.create, b"there", 0o644, os.O_RDWR | os.O_EXCL) == errno.EEXIST
    entry, opened = share.create(b"there", 0o600)
    assert share.read(entry.nodeid, opened.fh, 0, 100) == b"content"
    entry, opened = share.create(b"there", 0o600, os.O_RDWR | os.O_TRUNC)
    assert entry.nodeid == share.lookup("there")
    assert (share.path / "there").stat().st_size == 0
    assert stat.S_IMODE((share.path / "there").stat().st_mode) != 0o600


def test_new_inodes_belong_to_the_requester_if_the_daemon_is_root(share: SharedDirectory) -> None:
    fs = share.fs
    made = [
        share.create(b"file", requester=USER)[0],
        fs.mkdir(USER, ROOT, b"directory", 0o755, 0),
        fs.symlink(USER, ROOT, b"link", b"target"),
        fs.mknod(USER, ROOT, b"fifo", stat.S_IFIFO | 0o644, 0, 0),
        fs.tmpfile(USER, ROOT, 0o644, os.O_RDWR, 0)[0],
    ]
    expected = (USER.uid, USER.gid) if IS_ROOT else (os.geteuid(), os.getegid())
    assert {(entry.stat.st_uid, entry.stat.st_gid) for entry in made} == {expected}


def test_daemon_has_its_own_ids_again_after_success_and_failure(share: SharedDirectory) -> None:
    before = identity()
    share.create(b"file", requester=USER)
    assert errno_of(share.create, b"file", 0o644, os.O_RDWR | os.O_EXCL, 0, USER) == errno.EEXIST
    assert errno_of(share.fs.mkdir, USER, ROOT, b"file", 0o755, 0) == errno.EEXIST
    assert identity() == before


def test_permission_of_the_requester_is_not_checked_on_the_host(share: SharedDirectory) -> None:
    (share.path / "private").mkdir(mode=0o700)
    entry, _ = share.fs.create(USER, share.lookup("private"), b"file", 0o644, os.O_RDWR, 0, False)
    assert stat.S_ISREG(entry.stat.st_mode)


def test_ids_that_mean_no_id_are_refused_by_root(share: SharedDirectory) -> None:
    nobody = Requester(0xFFFFFFFF, 0, 1)
    assert errno_of(share.create, b"file", 0o644, os.O_RDWR, 0, nobody) == (
        errno.EINVAL if IS_ROOT else 0
    )


def test_the_supplementary_group_counts_in_a_set_group_id_directory(share: SharedDirectory) -> None:
    group = 4321 if IS_ROOT else os.getegid()
    os.chown(share.path, -1, group)
    share.path.chmod(0o2777)
    outsider, _ = share.create(b"outsider", 0o2755, requester=USER)
    insider, _ = share.create(b"insider", 0o2755, requester=Requester(USER.uid, USER.gid, 1, group))
    assert outsider.stat.st_gid == insider.stat.st_gid == group
    assert insider.stat.st_mode & stat.S_ISGID
    if IS_ROOT:
        assert not outsider.stat.st_mode & stat.S_ISGID


@pytest.mark.parametrize("umask", [0, 0o022, 0o777, 0o1077])
def test_the_umask_is_applied_as_the_host_does(share: SharedDirectory, umask: int) -> None:
    file, _ = share.create(b"file", 0o6666, umask=umask)
    directory = share.fs.mkdir(DAEMON, ROOT, b"directory", 0o1777, umask)
    assert stat.S_IMODE(file.stat.st_mode) == 0o6666 & ~(umask & 0o777)
    assert stat.S_IMODE(directory.stat.st_mode) == 0o1777 & ~(umask & 0o777)


def test_default_acl_replaces_the_umask(share: SharedDirectory) -> None:
    # Version 2, then user::rwx group::rwx other::r-x as (tag, permissions, no id).
    acl = bytes.fromhex("02000000 01000700ffffffff 04000700ffffffff 20000500ffffffff")
    os.setxattr(share.path, "system.posix_acl_default", acl)
    entry, _ = share.create(b"file", 0o666, umask=0o077)
    assert stat.S_IMODE(entry.stat.st_mode) == 0o664


def test_a_readonly_share_is_not_changed_by_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "directory").mkdir()
    before = tmp_path.stat()
    share = SharedDirectory(tmp_path, ShareOptions(readonly=True, xattr=True))
    fs = share.fs
    file, fh = share.open("file", os.O_RDONLY)
    refused = [
        errno_of(share.create, b"file"),
        errno_of(fs.tmpfile, DAEMON, ROOT, 0o600, os.O_RDWR, 0),
        errno_of(fs.mkdir, DAEMON, ROOT, b"new", 0o755, 0),
        errno_of(fs.mknod, DAEMON, ROOT, b"new", stat.S_IFREG, 0, 0),
        errno_of(fs.symlink, DAEMON, ROOT, b"new", b"x"),
        errno_of(fs.link, file, ROOT, b"new"),
        errno_of(fs.unlink, ROOT, b"file"),
        errno_of(fs.rmdir, ROOT, b"directory"),
        errno_of(fs.rename, ROOT, b"file", ROOT, b"new", 0),
        errno_of(fs.setattr, file, Changes(mode=0o600)),
        errno_of(fs.open, file, os.O_WRONLY, False),
        errno_of(fs.open, file, os.O_RDWR, False),
        errno_of(fs.open, file, os.O_RDONLY | os.O_TRUNC, False),
        errno_of(fs.fallocate, file, fh, 0, 0, 100, False),
        errno_of(fs.copy_file_range, file, fh, 0, file, fh, 100, 1, False),
        errno_of(fs.setxattr, file, b"user.a", b"b", 0, False),
        errno_of(fs.removexattr, file, b"user.a"),
    ]
    assert set(refused) == {errno.EROFS}
    assert share.read(file, fh, 0, 100) == b"content"
    assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns
    share.close()


LABELLED = Requester(
    DAEMON.uid, DAEMON.gid, 1, security_xattrs=((b"user.label", b"secret"), (b"user.other", b""))
)
#: Not one that a user may set.
UNFIT = Requester(
    DAEMON.uid, DAEMON.gid, 1, security_xattrs=((b"user.label", b"x"), (b"nonsense.label", b"x"))
)


def make_all(fs: FileSystem, requester: Requester, name: bytes) -> list[Callable[[], object]]:
    """Ways to make what can have an attribute of a user's."""
    return [
        lambda: fs.mknod(requester, ROOT, name + b"-node", stat.S_IFREG | 0o600, 0, 0),
        lambda: fs.mkdir(requester, ROOT, name + b"-directory", 0o700, 0),
        lambda: fs.create(requester, ROOT, name + b"-file", 0o600, os.O_RDWR, 0, False),
    ]


def test_new_inodes_have_their_security_xattrs(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(security_labels=True, xattr=True))
    for make in make_all(share.fs, LABELLED, b"new"):
        make()
    assert len(names_in(tmp_path)) == 3
    for path in tmp_path.iterdir():
        assert (os.getxattr(path, "user.label"), os.getxattr(path, "user.other")) == (
            b"secret",
            b"",
        )
    entry, _ = share.fs.tmpfile(LABELLED, ROOT, 0o600, os.O_RDWR, 0)
    assert share.fs.getxattr(entry.nodeid, b"user.label") == b"secret"
    share.close()


def test_inode_whose_security_xattr_fails_is_not_created(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(security_labels=True, xattr=True))
    before = open_descriptors()
    for make in make_all(share.fs, UNFIT, b"new"):
        assert errno_of(make) == errno.EOPNOTSUPP
    assert errno_of(share.fs.symlink, LABELLED, ROOT, b"link", b"to") == errno.EPERM
    assert errno_of(share.fs.tmpfile, UNFIT, ROOT, 0o600, os.O_RDWR, 0) == errno.EOPNOTSUPP
    assert names_in(tmp_path) == set()
    assert open_descriptors() <= before
    share.close()


def test_what_another_process_has_put_in_its_place_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(security_labels=True, xattr=True))

    def replace(_share: object, _requester: Requester, _fd: int) -> None:
        (path,) = tmp_path.iterdir()
        # So that the file system does not give the same number again.
        path.rename(tmp_path.parent / f"{path.name}-of-the-guest")
        if path.name.endswith("directory"):
            path.mkdir()
        else:
            path.write_text("another's")
        raise OSError(errno.EOPNOTSUPP, "no labels here")

    monkeypatch.setattr(share_module.ShareState, "set_security_xattrs", replace)
    for make in make_all(share.fs, UNFIT, b"new"):
        assert errno_of(make) == errno.EOPNOTSUPP
        (path,) = tmp_path.iterdir()
        if path.is_dir():
            path.rmdir()
        else:
            assert path.read_text() == "another's"
            path.unlink()
    share.close()


def test_security_xattrs_are_refused_unless_the_option_is_on(share: SharedDirectory) -> None:
    for make in make_all(share.fs, LABELLED, b"new"):
        assert errno_of(make) == errno.EINVAL
    assert names_in(share.path) == set()
