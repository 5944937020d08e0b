# SPDX-License-Identifier: Apache-2.0
"""Each operation: what the file system is asked, what the guest gets."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
from farwatchd.fuse.filesystem import Changes, DirEntry, Entry, Requester
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.request import MAX_ARGS
from farwatchd.fuse.session import Session
from farwatchd.virtqueue import Chain
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import InitFlag, Opcode, SetattrValid
from tests.support.fake_fs import GENERATION, STAT, FakeFs, FakeWatches
from tests.support.fuse_client import OFFER, ROOT, Client

PID = os.getpid()
REQUESTER = Requester(1000, 1001, PID)
U64 = 1 << 64


@pytest.fixture
def fs() -> FakeFs:
    return FakeFs()


@pytest.fixture
def watches() -> FakeWatches:
    return FakeWatches()


@pytest.fixture(params=["linux", "one slice", "small slices"])
def client(request: pytest.FixtureRequest, fs: FakeFs, watches: FakeWatches) -> Client:
    cuts = {
        "linux": ([40], [16]),
        "one slice": ([], []),
        "small slices": ([3, 0, 5, 50, 1, 7], [9, 0, 2, 20, 1]),
    }
    client = Client(
        Session(fs, watches, SessionOptions()), uid=1000, gid=1001, cuts=cuts[request.param]
    )
    client.init()
    fs.calls.clear()
    watches.calls.clear()
    return client


def refused(call: Callable[..., object], *args: Any, **fields: Any) -> int | None:
    """Return the errno that a call is refused with."""
    with pytest.raises(OSError) as caught:
        call(*args, **fields)
    return caught.value.errno


def test_lookup_returns_the_entry(client: Client, fs: FakeFs) -> None:
    entry = client.lookup(1, b"name")
    assert fs.calls == [("lookup", 1, b"name")]
    assert (entry.nodeid, entry.generation) == (42, 7)
    assert (entry.entry_valid, entry.entry_valid_nsec) == (1, 250_000_000)
    assert (entry.attr_valid, entry.attr_valid_nsec) == (1, 250_000_000)


def test_names_are_as_long_as_the_client_allows(client: Client, fs: FakeFs) -> None:
    longest = b"x" * 1024
    client.lookup(1, longest)
    client.rename(1, longest, 1, longest)
    assert fs.calls == [("lookup", 1, longest), ("rename", 1, longest, 1, longest, 0)]


def test_attributes_are_encoded_completely(client: Client) -> None:
    attr = client.getattr(42)
    assert (attr.attr_ino, attr.attr_mode, attr.attr_nlink) == (77, STAT.st_mode, 2)
    assert (attr.attr_uid, attr.attr_gid, attr.attr_size) == (1000, 1001, 12345)
    assert (attr.attr_blocks, attr.attr_blksize) == (24, 4096)
    assert (attr.attr_atime, attr.attr_atimensec) == (1, 500_000_000)
    assert (attr.attr_mtime, attr.attr_mtimensec) == (U64 - 2, 500_000_000)
    assert (attr.attr_ctime, attr.attr_ctimensec) == (3, 7)
    assert attr.attr_flags == 0


def test_statx_returns_the_birth_time(client: Client, fs: FakeFs) -> None:
    statx = client.statx(42, 5)
    assert fs.calls == [("statx", 42, 5)]
    assert statx.stat_mask == 0xFFF
    assert (statx.stat_btime_tv_sec, statx.stat_btime_tv_nsec) == (4, 1)
    assert (statx.stat_mtime_tv_sec, statx.stat_mtime_tv_nsec) == (-2, 500_000_000)
    assert (statx.stat_attributes, statx.stat_attributes_mask) == (0x10, 0x30)
    assert (statx.stat_ino, statx.stat_size, statx.stat_mode) == (77, 12345, STAT.st_mode)


def test_statfs_is_encoded_completely(client: Client) -> None:
    st = client.statfs()
    assert (st.st_blocks, st.st_bfree, st.st_bavail, st.st_files, st.st_ffree) == (
        1000,
        900,
        800,
        70,
        60,
    )
    assert (st.st_bsize, st.st_frsize, st.st_namelen) == (4096, 1024, 255)


SIMPLE: list[tuple[Callable[[Client], object], tuple[Any, ...]]] = [
    (lambda c: c.getattr(3), ("getattr", 3, None)),
    (lambda c: c.getattr(3, 0), ("getattr", 3, 0)),
    (lambda c: c.statx(3), ("statx", 3, None)),
    (lambda c: c.symlink(1, b"l", b"../to"), ("symlink", REQUESTER, 1, b"l", b"../to")),
    (
        lambda c: c.mknod(1, b"n", 0o020600, 0x103),
        ("mknod", REQUESTER, 1, b"n", 0o020600, 0x103, 0),
    ),
    (lambda c: c.mkdir(1, b"d", 0o750, 0o22), ("mkdir", REQUESTER, 1, b"d", 0o750, 0o22)),
    (lambda c: c.unlink(1, b"n"), ("unlink", 1, b"n")),
    (lambda c: c.rmdir(1, b"d"), ("rmdir", 1, b"d")),
    (lambda c: c.rename(1, b"a", 2, b"b"), ("rename", 1, b"a", 2, b"b", 0)),
    (lambda c: c.rename(1, b"a", 2, b"b", 4), ("rename", 1, b"a", 2, b"b", 4)),
    (lambda c: c.link(42, 2, b"b"), ("link", 42, 2, b"b")),
    (lambda c: c.open(42, os.O_RDONLY), ("open", 42, os.O_RDONLY, False)),
    (lambda c: c.open(42, os.O_RDWR, 1), ("open", 42, os.O_RDWR, True)),
    (
        lambda c: c.create(1, b"n", 0o600, os.O_RDWR),
        ("create", REQUESTER, 1, b"n", 0o600, os.O_RDWR, 0, False),
    ),
    (lambda c: c.tmpfile(1, 0o600, os.O_RDWR), ("tmpfile", REQUESTER, 1, 0o600, os.O_RDWR, 0)),
    (lambda c: c.flush(42, 9), ("flush", 42, 9)),
    (lambda c: c.release(42, 9), ("release", 42, 9)),
    (lambda c: c.fsync(42, 9), ("fsync", 42, 9, False)),
    (lambda c: c.fsync(42, 9, True), ("fsync", 42, 9, True)),
    (lambda c: c.fallocate(42, 9, 3, 10, 20), ("fallocate", 42, 9, 3, 10, 20, False)),
    (lambda c: c.opendir(1), ("opendir", 1, os.O_RDONLY | os.O_DIRECTORY)),
    (lambda c: c.releasedir(1, 9), ("releasedir", 1, 9)),
    (lambda c: c.fsyncdir(1, 9, True), ("fsyncdir", 1, 9, True)),
    (lambda c: c.syncfs(), ("syncfs", 1)),
    (
        lambda c: c.setxattr(42, b"user.a/b", b"\0v", 1, 1),
        ("setxattr", 42, b"user.a/b", b"\0v", 1, True),
    ),
    (lambda c: c.setxattr(42, b"user.e", b""), ("setxattr", 42, b"user.e", b"", 0, False)),
    (lambda c: c.removexattr(42, b"user.a"), ("removexattr", 42, b"user.a")),
]


@pytest.mark.parametrize(
    ("call", "asked"), SIMPLE, ids=[f"{i}-{asked[0]}" for i, (_, asked) in enumerate(SIMPLE)]
)
def test_requests_reach_the_file_system_with_their_arguments(
    client: Client, fs: FakeFs, call: Callable[[Client], object], asked: tuple[Any, ...]
) -> None:
    call(client)
    assert fs.calls == [asked]


@pytest.mark.parametrize(
    ("call", "asked"), SIMPLE, ids=[f"{i}-{asked[0]}" for i, (_, asked) in enumerate(SIMPLE)]
)
def test_an_error_of_the_file_system_reaches_the_guest(
    client: Client, fs: FakeFs, call: Callable[[Client], object], asked: tuple[Any, ...]
) -> None:
    fs.error = OSError(errno.EDQUOT, "quota")
    assert refused(call, client) == errno.EDQUOT


def test_create_returns_entry_and_fh(client: Client) -> None:
    entry, opened = client.create(1, b"n")
    assert (entry.nodeid, opened.fh, opened.open_flags) == (42, 9, 2)


def test_readlink_returns_the_target_without_nul(client: Client) -> None:
    assert client.readlink(42) == b"target"


@pytest.mark.parametrize("cached", [False, True])
def test_write_flag_cache_reaches_the_file_system(client: Client, fs: FakeFs, cached: bool) -> None:
    client.write(42, 9, 0, b"data", fuse.WRITE_CACHE if cached else 0)
    assert fs.cached == [cached]


def test_lseek_and_copy_file_range_return_their_results(client: Client, fs: FakeFs) -> None:
    assert client.lseek(42, 9, 100, os.SEEK_DATA) == 101
    assert client.copy_file_range((42, 9, 1), (43, 10, 2), 1000) == 1000
    assert fs.calls[1] == ("copy_file_range", 42, 9, 1, 43, 10, 2, 1000, False)


def test_copy_file_range_copies_at_most_64_mib(client: Client) -> None:
    assert client.copy_file_range((42, 9, 0), (43, 10, 0), 1 << 40) == 64 << 20


def test_data_is_read_into_the_reply(client: Client, fs: FakeFs) -> None:
    fs.content = bytes(range(256)) * 20
    assert client.read(42, 9, 3, 4096) == fs.content[3 : 3 + 4096]
    assert fs.calls == [("read", 42, 9, 3, 4096)]
    assert client.read(42, 9, 5000, 4096) == fs.content[5000:]
    assert client.read(42, 9, 9999, 4096) == b""
    assert client.read(42, 9, 0, 0) == b""


def test_data_is_written_out_of_the_request(client: Client, fs: FakeFs) -> None:
    data = os.urandom(5000)
    assert client.write(42, 9, 77, data) == 5000
    assert fs.written == data
    assert client.write(42, 9, 0, b"", fuse.WRITE_KILL_SUIDGID) == 0
    assert fs.calls == [("write", 42, 9, 77, False), ("write", 42, 9, 0, True)]


def test_write_takes_as_many_bytes_as_its_size(client: Client, fs: FakeFs) -> None:
    args = fuse.write_in.pack(fh=9, size=3)
    client.call(Opcode.WRITE, 42, args, data=b"abcdef")
    assert fs.written == b"abc"
    assert (
        refused(client.call, Opcode.WRITE, 42, fuse.write_in.pack(fh=9, size=7), data=b"abcdef")
        == errno.EINVAL
    )


def test_setattr_passes_only_the_valid_fields(client: Client, fs: FakeFs) -> None:
    client.setattr(42, SetattrValid(0), mode=0o777, uid=5, size=9)
    client.setattr(
        42, SetattrValid.MODE | SetattrValid.UID | SetattrValid.GID, mode=0o100640, uid=5, gid=6
    )
    client.setattr(
        42, SetattrValid.SIZE | SetattrValid.FH | SetattrValid.KILL_SUIDGID, size=1 << 40, fh=9
    )
    assert [call[2] for call in fs.calls] == [
        Changes(),
        Changes(mode=0o100640, uid=5, gid=6),
        Changes(size=1 << 40, fh=9, kill_suidgid=True),
    ]


@pytest.mark.parametrize(("agreed", "uid", "open_flags", "kill"), [
    (False, 1000, 0, True),
    (False, 0, 0, False),
    (True, 1000, 0, False),
    (True, 0, fuse.OPEN_KILL_SUIDGID, True),
])  # fmt: skip
def test_truncate_clears_set_id_bits_unless_killpriv_v2_is_negotiated(
    fs: FakeFs, agreed: bool, uid: int, open_flags: int, kill: bool
) -> None:
    client = Client(Session(fs, None, SessionOptions(killpriv_v2=agreed)), uid=uid)
    client.init()
    client.open(42, os.O_RDWR | os.O_TRUNC, open_flags)
    client.open(42, os.O_RDWR, open_flags)
    client.create(1, b"c", flags=os.O_RDWR | os.O_TRUNC)
    client.fallocate(42, 9, 0, 0, 10)
    client.copy_file_range((42, 9, 1), (43, 10, 2), 10)
    by_change = [call[-1] for call in fs.calls if call[0] in ("fallocate", "copy_file_range")]
    assert by_change == [agreed and uid != 0] * 2
    found = [call[-1] for call in fs.calls if call[0] in ("open", "create")]
    assert found == [kill, bool(open_flags), kill and not agreed]


def test_setattr_takes_times_of_any_century(client: Client, fs: FakeFs) -> None:
    both = SetattrValid.ATIME | SetattrValid.MTIME
    client.setattr(42, both, atime=U64 - 2, atimensec=500_000_000, mtime=1 << 33, mtimensec=1)
    client.setattr(42, both | SetattrValid.ATIME_NOW | SetattrValid.MTIME_NOW)
    client.setattr(42, SetattrValid.MTIME, mtime=U64 - 1, mtimensec=999_999_999)
    assert [call[2] for call in fs.calls] == [
        Changes(atime_ns=-1_500_000_000, mtime_ns=(1 << 33) * 10**9 + 1),
        Changes(atime_ns=Changes.NOW, mtime_ns=Changes.NOW),
        Changes(mtime_ns=-1),
    ]


def test_xattr_sizes_and_values(client: Client, fs: FakeFs) -> None:
    fs.values = {b"user.a": b"value", b"user.b": b""}
    assert client.getxattr(42, b"user.a", 0) == 5
    assert client.getxattr(42, b"user.a", 5) == b"value"
    assert refused(client.getxattr, 42, b"user.a", 4) == errno.ERANGE
    assert client.getxattr(42, b"user.b", 10) == b""
    assert client.listxattr(42, 0) == 14
    assert client.listxattr(42, 14) == b"user.a\0user.b\0"
    assert refused(client.listxattr, 42, 13) == errno.ERANGE


def test_setxattr_has_a_short_form_without_its_extension(fs: FakeFs) -> None:
    client = Client(Session(fs, None, SessionOptions()))
    client.init(OFFER & ~InitFlag.SETXATTR_EXT)
    client.setxattr(42, b"user.a", b"value", 2)
    assert fs.calls[-1] == ("setxattr", 42, b"user.a", b"value", 2, False)


BAD_NAMES = [
    (b"", errno.EINVAL),
    (b".", errno.EINVAL),
    (b"..", errno.EINVAL),
    (b"a/b", errno.EINVAL),
    (b"/", errno.EINVAL),
    (b"../etc/passwd", errno.EINVAL),
    (b"x" * 1025, errno.ENAMETOOLONG),
]
NAMED: list[Callable[[Client, bytes], object]] = [
    lambda c, n: c.lookup(1, n),
    lambda c, n: c.symlink(1, n, b"t"),
    lambda c, n: c.mknod(1, n, 0o100600),
    lambda c, n: c.mkdir(1, n),
    lambda c, n: c.unlink(1, n),
    lambda c, n: c.rmdir(1, n),
    lambda c, n: c.rename(1, n, 1, b"ok"),
    lambda c, n: c.rename(1, b"ok", 1, n),
    lambda c, n: c.rename(1, n, 1, b"ok", 1),
    lambda c, n: c.rename(1, b"ok", 1, n, 1),
    lambda c, n: c.link(42, 1, n),
    lambda c, n: c.create(1, n),
]


@pytest.mark.parametrize(("name", "error"), BAD_NAMES)
@pytest.mark.parametrize("call", NAMED)
def test_invalid_names_never_reach_the_file_system(
    client: Client, fs: FakeFs, call: Callable[[Client, bytes], object], name: bytes, error: int
) -> None:
    assert refused(call, client, name) == error
    assert fs.calls == []


@pytest.mark.parametrize("name", [b"x" * 255, b"\xff\xfe", b"...", b" ", b"-", b".a"])
@pytest.mark.parametrize("call", NAMED)
def test_unusual_names_reach_the_file_system(
    client: Client, fs: FakeFs, call: Callable[[Client, bytes], object], name: bytes
) -> None:
    call(client, name)
    assert name in fs.calls[0]


def test_name_without_nul_is_refused(client: Client, fs: FakeFs) -> None:
    assert refused(client.call, Opcode.LOOKUP, 1, b"abc") == errno.EINVAL
    assert (
        refused(client.call, Opcode.RENAME, 1, fuse.rename_in.pack(newdir=1) + b"a\0bcdef")
        == errno.EINVAL
    )
    assert refused(client.call, Opcode.SYMLINK, 1, b"a\0target") == errno.EINVAL
    assert (
        refused(client.call, Opcode.GETXATTR, 1, fuse.getxattr_in.pack(size=9) + b"user.a")
        == errno.EINVAL
    )
    assert fs.calls == []


def test_symlink_targets_and_xattr_names_are_limited(client: Client, fs: FakeFs) -> None:
    assert refused(client.symlink, 1, b"l", b"") == errno.ENOENT
    assert refused(client.symlink, 1, b"l", b"t" * 4096) == errno.ENAMETOOLONG
    assert refused(client.setxattr, 42, b"", b"v") == errno.ERANGE
    assert refused(client.getxattr, 42, b"n" * 256) == errno.ERANGE
    assert refused(client.setxattr, 42, b"user.a", bytes(65537)) == errno.E2BIG
    assert fs.calls == []
    client.symlink(1, b"l", b"t" * 4095)
    client.setxattr(42, b"n" * 255, bytes(65536))
    assert len(fs.calls) == 2


NEGATIVE = 1 << 63
OUT_OF_RANGE: list[Callable[[Client], object]] = [
    lambda c: c.read(42, 9, NEGATIVE, 10),
    lambda c: c.write(42, 9, NEGATIVE, b"x"),
    lambda c: c.lseek(42, 9, 0, 1 << 31),
    lambda c: c.fallocate(42, 9, 0, NEGATIVE, 1),
    lambda c: c.fallocate(42, 9, 0, 0, NEGATIVE),
    lambda c: c.fallocate(42, 9, 1 << 31, 0, 1),
    lambda c: c.copy_file_range((42, 9, NEGATIVE), (42, 9, 0), 1),
    lambda c: c.copy_file_range((42, 9, 0), (42, 9, NEGATIVE), 1),
    lambda c: c.copy_file_range((42, 9, 0), (42, 9, 0), NEGATIVE),
    lambda c: c.open(42, 1 << 31),
    lambda c: c.create(1, b"n", flags=1 << 31),
    lambda c: c.create(1, b"n", mode=1 << 31),
    lambda c: c.mkdir(1, b"n", 1 << 31),
    lambda c: c.mknod(1, b"n", 1 << 31),
    lambda c: c.rename(1, b"a", 1, b"b", 1 << 31),
    lambda c: c.setxattr(42, b"user.a", b"", 1 << 31),
    lambda c: c.setattr(42, SetattrValid.SIZE, size=NEGATIVE),
    lambda c: c.setattr(42, SetattrValid.UID, uid=0xFFFFFFFF),
    lambda c: c.setattr(42, SetattrValid.GID, gid=0xFFFFFFFF),
    lambda c: c.setattr(42, SetattrValid.ATIME, atimensec=1_000_000_000),
    lambda c: c.call(Opcode.READ, 42, fuse.read_in.pack(fh=9, size=11), 10),
    lambda c: c.call(Opcode.READ, 42, fuse.read_in.pack(fh=9, size=(1 << 24) + 1), (1 << 24) + 1),
    lambda c: c.call(Opcode.READLINK, 42, b"", 5),
    lambda c: c.call(Opcode.LISTXATTR, 42, fuse.getxattr_in.pack(), 7),
]


@pytest.mark.parametrize("call", OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(client: Client, call: Callable[[Client], object]) -> None:
    assert refused(call, client) == errno.EINVAL


def test_new_inode_without_an_owner_is_refused(client: Client, fs: FakeFs) -> None:
    client.uid = 0xFFFFFFFF
    assert refused(client.mkdir, 1, b"d") == errno.EINVAL
    client.getattr(1)
    assert [call[0] for call in fs.calls] == ["getattr"]


@pytest.mark.parametrize(
    "opcode",
    [
        Opcode.LOOKUP,
        Opcode.CREATE,
        Opcode.OPEN,
        Opcode.OPENDIR,
        Opcode.MKDIR,
        Opcode.FSNOTIFY,
        Opcode.WRITE,
    ],
)
def test_request_whose_reply_would_not_fit_has_no_effect(
    client: Client, fs: FakeFs, opcode: Opcode
) -> None:
    args = bytes(16) + b"name\0" if opcode != Opcode.LOOKUP else b"name\0"
    args = args.ljust(40, b"\0") if opcode == Opcode.WRITE else args
    assert refused(client.call, opcode, 1, args, 7) == errno.EINVAL
    assert fs.calls == []
    # No room even for a header: the request is completed without a reply.
    assert client.send(client.request(opcode, 1, args), 15) == b""
    assert fs.calls == []


GROUP = fuse.ext_header.pack(size=16, type=fuse.EXT_GROUPS) + fuse.supp_groups.pack(nr_groups=1)


def test_a_supplementary_group_reaches_the_file_system(client: Client, fs: FakeFs) -> None:
    extension = GROUP + (4321).to_bytes(4, "little")
    requester = Requester(1000, 1001, PID, 4321)
    client.mkdir(1, b"d", extensions=extension)
    client.mknod(1, b"n", 0o100600, extensions=extension)
    client.symlink(1, b"l", b"t", extensions=extension)
    client.create(1, b"c", extensions=extension)
    assert [call[1] for call in fs.calls] == [requester] * 4


def security_contexts(*items: tuple[bytes, bytes]) -> bytes:
    """Encode a list of security contexts, as Linux does."""
    body = b""
    for name, value in items:
        body += fuse.secctx.pack(size=len(value)) + name + b"\0" + value
        body += bytes(-len(body) % 8)
    return fuse.ext_header.pack(size=fuse.ext_header.size + len(body), type=len(items)) + body


def test_security_contexts_reach_the_file_system(client: Client, fs: FakeFs) -> None:
    label = (b"security.selinux", b"system_u:object_r:a_t\0")
    other = (b"security.SMACK64", b"")
    client.mkdir(1, b"d", extensions=security_contexts(label))
    client.mknod(1, b"n", 0o100600, extensions=security_contexts(label, other))
    client.symlink(1, b"l", b"t", extensions=security_contexts())
    client.create(1, b"c", extensions=security_contexts(label) + GROUP + (5).to_bytes(4, "little"))
    assert [(call[1].security_xattrs, call[1].group) for call in fs.calls] == [
        ((label,), -1),
        ((label, other), -1),
        ((), -1),
        ((label,), 5),
    ]


def test_unknown_extensions_are_ignored(client: Client, fs: FakeFs) -> None:
    other = fuse.ext_header.pack(size=24, type=99) + bytes(16)
    none = fuse.ext_header.pack(size=16, type=fuse.EXT_GROUPS) + bytes(8)
    client.mkdir(1, b"d", extensions=other + GROUP + (5).to_bytes(4, "little"))
    client.mkdir(1, b"d", extensions=none)
    assert [call[1].group for call in fs.calls] == [5, -1]


@pytest.mark.parametrize(
    "extension",
    [
        fuse.ext_header.pack(size=0, type=32),
        fuse.ext_header.pack(size=7, type=32),
        fuse.ext_header.pack(size=12, type=99) + bytes(8),
        fuse.ext_header.pack(size=8, type=32),
        fuse.ext_header.pack(size=24, type=32) + bytes(8),
        fuse.ext_header.pack(size=16, type=32) + fuse.supp_groups.pack(nr_groups=2) + bytes(4),
        fuse.ext_header.pack(size=24, type=32) + fuse.supp_groups.pack(nr_groups=2) + bytes(12),
        GROUP + (0xFFFFFFFF).to_bytes(4, "little"),
        (GROUP + bytes(4)) * 2,
        fuse.ext_header.pack(size=8, type=99) + bytes(8),
        fuse.ext_header.pack(size=8, type=1),
        fuse.ext_header.pack(size=24, type=1) + fuse.secctx.pack(size=8) + b"a" * 8,
        fuse.ext_header.pack(size=24, type=1) + fuse.secctx.pack(size=8) + b"a\0" + bytes(6),
        fuse.ext_header.pack(size=24, type=1) + fuse.secctx.pack(size=0) + b"\0" + bytes(7),
        fuse.ext_header.pack(size=24, type=1)
        + fuse.secctx.pack(size=0xFFFFFFFF)
        + b"a\0"
        + bytes(6),
        fuse.ext_header.pack(size=24, type=2) + fuse.secctx.pack(size=2) + b"a\0" + bytes(6),
        (fuse.ext_header.pack(size=8, type=0)) * 2,
    ],
)
def test_malformed_extensions_are_refused(client: Client, fs: FakeFs, extension: bytes) -> None:
    assert refused(client.mkdir, 1, b"d", extensions=extension) == errno.EINVAL
    assert fs.calls == []


def entries(count: int) -> list[DirEntry]:
    dots = [DirEntry(b".", 1, 4, 1), DirEntry(b"..", 2, 4, 2)]
    return dots + [DirEntry(b"n" * (i % 40 + 1), 100 + i, 8, 3 + i) for i in range(count)]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [200, 512, 4096])
def test_a_directory_is_read_in_parts(client: Client, fs: FakeFs, plus: bool, size: int) -> None:
    fs.entries = entries(100)
    listed = client.listdir(1, size, plus=plus)
    assert [(e.name, e.ino, e.kind, e.offset) for e in listed] == [
        (e.name, e.ino, e.kind, e.offset) for e in fs.entries
    ]
    # Each lookup was reported to the guest.
    looked_up = [call[2] for call in fs.calls if call[0] == "lookup"]
    assert looked_up == [e.name for e in listed if e.entry is not None]
    assert len(looked_up) == (100 if plus else 0)


def test_deleted_name_is_listed_without_its_inode(client: Client, fs: FakeFs) -> None:
    fs.entries = [DirEntry(b"a", 5, 8, 1), DirEntry(b"b", 6, 8, 2)]
    fs.vanished = {b"a"}
    assert [(e.name, e.entry is None) for e in client.readdir(1, 9, plus=True)] == [
        (b"a", True),
        (b"b", False),
    ]


def test_room_for_no_entry_at_all_is_refused(client: Client, fs: FakeFs) -> None:
    fs.entries = entries(1)
    assert refused(client.readdir, 1, 9, size=31) == errno.EINVAL
    assert len(client.readdir(1, 9, size=32)) == 1
    assert refused(client.readdir, 1, 9, size=159, plus=True) == errno.EINVAL
    fs.entries = []
    assert client.readdir(1, 9, size=0) == []


def test_error_within_a_directory_ends_the_reply_before_it(client: Client, fs: FakeFs) -> None:
    class Broken(list[DirEntry]):
        def __iter__(self) -> Any:
            yield DirEntry(b"a", 5, 8, 1)
            raise OSError(errno.EIO, "disk")

    fs.entries = Broken()
    assert [e.name for e in client.readdir(1, 9)] == [b"a"]
    assert refused(client.readdir, 1, 9, 1) == errno.EIO


def test_forget_of_the_last_lookup_ends_the_watch(
    client: Client, fs: FakeFs, watches: FakeWatches
) -> None:
    fs.gone = {42, 44}
    client.forget(42, 3)
    client.forget(43)
    client.batch_forget((44, 1), (45, 2))
    assert fs.calls == [("forget", 42, 3), ("forget", 43, 1), ("forget", 44, 1), ("forget", 45, 2)]
    assert watches.calls == [("forget", 42), ("forget", 44)]


def test_batch_forget_longer_than_its_request_is_ignored(client: Client, fs: FakeFs) -> None:
    client.silent(Opcode.BATCH_FORGET, 0, fuse.batch_forget_in.pack(count=2) + bytes(31))
    client.silent(Opcode.BATCH_FORGET, 0, fuse.batch_forget_in.pack(count=0xFFFFFFFF))
    client.silent(Opcode.FORGET, 5, b"")
    assert fs.calls == []


def test_fsnotify_sets_the_mask_and_returns_the_watched_events(
    client: Client, fs: FakeFs, watches: FakeWatches
) -> None:
    assert (
        client.fsnotify(42, Event.CREATE | Event.MODIFY | Event.ON_CHILD, generation=GENERATION)
        == Event.CREATE | Event.ON_CHILD
    )
    assert fs.calls == [("watched", 42)]
    assert watches.calls == [
        ("set_mask", 42, GENERATION, 33, True, Event.CREATE | Event.MODIFY | Event.ON_CHILD)
    ]
    assert client.fsnotify(42, Event(0), generation=GENERATION) == Event(0)


@pytest.mark.parametrize(
    ("mask", "flags"),
    [
        (Event.CREATE, 1),
        (Event.ISDIR, 0),
        (Event.OVERFLOW, 0),
        (Event.WATCH_ENDED, 0),
        (Event.WATCHES_LOST, 0),
        (1 << 14, 0),
    ],
)
def test_fsnotify_with_unknown_bits_is_refused(
    client: Client, watches: FakeWatches, mask: int, flags: int
) -> None:
    assert refused(client.fsnotify, 42, Event(mask), flags=flags) == errno.EINVAL
    assert watches.calls == []


def test_fsnotify_of_another_generation_is_refused(client: Client, watches: FakeWatches) -> None:
    assert refused(client.fsnotify, 42, Event.CREATE, generation=GENERATION - 1) == errno.ESTALE
    assert watches.calls == []


def test_fsnotify_s_errors_reach_the_guest(
    client: Client, fs: FakeFs, watches: FakeWatches
) -> None:
    watches.error = OSError(errno.ENOSPC, "no watch left")
    assert refused(client.fsnotify, 42, Event.CREATE, generation=GENERATION) == errno.ENOSPC
    fs.error = OSError(errno.ENOENT, "unknown")
    assert refused(client.fsnotify, 42, Event.CREATE, generation=GENERATION) == errno.ENOENT


def test_fsnotify_without_negotiation_is_enosys(fs: FakeFs, watches: FakeWatches) -> None:
    client = Client(Session(fs, watches, SessionOptions()))
    client.init(int(InitFlag.INIT_EXT))
    assert refused(client.fsnotify, 42, Event.CREATE) == errno.ENOSYS
    client = Client(Session(fs, None, SessionOptions()))
    client.init()
    assert refused(client.fsnotify, 42, Event.CREATE) == errno.ENOSYS


@pytest.mark.parametrize(
    "opcode",
    [Opcode.ACCESS, Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.POLL, Opcode.BMAP,
     Opcode.SETUPMAPPING,
     Opcode.REMOVEMAPPING, 0, 7, 53, 511, 513, 4096, 0xFFFFFFFF],
)  # fmt: skip
def test_unknown_opcodes_are_enosys(client: Client, opcode: int) -> None:
    assert refused(client.call, opcode, 1, bytes(200)) == errno.ENOSYS


def test_ioctl_finds_no_device(client: Client) -> None:
    assert refused(client.call, Opcode.IOCTL, 1, bytes(32)) == errno.ENOTTY


def test_interrupt_has_no_reply(client: Client) -> None:
    client.silent(Opcode.INTERRUPT, 0, bytes(8))
    assert client.send(client.request(Opcode.INTERRUPT, 0, bytes(8)), 100) == b""


@pytest.mark.parametrize("number", [0, 512, -1, 100000])
def test_an_error_that_linux_would_not_take_becomes_eio(
    client: Client, fs: FakeFs, number: int
) -> None:
    fs.error = OSError(number, "odd")
    assert refused(client.getattr, 1) == errno.EIO


def test_exception_other_than_oserror_is_raised(client: Client, fs: FakeFs) -> None:
    fs.error = ZeroDivisionError("bug")
    with pytest.raises(ZeroDivisionError):
        client.getattr(1)


@pytest.mark.parametrize("length", [0, 39, 40, 55, 57, 1 << 31, 0xFFFFFFFF])
def test_a_header_with_a_wrong_length_is_refused(client: Client, fs: FakeFs, length: int) -> None:
    request = bytearray(client.request(Opcode.GETATTR, 1, bytes(16)))
    request[:4] = length.to_bytes(4, "little")
    reply = client.send(bytes(request), 200)
    assert fuse.out_header.unpack_from(reply).error == -errno.EINVAL
    assert len(reply) == 16
    assert fs.calls == []


@pytest.mark.parametrize("cuts", [[40], []])
def test_more_arguments_than_any_request_has_are_refused(
    client: Client, fs: FakeFs, cuts: list[int]
) -> None:
    client.cuts = (cuts, client.cuts[1])
    largest = bytes(MAX_ARGS)
    assert client.call(Opcode.GETATTR, 42, largest, fuse.attr_out.size)
    fs.calls.clear()
    assert (
        refused(client.call, Opcode.GETATTR, 42, largest + b"\0", fuse.attr_out.size)
        == errno.EINVAL
    )
    assert fs.calls == []


def test_half_a_header_is_refused(client: Client, fs: FakeFs) -> None:
    request = client.request(Opcode.GETATTR, 1, bytes(16))
    reply = client.send(request[:39], 200)
    header = fuse.out_header.unpack_from(reply)
    assert (header.error, header.len) == (-errno.EINVAL, 16)
    assert header.unique == fuse.in_header.unpack_from(request).unique
    assert client.send(b"", 200)[4:8] != bytes(4)
    assert fs.calls == []


def test_request_that_changes_while_it_is_served_is_served_as_it_came(
    client: Client, fs: FakeFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = client.request(Opcode.LOOKUP, ROOT, b"name\0")
    unique = fuse.in_header.unpack_from(request).unique
    memory = memoryview(bytearray(request))
    ends = [*itertools.accumulate(client.cuts[0]), len(memory)]
    views = [memory[start:end] for start, end in itertools.pairwise([0, *ends])]
    lookup = fs.lookup

    def change_the_request(parent: int, name: bytes) -> Entry | None:
        found = lookup(parent, name)
        # Length, opcode, unique number, nodeid and name are others now.
        memory[:] = b"\xff" * len(memory)
        return found

    monkeypatch.setattr(fs, "lookup", change_the_request)
    reply = bytearray(200)
    written = client.handler.handle(Chain.of(views, [memoryview(reply)]))
    head = fuse.out_header.unpack_from(reply)
    assert (head.len, head.error, head.unique) == (written, 0, unique)
    assert fs.calls == [("lookup", ROOT, b"name")]
