# SPDX-License-Identifier: Apache-2.0
"""Arbitrary requests: the session never raises, writes only what it returns, replies in order.

Against the fake file system, and against the real one on a directory that holds a few files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import DirEntry
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtqueue import Chain
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.fake_fs import FakeFs, FakeWatches
from tests.support.fuse_client import HEADER_SIZE, Client, slices_of
from tests.support.request_shapes import FILLER, NO_REPLY, SHAPES

NODEIDS = st.sampled_from([1, 1, 2, 3, 4, 5, 0, 42, (1 << 64) - 1])
# Nothing between: an allocation of that many bytes might succeed.
NUMBERS = st.one_of(
    st.integers(0, 5000),
    st.sampled_from(
        [
            (1 << 31) - 1,
            1 << 31,
            (1 << 32) - 1,
            0o100644,
            0o40755,
            os.O_RDWR,
            os.O_CREAT | os.O_RDWR,
        ]
    ),
)
LONG_NUMBERS = st.one_of(
    st.integers(0, 5000), NODEIDS, st.sampled_from([(1 << 63) - 1, 1 << 62, 1 << 63])
)
NAMES = st.one_of(
    st.sampled_from(
        [b"file", b"dir", b"link", b"new", b".", b"..", b"", b"a/b", b"user.a", b"x" * 256]
    ),
    st.binary(max_size=20),
)
#: What a well-formed request is spoilt by.
Spoil = Enum("Spoil", ["NOTHING", "LENGTH", "SHORT", "EXTENSIONS", "OPCODE", "NODEID", "NOISE"])
SPOILS = st.sampled_from([Spoil.NOTHING] * 6 + list(Spoil))
SIZES = st.lists(st.integers(0, 60), max_size=6)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Make a request that is well-formed, or anything but that."""
    opcode = draw(st.sampled_from(sorted(SHAPES)))
    codec, names = SHAPES[opcode]
    args = b""
    if codec is not None:
        widths = {field.name: field.sizeof() for field in codec.layout.subcons}
        args = codec.pack(
            **{
                name: draw(NUMBERS if width == 4 else LONG_NUMBERS)
                for name, width in widths.items()
            }
        )
    args += b"".join(draw(NAMES) + b"\0" for _ in range(names))
    nodeid = draw(NODEIDS)
    length = fuse.in_header.size + len(args)
    extensions = 0
    match draw(SPOILS):
        case Spoil.LENGTH:
            length = max(0, length + draw(st.one_of(st.integers(-100, 60), st.just(1 << 31))))
        case Spoil.SHORT:
            args = args[: draw(st.integers(0, len(args)))]
            length = fuse.in_header.size + len(args)
        case Spoil.EXTENSIONS:
            extensions = draw(st.sampled_from([1, 2, 3, 0xFFFF]))
        case Spoil.OPCODE:
            opcode = draw(st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 600)))
        case Spoil.NODEID:
            nodeid = draw(st.integers(0, (1 << 64) - 1))
        case Spoil.NOISE:
            args = draw(st.binary(max_size=120))
            length = fuse.in_header.size + len(args)
    owner = draw(st.sampled_from([0, 1000, 0xFFFFFFFF]))
    unique = draw(st.integers(0, (1 << 64) - 1))
    header = fuse.in_header.pack(
        len=length,
        opcode=opcode,
        unique=unique,
        nodeid=nodeid,
        uid=owner,
        gid=owner,
        total_extlen=extensions,
    )
    return header + args


@st.composite
def rooms(draw: st.DrawFn) -> int:
    return draw(st.one_of(st.sampled_from([4096, 70000]), st.integers(0, 400)))


def exchange(
    session: Session, request: bytes, room: int, cuts: tuple[list[int], list[int]]
) -> None:
    """Send a request and check what must hold of any reply."""
    writable = slices_of(bytearray([FILLER]) * room, cuts[1])
    written = session.handle(Chain.of(slices_of(request, cuts[0]), writable))
    buffer = b"".join(writable)
    assert isinstance(written, int)
    assert written == 0 or HEADER_SIZE <= written <= room
    assert buffer[written:] == bytes([FILLER]) * (room - written)
    padded = request.ljust(fuse.in_header.size, b"\0")
    opcode, unique = (
        fuse.in_header.unpack_from(padded).opcode,
        fuse.in_header.unpack_from(padded).unique,
    )
    if opcode in NO_REPLY or room < HEADER_SIZE:
        assert written == 0
        return
    reply = fuse.out_header.unpack_from(buffer)
    assert reply.len == written
    assert reply.unique == unique
    assert -512 < reply.error <= 0
    assert written == HEADER_SIZE or reply.error == 0


@settings(max_examples=400)
@given(batch=st.lists(st.tuples(requests(), rooms(), SIZES, SIZES), min_size=1, max_size=4))
def test_any_request_has_a_reply_in_order(
    batch: list[tuple[bytes, int, list[int], list[int]]],
) -> None:
    fs = FakeFs()
    fs.content = bytes(1000)
    fs.entries = [DirEntry(b"x" * 30, 1, 8, i + 1) for i in range(20)]
    session = Session(fs, FakeWatches(), SessionOptions())
    Client(session).init()
    for request, room, before, after in batch:
        exchange(session, request, room, (before, after))


@settings(max_examples=200)
@given(data=st.binary(max_size=200), room=rooms(), cuts=st.tuples(SIZES, SIZES))
def test_any_bytes_have_a_reply_in_order(
    data: bytes, room: int, cuts: tuple[list[int], list[int]]
) -> None:
    session = Session(FakeFs(), FakeWatches(), SessionOptions())
    exchange(session, data, room, cuts)
    Client(session).init()
    exchange(session, data, room, cuts)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[Path, PassthroughFs]]:
    """Yield a share inside a directory that must stay unchanged."""
    share = tmp_path / "share"
    (share / "dir").mkdir(parents=True)
    (share / "file").write_bytes(b"content" * 100)
    (share / "link").symlink_to("../outside")
    (tmp_path / "outside").write_text("untouched")
    fs = PassthroughFs(share, ShareOptions(xattr=True))
    yield share, fs
    fs.close()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(st.tuples(requests(), rooms(), SIZES, SIZES), min_size=1, max_size=6))
@pytest.mark.root
def test_any_request_is_replied_and_nothing_outside_the_share_changes(
    real: tuple[Path, PassthroughFs], batch: list[tuple[bytes, int, list[int], list[int]]]
) -> None:
    share, fs = real
    session = Session(fs, FakeWatches(), SessionOptions())
    client = Client(session)
    client.init()
    root = client.opendir(1)
    for name in (b"file", b"dir", b"link"):
        if os.path.lexists(share / os.fsdecode(name)):
            client.lookup(1, name)
    assert root.fh
    for request, room, before, after in batch:
        exchange(session, request, room, (before, after))
    session.reset()
    assert sorted(path.name for path in share.parent.iterdir()) == ["outside", "share"]
    assert (share.parent / "outside").read_text() == "untouched"
