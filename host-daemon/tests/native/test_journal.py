# SPDX-License-Identifier: Apache-2.0
"""The native part keeps the journal as the interpreter's code does: the same records."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir import journal_files, journal_writer
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.in_flight import InFlight, Intent
from farwatchd.state_dir.journal_files import JournalFiles
from farwatchd.state_dir.journal_writer import Journal
from farwatchd.state_dir.replay import Replay
from farwatchd.wire import fuse, journal
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.journal import HandleInodeState, LookupsState, PathInodeState, ReleasedState
from farwatchd.wire.state import NONE, OpenFileState
from tests.support import native_part
from tests.support.fuse_client import ROOT, Client
from tests.support.request_ring import RequestRing

STEPS = 3000
#: Steps after which both journals are read.
COMPARED = 20
NAMES = [b"name %d" % number for number in range(8)]
OPCODES = [
    Opcode.LOOKUP, Opcode.OPEN, Opcode.RELEASE, Opcode.WRITE, Opcode.CREATE, Opcode.UNLINK,
    Opcode.FORGET, Opcode.READDIRPLUS, Opcode.MKDIR, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2,
]  # fmt: skip
#: Inodes that are forgotten are looked up again.
WEIGHTS = [8, 5, 5, 2, 2, 1, 2, 2, 1, 1, 1, 1]
RECORDING = {Opcode.LOOKUP, Opcode.OPEN, Opcode.RELEASE}
HEADER, ENTRY = fuse.out_header.size, fuse.entry_out.size


class JournaledSession:
    """A share whose session keeps a journal, and a guest that knows some of its files."""

    def __init__(self, directory: Path, handles: InodeFileHandles) -> None:
        self.shared = shared = directory / "shared"
        shared.mkdir(parents=True)
        for name in NAMES:
            (shared / os.fsdecode(name)).touch()
        self.fs = PassthroughFs(shared, ShareOptions(), InodeStore(handles))
        self.session = Session(
            self.fs, None, SessionOptions(), make_plain=native_part.make_plain(self.fs)
        )
        self.ring = RequestRing(self.session)
        self.in_flight = in_flight = InFlight(
            os.open(directory / "in-flight", os.O_RDWR | os.O_CREAT, 0o600)
        )
        first, second = (
            os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("0", "1")
        )
        self.files = JournalFiles((first, second), bytes(16))
        self.turns: deque[Callable[[], None]] = deque()
        self.journal = Journal(
            self.files, in_flight, self.fs.share, self.session, b"", self.turns.append
        )
        self.replay = Replay(self.journal, in_flight, self.session, self.fs)
        self.journal.start()
        Client(self.session).init()
        self.served: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.counts: Counter[int] = Counter()
        self.open: list[tuple[int, int]] = []
        #: The errno of the last reply.
        self.error = 0

    def send(self, opcode: Opcode, nodeid: int, args: bytes, room: int) -> bytes:
        """Send a request; return what follows the header of its reply, empty for an error."""
        self.sent[opcode] += 1
        header = fuse.in_header.pack(
            len=fuse.in_header.size + len(args),
            opcode=opcode,
            unique=self.sent.total(),
            nodeid=nodeid,
        )
        before = self.ring.served
        written, reply = self.ring.send([header, args], [HEADER, room] if room else [HEADER])
        self.served[opcode] += self.ring.served - before
        assert isinstance(written, int)
        self.error = -int.from_bytes(reply[4:8], "little", signed=True) if written else 0
        return b"" if self.error else reply[HEADER:written]

    def step(self, random: Random) -> None:
        """Send a random request."""
        opcode = random.choices(OPCODES, WEIGHTS)[0]
        name = random.choice(NAMES) + b"\0"
        nodeid, fh = random.choice(self.open) if self.open else (ROOT, 999)
        match opcode:
            case Opcode.LOOKUP:
                self._entry(self.send(opcode, ROOT, name, ENTRY))
            case Opcode.OPEN:
                nodeid = random.choice(sorted(+self.counts) or [ROOT])
                reply = self.send(opcode, nodeid, fuse.open_in.pack(flags=os.O_RDWR), 16)
                if reply:
                    self.open.append((nodeid, fuse.open_out.unpack_from(reply).fh))
            case Opcode.RELEASE:
                if self.send(opcode, nodeid, fuse.release_in.pack(fh=fh), 0) == b"" and self.open:
                    self.open.remove((nodeid, fh))
            case Opcode.WRITE:
                self.send(opcode, nodeid, fuse.write_in.pack(fh=fh, size=4) + b"data", 8)
            case Opcode.CREATE:
                args = fuse.create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=0o100600) + name
                reply = self.send(opcode, ROOT, args, ENTRY + fuse.open_out.size)
                if reply:
                    nodeid = self._entry(reply)
                    fh = fuse.open_out.unpack_from(reply, ENTRY).fh
                    self.open.append((nodeid, fh))
            case Opcode.MKDIR:
                self._entry(self.send(opcode, ROOT, fuse.mkdir_in.pack(mode=0o700) + name, ENTRY))
            case Opcode.UNLINK | Opcode.RMDIR:
                self.send(opcode, ROOT, random.choice([name] * 9 + [b"..\0", b"\0"]), 0)
            case Opcode.RENAME:
                new = random.choice(NAMES) + b"\0"
                self.send(opcode, ROOT, fuse.rename_in.pack(newdir=ROOT) + name + new, 0)
            case Opcode.RENAME2:
                args = fuse.rename2_in.pack(newdir=ROOT, flags=random.randrange(3)) + name
                self.send(opcode, ROOT, args + random.choice(NAMES) + b"\0", 0)
            case Opcode.FORGET:
                nodeid = random.choice(sorted(+self.counts) or [999])
                if any(of == nodeid for of, _ in self.open):
                    return
                self.send(opcode, nodeid, fuse.forget_in.pack(nlookup=self.counts[nodeid]), 0)
                del self.counts[nodeid]
            case _:
                self._list()

    def _list(self) -> None:
        opened = self.send(Opcode.OPENDIR, ROOT, fuse.open_in.pack(), fuse.open_out.size)
        fh = fuse.open_out.unpack_from(opened).fh
        args = fuse.read_in.pack(fh=fh, size=4096)
        reply = self.send(Opcode.READDIRPLUS, ROOT, args, 4096)
        position = 0
        while position + ENTRY + fuse.dirent.size <= len(reply):
            self._entry(reply[position:])
            size = ENTRY + fuse.dirent.size
            size += fuse.dirent.unpack_from(reply, position + ENTRY).namelen
            position += (size + 7) // 8 * 8
        self.send(Opcode.RELEASEDIR, ROOT, fuse.release_in.pack(fh=fh), 0)

    def _entry(self, reply: bytes) -> int:
        nodeid = int(fuse.entry_out.unpack_from(reply).nodeid) if reply else 0
        if nodeid:
            self.counts[nodeid] += 1
        return nodeid

    def turn(self) -> None:
        """Do one thing of a compaction, if there is one."""
        if self.turns:
            self.turns.popleft()()

    def records(self) -> list[Any]:
        """Return all transactions of the journal, without what is the host's choice."""
        return [
            (
                each.unique,
                sorted(
                    map(_comparable, each.records),
                    key=lambda record: (type(record).__name__, record),
                ),
            )
            for each in journal.decode(memoryview(self._load()))
        ]

    def intent(self) -> tuple[int, ...] | None:
        """Return the last intent, without what is the host's choice; ``AssertionError``."""
        found = self.in_flight.intent()
        if found is None:
            return None
        assert 0 <= time.time_ns() - found.time_ns < 60e9 and not found.until_ns
        return found.unique, len(found.first), len(found.second), found.number

    def _load(self) -> bytes:
        fds = [os.dup(fd) for fd in self.files.fds]
        try:
            return JournalFiles((fds[0], fds[1]), bytes(16)).load()
        finally:
            for fd in fds:
                os.close(fd)

    def check(self) -> None:
        """Compare the journal with the session's tables."""
        contents = Contents()
        contents.apply(journal.decode(memoryview(self._load())))
        share = self.fs.share
        assert {nodeid: each.lookups for nodeid, each in contents.inodes.items()} == {
            each.nodeid: each.lookups for each in share.inodes.all()
        }
        assert {fh: (each.nodeid, each.flags) for fh, each in contents.files.items()} == {
            fh: (each.nodeid, each.flags) for fh, each in share.open_files.all()
        }
        assert not self.journal.changes

    def close(self) -> None:
        self.session.reset()
        self.fs.close()


def _comparable(record: Any) -> Any:
    if isinstance(record, HandleInodeState):
        return record._replace(key=b"")
    if isinstance(record, PathInodeState):
        return record._replace(device=0, ino=0, birth=0, handle=b"")
    return record


@pytest.mark.parametrize("handles", [InodeFileHandles.PREFER, InodeFileHandles.NEVER])
def test_journals_are_the_same(
    tmp_path: Path, handles: InodeFileHandles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_writer, "_COMPACT_FROM", 3000)
    monkeypatch.setattr(journal_writer, "_BATCH", 2)
    # The files become larger in their use, too.
    monkeypatch.setattr(journal_files, "_FIRST_SIZE", 512)
    seed = int(os.environ.get("FARWATCH_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    guests = []
    for name in ("python", "native"):
        native_part.choose(name)
        guests.append(JournaledSession(tmp_path / name, handles))
    native_part.choose("python")
    steps, turns = Random(seed), Random(seed)
    compactions = 0
    for number in range(STEPS):
        state = steps.getstate()
        for guest in guests:
            steps.setstate(state)
            guest.step(steps)
        if turns.random() < 0.4:
            compactions += bool(guests[0].turns)
            for guest in guests:
                guest.turn()
        assert guests[1].files.size == guests[0].files.size, f"step {number}"
        assert guests[1].intent() == guests[0].intent(), f"step {number}"
        if not number % COMPARED:
            python, native = (guest.records() for guest in guests)
            assert native == python, f"step {number}"
            for guest in guests:
                guest.check()
    assert compactions > 10
    served, sent = guests[1].served, guests[1].sent
    by_handle = handles is InodeFileHandles.PREFER
    for opcode in RECORDING - (set() if by_handle else {Opcode.LOOKUP}):
        # Not while the journal is compacted.
        assert 0 < served[opcode] < sent[opcode], opcode.name
    assert not guests[0].served.total()
    for guest in guests:
        guest.check()
        guest.close()


def native_session(tmp_path: Path) -> JournaledSession:
    """Return a session that the native part serves; what is made later has none."""
    native_part.choose("native")
    guest = JournaledSession(tmp_path, InodeFileHandles.PREFER)
    native_part.choose("python")
    return guest


def test_journal_is_written_to_its_end_and_no_further(tmp_path: Path) -> None:
    guest = native_session(tmp_path)
    client = Client(guest.session)
    nodeid = client.lookup(ROOT, NAMES[0]).nodeid
    most = guest.files.size + 200
    guest.files.lend(most)
    sizes: list[int] = []
    while not sizes or guest.served[Opcode.OPEN] == len(sizes):
        guest.send(Opcode.OPEN, nodeid, fuse.open_in.pack(flags=os.O_RDWR), 16)
        sizes.append(guest.files.size)
    # The interpreter's code has written the last one.
    assert len(sizes) > 1 and sizes[-2] <= most
    guest.files.lend(0)
    before = guest.served.total()
    guest.send(Opcode.OPEN, nodeid, fuse.open_in.pack(flags=os.O_RDWR), 16)
    assert guest.served.total() == before
    guest.check()
    guest.close()


def test_intent_says_what_an_entry_is(tmp_path: Path) -> None:
    guest = native_session(tmp_path)
    root = guest.fs.share.inodes.get(ROOT).fd
    plain = guest.session.plain
    assert plain is not None
    for number, name in enumerate((NAMES[0], b"missing"), 1):
        assert plain.intend_entry(number, root, b"before" + name + b"\0after", 6)
        found = guest.in_flight.intent()
        assert found is not None and found.unique == number
        assert found.first == guest.journal.places.identity_at(root, name)
    for args, at in ((b"name", 0), (b"..\0", 0), (b"a/b\0", 0), (b"\0", 0), (b"name\0", 5)):
        assert not plain.intend_entry(9, root, args, at), args
    assert not plain.intend_entry(9, root, b"x" * 1025 + b"\0", 0)
    assert not plain.intend_entry(9, -1, b"name\0", 0)
    assert not plain.intend_entry(9, root, b"name\0", -1)
    found = guest.in_flight.intent()
    assert found is not None and found.unique == 2
    guest.close()


def test_what_may_have_been_done_is_expected_until_it_comes(tmp_path: Path) -> None:
    guest = native_session(tmp_path)
    root = guest.fs.share.inodes.get(ROOT).fd
    there = guest.journal.places.identity_at(root, NAMES[0])
    os.unlink(NAMES[0], dir_fd=root)
    # The second one has removed a name, of the third one nothing is known.
    guest.replay.expect(Intent(2, 0, 0, there, b"", 0), {3})
    for name, failed in ((NAMES[1], 0), (NAMES[0], 0), (NAMES[2], errno.EIO)):
        assert guest.replay.expects
        guest.send(Opcode.UNLINK, ROOT, name + b"\0", 0)
        assert guest.error == failed
    assert not guest.replay.expects
    assert {os.fsencode(path.name) for path in guest.shared.iterdir()} == set(NAMES[2:])
    guest.close()


def test_numbers_are_those_of_the_interpreters_code() -> None:
    source = native_part.sources()
    for name, number in {
        "JOURNAL_HEADER": journal.header.size,
        "JOURNAL_END_AT": journal.END_AT,
        "HANDLE_INODE_RECORD": journal.number_of(HandleInodeState),
        "LOOKUPS_RECORD": journal.number_of(LookupsState),
        "OPEN_FILE_RECORD": journal.number_of(OpenFileState),
        "RELEASED_RECORD": journal.number_of(ReleasedState),
    }.items():
        assert f"#define {name} {number}\n" in source, name
    assert NONE == (1 << 64) - 1
