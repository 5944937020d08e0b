# SPDX-License-Identifier: Apache-2.0
"""The native part does what the interpreter's code does: the same rings, the same replies.

Rings and requests are well-formed, spoilt and random. FARWATCH_EXAMPLES=N tries N of each.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from farwatchd.fuse import init, metrics, request
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.native import NativeUse, load
from farwatchd.passthrough.options import Cache, ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtqueue import Ring, RingAddress, RingMemory, SplitRing, VirtqueueError, chains
from farwatchd.virtqueue.native_ring import native_ring
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from tests.fuzz.test_fuzz_requests import Fuzzer, tidy
from tests.fuzz.test_fuzz_rings import RAM, SIZE, fill, memory_of
from tests.support import native_part
from tests.support.driver import INDIRECT, NEXT, WRITE, DriverQueue, GuestRam
from tests.support.fuse_client import ROOT, Client, slices_of
from tests.support.fuzzing import inputs, number, spoiled
from tests.support.request_ring import RequestRing

RINGS = 4000
REQUESTS = 8000
LIVES = 10
#: A time of the monotonic clock that does not come.
NEVER = (1 << 63) - 1
LIFE = 400
#: What is done with a ring, the usual most often.
CALLS = ["pop"] * 6 + ["add_used"] * 3 + [
    "go_idle", "needs_notification", "enable_notification", "disable_notification", "has_more",
    "peek", "go_to_previous_position", "go_on_after", "base", "used",
]  # fmt: skip
OPCODES = [
    Opcode.LOOKUP, Opcode.GETATTR, Opcode.OPEN, Opcode.READ, Opcode.WRITE, Opcode.FLUSH,
    Opcode.RELEASE,
]  # fmt: skip
#: Files are closed less often than they are opened.
WEIGHTS = [4, 4, 3, 5, 5, 2, 1]
#: Their replies begin with a number of the daemon's.
WITH_NUMBER = (Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR, Opcode.OPEN, Opcode.OPENDIR)
NAMES = [b"file", b"dir", b"link", b"missing", b"x" * 255, b"x" * 256, b"x" * 1030, b"", b".",
         b"..", b"a/b", b"two\0names"]  # fmt: skip


@pytest.fixture(autouse=True)
def by_native_part() -> Iterator[None]:
    native_part.choose("native")
    yield
    native_part.choose("python")


def test_limits_are_those_of_the_interpreters_code() -> None:
    source = native_part.sources()
    number_of = r"^#define (\w+) \(?(?:UINT64_C\()?(\d+(?:U?\)? << \d+)?)"
    defined = dict(re.findall(number_of, source, re.M))
    limits = {
        "MAX_INDIRECT": chains.MAX_INDIRECT,
        "MAX_CHAIN_BYTES": chains.MAX_CHAIN_BYTES,
        "MAX_NAME": request.NAME_MAX,
        "MAX_DATA": min(init.MAX_READ, init.MAX_WRITE),
        "SAMPLED": metrics.SAMPLED,
    }
    for name, limit in limits.items():
        value, _, shift = re.sub(r"[U)]", "", defined[name]).partition(" << ")
        assert int(value) << int(shift or 0) == limit, name


# Rings


class OneOfTwo:
    """A ring in memory of its own, of which each other one has the same."""

    def __init__(self, make: Callable[..., Ring], seed: str, event_idx: bool) -> None:
        random = Random(seed)
        self.ram = GuestRam(RAM)
        memory = memory_of(self.ram)
        queue = DriverQueue(self.ram, SIZE, event_idx)
        address = RingAddress(
            *(self.ram.user_addr(at) for at in (queue.descriptors, queue.available, queue.used))
        )
        area = self.ram.allocate(8192)
        fill(random, self.ram, queue, area)
        #: Where its chains mostly have their memory.
        self.spots = (area, area + 4096)
        self.ram.write_short(queue.used + 2, random.choice((0, 0, 0, 1, 5, 65535)))
        parts = RingMemory.at_user_addresses(memory, SIZE, address, event_idx)
        base = random.choice((0, 0, 0, 3, 65534))
        used = random.choice((None, None, 0, 65535))
        self.ring = make(memory, parts, base, event_idx, random.random() < 0.9, used)
        self.queue = queue

    def offer_nearly_right_chain(self, random: Random) -> None:
        """Have the next chain be a request with room for its reply; often one thing of it is odd.

        The request is where the chains mostly have their memory.
        """
        area, other = self.spots
        size = random.choice((40, 48, 56))
        chain = [
            [area, size, NEXT, 1],
            [other + 512, random.choice((16, 120, 144, 160)), WRITE, 0],
        ]
        if size < 56:
            chain[1:1] = [[area + size, 56 - size, NEXT, 2]]
        if random.random() < 0.5:
            changed, field = random.choice(chain), random.randrange(4)
            changed[field] = random.choice(
                (number(random, (8, 4, 2, 2)[field]), changed[field] ^ 1, 2, 4)
            )
        if random.random() < 0.5:
            self.queue.write_table(area + 1024, [(a, b, c, d) for a, b, c, d in chain])
            self.queue.set_descriptor(0, area + 1024, 16 * len(chain), INDIRECT)
        else:
            for index, (addr, length, flags, following) in enumerate(chain):
                self.queue.set_descriptor(index, addr, length, flags, following)
        self.ram.write_short(self.queue.available + 4 + 2 * (self.ring.base % SIZE), 0)
        self.ram.write_short(self.queue.available + 2, self.ring.base + 1)

    def call(self, random: Random, name: str) -> Any:
        """Do one thing; return what a caller sees, an exception too."""
        arguments: tuple[int, ...] = ()
        if name == "add_used":
            arguments = (random.randrange(SIZE), random.choice((0, 16, (1 << 32) - 1)))
        elif name == "go_on_after":
            arguments = (random.randrange(SIZE + 2),)
        try:
            found = getattr(self.ring, name)
            result = found(*arguments) if callable(found) else found
        except VirtqueueError as error:
            return str(error)
        if name == "pop" and result is not None:
            return result[0], contents(result[1])
        return contents(result) if name == "peek" and result is not None else result


def contents(chain: Any) -> tuple[object, ...]:
    """Return what a chain has, and where its memory ends in that of the guest."""
    return (
        chain.readable_size,
        chain.writable_size,
        [bytes(view) for view in chain.readable],
        [bytes(view) for view in chain.writable],
    )


def test_chain_that_was_put_back_stays_though_the_driver_takes_its_index_back() -> None:
    popped = []
    for make in (SplitRing, native_ring):
        one = OneOfTwo(make, "a ring", True)
        ring, queue = one.ring, one.queue
        queue.set_descriptor(0, one.spots[0], 40, 0, 0)
        for index in (ring.base + 1, ring.base):
            one.ram.write_short(queue.available + 4 + 2 * (ring.base % SIZE), 0)
            one.ram.write_short(queue.available + 2, index)
            if index == ring.base + 1:
                assert ring.pop() is not None
                ring.go_to_previous_position()
        assert not ring.go_idle()[0]
        popped.append(one.call(Random(1), "pop"))
    assert popped[0] == popped[1] is not None


def test_rings_are_the_same() -> None:
    results: Counter[str] = Counter()
    for position, random in inputs(RINGS):
        event_idx = random.random() < 0.7
        seed = f"ring {position}"
        python, native = (OneOfTwo(make, seed, event_idx) for make in (SplitRing, native_ring))
        for _ in range(random.randrange(1, 25)):
            name = random.choice(CALLS)
            state = random.getstate()
            expected = python.call(random, name)
            random.setstate(state)
            assert native.call(random, name) == expected, name
            results["error" if isinstance(expected, str) else name] += 1
            if isinstance(expected, str) and name != "go_on_after":
                break
            if random.random() < 0.1:
                more = random.choice((1, 1, 2, 9))
                for each in (python, native):
                    at = each.queue.available + 2
                    each.ram.write_short(at, each.ram.read_short(at) + more)
        assert native.ram.read(native.ram.BASE, RAM) == python.ram.read(python.ram.BASE, RAM)
        for each in (python, native):
            each.ram.close()
    assert set(results) == {*CALLS, "error"}


def test_requests_in_any_ring_are_the_same(tmp_path: Path) -> None:
    fs = PassthroughFs(tmp_path, ShareOptions())
    session = Session(fs, None, SessionOptions(), make_plain=native_part.make_plain(fs))
    plain = session.plain
    assert plain is not None
    Client(session).init()
    served = others = 0
    for position, random in inputs(RINGS):
        event_idx = random.random() < 0.7
        state = random.getstate()
        ends = []
        for make in (SplitRing, native_ring):
            random.setstate(state)
            one = OneOfTwo(make, f"requests {position}", event_idx)
            for at in (one.ram.BASE + 4096, *one.spots):
                name = random.choice((b"missing\0", b"\0", b"..\0"))
                args, opcode = random.choice(
                    ((fuse.getattr_in.pack(), Opcode.GETATTR), (name, Opcode.LOOKUP))
                )
                header = fuse.in_header.pack(
                    len=fuse.in_header.size + len(args), opcode=opcode, unique=at, nodeid=ROOT
                )
                one.ram.write(at, (header + args)[: random.choice((56, 56, 56, 16))])
            if random.random() < 0.6:
                one.offer_nearly_right_chain(random)
            error = ""
            try:
                while True:
                    if make is native_ring:
                        served += plain.serve(one.ring, 64, NEVER)
                    popped = one.ring.pop()
                    if popped is None:
                        break
                    written = session.handle(popped[1])
                    assert isinstance(written, int)
                    one.ring.add_used(popped[0], written)
                    others += 1
            except VirtqueueError as problem:
                error = str(problem)
            ends.append((error, one.ring.base, one.ring.used, one.ram.read(one.ram.BASE, RAM)))
            one.ram.close()
        assert ends[0] == ends[1], position
    assert served > 10 and others
    session.reset()
    fs.close()


# Requests


class ServedShare:
    """A share with a session that the native part serves, and things in it."""

    def __init__(self, path: Path, handles: InodeFileHandles, **options: Any) -> None:
        (path / "dir").mkdir()
        (path / "file").write_bytes(os.urandom(70_000))
        (path / "link").symlink_to("file")
        part = load(NativeUse.ON)
        assert part is not None
        self.fs = PassthroughFs(path, ShareOptions(**options), InodeStore(handles))
        self.session = Session(
            self.fs, None, SessionOptions(), make_plain=native_part.make_plain(self.fs)
        )
        self.ring = RequestRing(self.session)
        client = Client(self.session)
        client.init()
        self.nodes = [ROOT] + [
            client.lookup(ROOT, name).nodeid for name in (b"file", b"dir", b"link")
        ]
        self.files: list[tuple[int, int]] = [(self.nodes[1], 999)]
        flags = [os.O_RDONLY]
        if not self.fs.share.options.readonly:
            flags += [os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND]
        self.files += [(self.nodes[1], client.open(self.nodes[1], each).fh) for each in flags]
        self.kept = len(self.files)

    def request(self, random: Random) -> tuple[int, bytes]:
        """Make a request, mostly a plain one."""
        opcode = random.choices(OPCODES, WEIGHTS)[0]
        node, fh = random.choice(self.files)
        size = random.choice((0, 1, 10, 4096, 65_536, 1 << 20))
        offset = random.choice((0, 0, 1, 4095, 69_990, 70_000, 80_000, (1 << 63) - 1, 1 << 63))
        if opcode in (Opcode.LOOKUP, Opcode.GETATTR, Opcode.OPEN) and random.random() < 0.9:
            node = random.choice(self.nodes)
        data = b""
        match opcode:
            case Opcode.LOOKUP:
                args = random.choice(NAMES) + b"\0"
            case Opcode.GETATTR:
                by_fh = random.random() < 0.4
                if by_fh:
                    node = random.choice(self.files)[0]
                args = fuse.getattr_in.pack(getattr_flags=by_fh, fh=fh)
            case Opcode.OPEN:
                flags = random.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY))
                if random.random() < 0.2:
                    flags |= random.choice((os.O_APPEND, os.O_TRUNC, os.O_NONBLOCK, os.O_DIRECT))
                flags = number(random, 4) if random.random() < 0.05 else flags
                args = fuse.open_in.pack(flags=flags, open_flags=random.random() < 0.05)
            case Opcode.READ:
                args = fuse.read_in.pack(fh=fh, offset=offset, size=size)
            case Opcode.WRITE:
                data = random.randbytes(random.choice((0, 1, 10, 4096)))
                size = len(data) if random.random() < 0.9 else size
                offset = offset if offset < 1 << 20 or offset > 1 << 62 else 0
                args = fuse.write_in.pack(
                    fh=fh, offset=offset, size=size, write_flags=random.choice((0, 0, 0, 1, 2, 4))
                )
            case Opcode.FLUSH:
                args = fuse.flush_in.pack(fh=fh, lock_owner=1)
            case _:
                # The first ones stay, so that something is read and written to the end.
                node, fh = random.choice(self.files[self.kept :] or [(ROOT, 999)])
                args = fuse.release_in.pack(fh=fh)
        args += data
        extensions = bytes(8) if random.random() < 0.03 else b""
        header = fuse.in_header.pack(
            len=fuse.in_header.size + len(args) + len(extensions),
            opcode=opcode,
            unique=random.getrandbits(64),
            nodeid=node if random.random() < 0.97 else number(random, 8),
            total_extlen=len(extensions) // 8,
        )
        request = header + args + extensions
        return opcode, spoiled(random, request) if random.random() < 0.1 else request

    def close(self) -> None:
        self.session.reset()
        self.fs.close()


@pytest.fixture(params=[InodeFileHandles.PREFER, InodeFileHandles.NEVER])
def handles(request: pytest.FixtureRequest) -> InodeFileHandles:
    """Return each way to reference inodes."""
    handles: InodeFileHandles = request.param
    return handles


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"readonly": True, "cache": Cache.NEVER},
        {"allow_direct_io": True, "cache": Cache.ALWAYS},
    ],
)
def test_replies_are_the_same(
    tmp_path: Path, handles: InodeFileHandles, options: dict[str, Any]
) -> None:
    share = ServedShare(tmp_path, handles, **options)
    plain = share.session.plain
    assert plain is not None
    served: Counter[int] = Counter()
    for _, random in inputs(REQUESTS // 6):
        opcode, request = share.request(random)
        room = random.choice((4112, 4112, 4112, 70_000, (1 << 20) + 16, 16, 32, 120, 144, 15, 0))
        cuts = ([40], [16])
        if random.random() < 0.4:
            cuts = (
                [random.randrange(1, 80) for _ in range(random.randrange(3))],
                [random.randrange(1, 40)] * random.randrange(2),
            )
        readable = [bytes(view) for view in slices_of(request, cuts[0])]
        rooms = [len(view) for view in slices_of(bytes(room), cuts[1])]
        before = share.ring.served
        written, buffer = share.ring.send(readable, rooms)
        opcodes, plain.opcodes = plain.opcodes, 0
        if share.ring.served > before:
            served[opcode] += 1
            expected, expected_buffer = share.ring.send(readable, rooms)
            assert isinstance(written, int)
            if opcode == Opcode.OPEN:
                fh, other = (
                    fuse.open_out.unpack_from(reply, fuse.out_header.size).fh
                    for reply in (buffer, expected_buffer)
                )
                assert other == fh + 1
                share.files.append((fuse.in_header.unpack_from(request).nodeid, fh))
                buffer = buffer[:16] + expected_buffer[16:24] + buffer[24:]
            elif opcode == Opcode.RELEASE:
                # The file was there, and is not any more.
                assert (written, buffer[4:8]) == (16, bytes(4))
                assert expected_buffer[4:8] == (-9).to_bytes(4, "little", signed=True)
                buffer = expected_buffer
            assert (written, buffer) == (expected, expected_buffer), Opcode(opcode).name
        plain.opcodes = opcodes
    assert set(served) == {*OPCODES} - ({Opcode.WRITE} if options.get("readonly") else set())
    counts = share.session.metrics.counts
    assert all(counts[opcode] >= served[opcode] for opcode in served)
    share.close()


@pytest.mark.root
def test_opcodes_that_the_native_part_does_not_know_are_left(tmp_path: Path) -> None:
    share = ServedShare(tmp_path, InodeFileHandles.PREFER)
    plain = share.session.plain
    assert plain is not None
    assert {opcode for opcode in range(64) if plain.known >> opcode & 1} == {*OPCODES}
    for opcode in {*range(64)} - {*OPCODES}:
        plain.opcodes = (1 << 64) - 1
        request = fuse.in_header.pack(len=240, opcode=opcode, unique=9, nodeid=ROOT) + bytes(200)
        share.ring.send([request], [4096])
    assert share.ring.served == 0
    share.close()


@pytest.mark.root
@pytest.mark.parametrize("locks", [True, False])
def test_sessions_are_the_same(tmp_path: Path, locks: bool) -> None:
    served = 0
    for life in range(LIVES):
        ends = []
        for name in ("python", "native"):
            native_part.choose(name)
            share = tmp_path / f"{name} {life}"
            share.mkdir()
            tidy(share)
            fuzzer = Fuzzer(share, locks)
            replies: list[Any] = []
            send = fuzzer.ring.send

            def noted(
                readable: list[bytes],
                rooms: list[int],
                send: Any = send,
                replies: list[Any] = replies,
            ) -> Any:
                written, buffer = send(readable, rooms)
                opcode = int.from_bytes(b"".join(readable)[4:8], "little")
                # The header, and a nodeid or file number. Attributes have times and inode numbers.
                known = 24 if opcode in WITH_NUMBER else fuse.out_header.size
                replies.append((written, buffer[:known]) if isinstance(written, int) else None)
                return written, buffer

            fuzzer.ring.send = noted  # type: ignore[method-assign, assignment]
            for _, random in inputs(LIFE):
                random.seed(f"{life} {random.random()}")
                fuzzer.exchange(random)
            served += fuzzer.ring.served
            ends.append((replies, fuzzer.session.metrics.counts, fuzzer.session.metrics.errors))
            fuzzer.session.reset()
            fuzzer.close()
        for number_of, (python, native) in enumerate(zip(ends[0][0], ends[1][0], strict=True)):
            assert native == python, f"request {number_of} of life {life}"
        assert ends[0] == ends[1]
    assert served > LIVES
