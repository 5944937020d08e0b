# SPDX-License-Identifier: Apache-2.0
"""Tens of thousands of requests to the session over the real file system.

They are well-formed, spoilt and random, in sequences.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import FUSE_HAS_FSNOTIFY_WAIT, fsnotify_wait_in
from farwatchd.wire.fuse import Opcode
from tests.support.fuse_client import OFFER, ROOT, Client, slices_of
from tests.support.fuzzing import LAST, inputs, noise, number, spoiled
from tests.support.native_part import make_plain
from tests.support.passthrough_share import open_descriptors
from tests.support.request_ring import RequestRing
from tests.support.request_shapes import FILLER, NO_REPLY, SHAPES
from tests.support.watch_host import Host

INPUTS = 20_000
#: Requests before the guest resets the session.
LIFE = 400
NAMES = [
    b"a",
    b"b",
    b"c",
    b"dir",
    b"file",
    b"link",
    b"x" * 255,
    b"user.a",
    b"system.posix_acl_access",
    b"\xff",
]
BAD_NAMES = [b"", b".", b"..", b"a/b", b"/", b"../outside", b"x" * 256, b"x" * 5000]
#: What fields take that has a meaning.
FLAGS = [
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_EXCL,
]
VALUES = {
    "mode": [
        0o100644,
        0o40755,
        0o120777,
        0o20666,
        0o10600,
        0o140600,
        0o7777,
        0,
        0o100666,
        0o100600,
    ],
    "offset": [0, 0, 0, 1, 4095, 4096, 1 << 20, (1 << 63) - 1, 1 << 63],
    "off_in": [0, 0, 100, 5000, 1 << 63],
    "off_out": [0, 0, 100, 5000, 1 << 63],
    "lk_start": [0, 0, 1, 10, 1 << 62],
    "lk_end": [1, 10, 100, (1 << 63) - 1, (1 << 63) - 1, 1 << 63],
    "lk_type": [0, 1, 1, 2, 3],
    "lk_flags": [0, 0, 0, 1, 2],
    "owner": [1, 2, 3],
    "whence": [0, 1, 2, 3, 4, 9],
    "mask": [0, 0x100, 0x10000100 | 0x200, 1 << 31, 0xFFFFFFFF, 0x2],
    "unique": [0, 1, 1 << 40],
    "major": [7, 7, 7, 6, 8],
    "minor": [41, 41, 36, 26, 99],
    "count": [0, 1, 2, 3, 1 << 30],
    "nlookup": [0, 1, 1, 2, 1 << 60],
    "atimensec": [0, 999_999_999, 10**9],
    "mtimensec": [0, 999_999_999, 10**9],
}
#: Enough to be noticed, and not to fill a disk.
SIZES = [0, 1, 10, 4096, 65536, 1 << 20, (1 << 20) + 1]
OFFSETS = [0, 1, 4095, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
OF_FILES = (
    Opcode.READ, Opcode.WRITE, Opcode.FLUSH, Opcode.RELEASE, Opcode.FSYNC,
    Opcode.FALLOCATE, Opcode.LSEEK,
    Opcode.COPY_FILE_RANGE, Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW,
)  # fmt: skip
OF_DIRECTORIES = (Opcode.READDIR, Opcode.READDIRPLUS, Opcode.RELEASEDIR, Opcode.FSYNCDIR)
MORE_SHAPES = {
    **SHAPES,
    Opcode.INIT: (fuse.init_in, 0),
    Opcode.DESTROY: (None, 0),
    Opcode.GETLK: (fuse.lk_in, 0),
    Opcode.SETLK: (fuse.lk_in, 0),
    Opcode.SETLKW: (fuse.lk_in, 0),
    Opcode.INTERRUPT: (fuse.interrupt_in, 0),
    Opcode.FSNOTIFY_WAIT: (fsnotify_wait_in, 0),
}
NEW_NODE = (Opcode.LOOKUP, Opcode.MKDIR, Opcode.MKNOD, Opcode.LINK, Opcode.SYMLINK)
#: Chosen more often: what makes state.
FREQUENT = [
    Opcode.LOOKUP,
    Opcode.CREATE,
    Opcode.MKDIR,
    Opcode.OPEN,
    Opcode.OPENDIR,
    Opcode.WRITE,
    Opcode.SETLK,
]


class Fuzzer:
    """A guest that remembers what it was given."""

    def __init__(self, share: Path, locks: bool = True) -> None:
        self.fs = PassthroughFs(
            share, ShareOptions(xattr=True, security_labels=True, allow_direct_io=True)
        )
        self.host = Host(share)
        self.waits = BlockingLocks(lambda _seconds, _callback: None)
        options = SessionOptions(
            posix_lock=locks, flock=locks, killpriv_v2=True, security_label=Negotiation.AUTO
        )
        self.session = Session(
            self.fs, self.host.table, options, self.waits, make_plain=make_plain(self.fs)
        )
        self.ring = RequestRing(self.session)
        self.begin()

    def begin(self) -> None:
        """Mount."""
        self.nodes = [ROOT]
        self.files: list[tuple[int, int]] = [(ROOT, 0)]
        self.directories: list[tuple[int, int]] = [(ROOT, 0)]
        self.mounted = True
        Client(self.session).init(OFFER | FUSE_HAS_FSNOTIFY_WAIT)

    def request(self, random: Random) -> bytes:
        """Something that a guest might send, or nearly."""
        if random.random() < 0.03:
            return noise(random, 200)
        opcode = (
            random.choice(FREQUENT) if random.random() < 0.4 else random.choice(list(MORE_SHAPES))
        )
        if opcode in (Opcode.INIT, Opcode.DESTROY) and random.random() < 0.9:
            opcode = Opcode.STATFS
        node, fh = self.target(random, opcode)
        data = (
            random.randbytes(random.choice((0, 10, 4096)))
            if opcode in (Opcode.WRITE, Opcode.SETXATTR)
            else b""
        )
        codec, names = MORE_SHAPES[opcode]
        args = b""
        if codec is not None:
            fields = {
                field.name: self.field(random, opcode, field.name, field.sizeof(), fh, len(data))
                for field in codec.layout.subcons
            }
            args = codec.pack(**fields)
        args += b"".join(
            random.choice(NAMES if random.random() < 0.95 else BAD_NAMES) + b"\0"
            for _ in range(names)
        )
        args += data
        extensions = self.extensions(random) if random.random() < 0.05 else b""
        owner = random.choice((0, 0, 0, 1000, 65534) if random.random() < 0.98 else (0xFFFFFFFF,))
        head = fuse.in_header.pack(
            len=fuse.in_header.size + len(args) + len(extensions),
            opcode=opcode if random.random() < 0.98 else random.randrange(700),
            unique=random.getrandbits(64),
            nodeid=node,
            uid=owner,
            gid=owner,
            total_extlen=len(extensions) // 8,
        )
        request = head + args + extensions
        return spoiled(random, request) if random.random() < 0.1 else request

    def target(self, random: Random, opcode: int) -> tuple[int, int]:
        """Choose a nodeid and a handle, mostly of the right kind."""
        if random.random() < 0.05:
            return number(random, 8), number(random, 8)
        if opcode in OF_FILES and random.random() < 0.9:
            return random.choice(self.files)
        if opcode in OF_DIRECTORIES and random.random() < 0.9:
            return random.choice(self.directories)
        node = ROOT if random.random() < 0.5 else random.choice(self.nodes)
        return node, random.choice(self.files)[1]

    def field(self, random: Random, opcode: int, name: str, width: int, fh: int, held: int) -> Any:
        """Choose a value for a field of the request; ``held``: bytes of data that follow."""
        if width not in LAST:
            return random.randbytes(width)
        if random.random() < 0.02:
            # Not where it would be an amount of memory or disk that is really had.
            amount = name in ("size", "length", "len")
            return random.choice(OFFSETS[3:]) & LAST[width] if amount else number(random, width)
        if name in ("size", "length", "len"):
            return held if held and random.random() < 0.8 else random.choice(SIZES)
        if name in VALUES:
            return random.choice(VALUES[name]) & LAST[width]
        match name:
            case "fh" | "fh_in":
                return fh
            case "fh_out":
                return random.choice(self.files)[1]
            case "nodeid_out":
                return random.choice(self.files)[0]
            case "newdir" | "oldnodeid" | "nodeid":
                return random.choice(self.nodes) if random.random() < 0.5 else ROOT
            case "flags" | "open_flags" | "valid":
                return self.flags(random, opcode, name) & LAST[width]
        return random.choice((0, 0, 0, 0, 0, 0, 0, 1, 1000))

    def flags(self, random: Random, opcode: int, name: str) -> int:
        """Choose flags, mostly those that mean something to the operation."""
        if random.random() < 0.1:
            return random.getrandbits(16)
        if name == "valid":
            return random.getrandbits(11)
        if name == "open_flags":
            return random.choice((0, 0, 1))
        if opcode in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE, Opcode.OPENDIR):
            return random.choice(FLAGS)
        if opcode in (Opcode.RENAME2, Opcode.SETXATTR):
            return random.choice((0, 0, 1, 2))
        return 0

    def extensions(self, random: Random) -> bytes:
        """Choose the bytes after the arguments."""
        label = fuse.secctx.pack(size=4) + b"user.l\0text"
        label += bytes(-len(label) % 8)
        parts = [
            fuse.ext_header.pack(size=8 + len(label), type=1) + label,
            fuse.ext_header.pack(size=16, type=fuse.EXT_GROUPS)
            + fuse.supp_groups.pack(nr_groups=1)
            + b"\0\1\0\0",
            random.randbytes(8 * random.randrange(4)),
        ]
        return b"".join(random.sample(parts, random.randrange(1, 3)))

    def learn(self, opcode: int, node: int, payload: bytes) -> None:
        """Remember nodes and handles that a reply gives."""
        entry, opened = fuse.entry_out, fuse.open_out
        if opcode in NEW_NODE and len(payload) == entry.size:
            self.nodes.append(entry.unpack_from(payload).nodeid)
        elif opcode in (Opcode.CREATE, Opcode.TMPFILE) and len(payload) == entry.size + opened.size:
            made = entry.unpack_from(payload).nodeid
            self.nodes.append(made)
            self.files.append((made, opened.unpack_from(payload, entry.size).fh))
        elif opcode in (Opcode.OPEN, Opcode.OPENDIR) and len(payload) == opened.size:
            handle = node, opened.unpack_from(payload).fh
            (self.files if opcode == Opcode.OPEN else self.directories).append(handle)
        elif opcode in (Opcode.INIT, Opcode.DESTROY):
            self.mounted = False

    def exchange(self, random: Random) -> None:
        """Send one request and check what must hold of any reply."""
        if not self.mounted and random.random() < 0.2:
            self.begin()
        request = self.request(random)
        room = (
            random.choice((16, 32, 144, 160, 4112, 70_000, 15, 0))
            if random.random() < 0.3
            else 4112
        )
        cuts = (
            [random.randrange(80) for _ in range(random.randrange(3))],
            [random.randrange(40)] * random.randrange(2),
        )
        rooms = [len(part) for part in slices_of(bytes(room), cuts[1])]
        written, buffer = self.ring.send([*map(bytes, slices_of(request, cuts[0]))], rooms)
        header = fuse.in_header.unpack_from(request.ljust(fuse.in_header.size, b"\0"))
        if isinstance(written, DeferredReply):
            assert header.opcode in (Opcode.SETLKW, Opcode.FSNOTIFY_WAIT)
            assert written.unique == header.unique
            return
        head = fuse.out_header.size
        assert written == 0 or head <= written <= room
        assert buffer[written:] == bytes([FILLER]) * (room - written)
        if header.opcode in NO_REPLY or room < head:
            assert written == 0
            return
        reply = fuse.out_header.unpack_from(buffer)
        assert (reply.len, reply.unique) == (written, header.unique)
        assert -512 < reply.error <= 0
        assert written == head or reply.error == 0
        if not reply.error:
            self.learn(header.opcode, header.nodeid, buffer[head:written])

    def close(self) -> None:
        self.host.close()
        self.fs.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory in memory where there is one: requests may sync."""
    memory = Path("/dev/shm")
    path = Path(
        tempfile.mkdtemp(
            prefix="farwatch-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
        )
    )
    yield path
    shutil.rmtree(path)


@pytest.mark.root
def test_any_requests_are_replied_and_the_session_goes_on(place: Path) -> None:
    share = place / "share"
    (share / "dir").mkdir(parents=True)
    (share / "file").write_bytes(b"content" * 1000)
    (share / "link").symlink_to("../outside")
    (place / "outside").write_text("untouched")
    before = open_descriptors()
    fuzzer = Fuzzer(share)
    for position, random in inputs(INPUTS):
        if position % LIFE == 0:
            fuzzer.session.reset()
            fuzzer.begin()
            tidy(share)
        fuzzer.exchange(random)
    fuzzer.begin()
    client = Client(fuzzer.session)
    client.agreed = client.init()
    (share / "last").mkdir(exist_ok=True)
    assert client.lookup(ROOT, b"last").nodeid != 0
    fuzzer.session.reset()
    assert len(fuzzer.fs.share.locks) == len(fuzzer.waits) == 0
    fuzzer.close()
    assert open_descriptors() <= before
    assert {path.name for path in place.iterdir()} == {"outside", "share"}
    assert (place / "outside").read_text() == "untouched"


def tidy(share: Path) -> None:
    """Keep the share small: what piles up would only be slow."""
    share.chmod(0o755)
    for path in share.iterdir():
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (share / "dir").mkdir(exist_ok=True)
    (share / "file").write_bytes(b"content" * 1000)
