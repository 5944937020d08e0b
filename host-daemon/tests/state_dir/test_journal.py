# SPDX-License-Identifier: Apache-2.0
"""The journal's files and records, and the table of chains in flight, without a daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.in_flight import ENTRIES, InFlight
from farwatchd.state_dir.journal_files import JournalFiles
from farwatchd.wire import journal as wire
from farwatchd.wire.journal import Transaction, decode, encode
from farwatchd.wire.state import NONE, FlockState, LockState, OpenFileState, StateError
from hypothesis import given
from hypothesis import strategies as st

BOOT = b"boot id of a host"[:16]
INODE = wire.HandleInodeState(2, 0o100000, 1, 1, b"key")
RECORDS = [
    wire.OptionsState(b"options"),
    INODE,
    wire.PathInodeState(3, 0o40000, 2, 1, 5, 6, 7, b"handle", b"a/b"),
    wire.LookupsState(2, 4, 1),
    OpenFileState(1, 2, NONE, os.O_RDWR, 0, 0),
    FlockState(1, 1),
    wire.UnlockedState(2, 9),
    LockState(2, 9, 1, 0, 9, 1),
    wire.RenamedState(b"a", b"c", 0),
]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[JournalFiles]:
    """Yield an empty journal."""
    files = opened(tmp_path)
    files.attach()
    yield files
    files.invalidate()


def opened(directory: Path) -> JournalFiles:
    """Open the files as another process does."""
    first, second = (
        os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("0", "1")
    )
    return JournalFiles((first, second), BOOT)


def test_transactions_are_read_by_another_process(files: JournalFiles, tmp_path: Path) -> None:
    written = []
    for number in range(20000):
        written.append(Transaction(number, [wire.LookupsState(number, 1, 1)]))
        files.append(encode(*written[-1]))
        if number == 100:
            files.rewrite([encode(*each) for each in written])
    assert list(decode(memoryview(opened(tmp_path).load()))) == written


def test_journal_goes_on_in_another_process(files: JournalFiles, tmp_path: Path) -> None:
    files.append(encode(1, [INODE]))
    other = opened(tmp_path)
    other.load()
    other.attach()
    other.append(encode(2, [INODE]))
    found = [each.unique for each in decode(memoryview(opened(tmp_path).load()))]
    assert found == [1, 2]


def test_former_journal_is_valid_until_the_new_one_is_complete(
    files: JournalFiles, tmp_path: Path
) -> None:
    files.append(encode(1, [INODE]))

    def killed() -> Iterator[bytes]:
        yield encode(2, [INODE])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.rewrite(killed())
    found = [each.unique for each in decode(memoryview(opened(tmp_path).load()))]
    assert found == [1]


def test_contents_are_what_the_transactions_lead_to() -> None:
    contents = Contents()
    contents.apply(decode(memoryview(encode(1, RECORDS))))
    assert contents.options == b"options"
    assert contents.inodes[2].lookups == 4
    moved = contents.inodes[3]
    assert isinstance(moved, wire.PathInodeState) and moved.path == b"c/b"
    assert (contents.next_nodeid, contents.next_fh) == (4, 2)
    assert contents.flocks == {1: 1}
    assert contents.owners[2, 9].locks == [LockState(2, 9, 1, 0, 9, 1)]
    contents.apply(
        decode(
            memoryview(
                encode(
                    2,
                    [
                        wire.LookupsState(2, 0, 0),
                        wire.ReleasedState(1),
                        wire.UnlockedState(2, 9),
                        wire.RenamedState(b"c/b", b"x", 1),
                    ],
                )
            )
        )
    )
    assert contents.inodes.keys() == {3} and not contents.files and not contents.owners
    assert not contents.flocks and contents.next_nodeid == 4


class ModelTree:
    """Directories and files by their paths, as a file system has them."""

    def __init__(self) -> None:
        self.paths = {b"": 1}

    def below(self, path: bytes) -> list[bytes]:
        """Return a path and all below it."""
        return [each for each in self.paths if each == path or each.startswith(path + b"/")]

    def rename(self, old: bytes, new: bytes, exchanged: bool) -> None:
        """Rename; what ``new`` was has no name then, unless they are exchanged."""
        moved = {new + path[len(old) :]: self.paths.pop(path) for path in self.below(old)}
        replaced = {old + path[len(new) :]: self.paths.pop(path) for path in self.below(new)}
        self.paths.update(moved)
        if exchanged:
            self.paths.update(replaced)


NAMES = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join)


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from(["make", "rename", "exchange"]))))
def test_paths_follow_renames(steps: list[tuple[bytes, bytes, str]]) -> None:
    tree, contents = ModelTree(), Contents()
    records: list[object] = []
    for number, (path, new, step) in enumerate(steps, 2):
        parents = [each.rpartition(b"/")[0] in tree.paths for each in (path, new)]
        if step == "make":
            if parents[0] and path not in tree.paths:
                tree.paths[path] = number
                records.append(wire.PathInodeState(number, 0o40000, 1, 1, 5, 6, 7, b"", path))
        elif (
            path in tree.paths
            and all(parents)
            and not (path + b"/").startswith(new + b"/")
            and not (new + b"/").startswith(path + b"/")
            and (new in tree.paths or step == "rename")
        ):
            tree.rename(path, new, step == "exchange")
            records.append(wire.RenamedState(path, new, step == "exchange"))
    contents.apply([Transaction(1, records)])
    for path, number in tree.paths.items():
        inode = contents.inodes.get(number)
        if inode is not None:
            assert isinstance(inode, wire.PathInodeState) and inode.path == path


def test_many_renames_take_little_time() -> None:
    inodes = [
        wire.PathInodeState(number, 0o100000, 1, 1, 5, 6, 7, b"", b"dir/file %d" % number)
        for number in range(2, 5000)
    ]
    renames = [wire.RenamedState(b"dir/file 2", b"dir/other", 0) for _ in range(20000)]
    began = time.process_time()
    Contents().apply([Transaction(1, [*inodes, *renames])])
    # Each rename that looks at each inode takes more than ten times as long.
    assert time.process_time() - began < 2


def test_short_forms_are_the_same_records() -> None:
    assert wire.encode_lookups(7, 2, 4, 1) == encode(7, [wire.LookupsState(2, 4, 1)])
    assert wire.encode_handle_inode(7, *INODE) == encode(7, [INODE])
    file = OpenFileState(1, 2, NONE, os.O_RDWR, 0, 0)
    assert wire.encode_file(7, file) == encode(7, [file])
    assert wire.encode_created(7, *INODE, file) == encode(7, [INODE, file])
    assert wire.encode_released(7, 1) == encode(7, [wire.ReleasedState(1)])


@given(st.data())
def test_damaged_journal_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(encode(5, RECORDS) + encode(6, RECORDS))
    at = data.draw(st.integers(0, len(encoded) - 1))
    if data.draw(st.booleans()):
        encoded[at] ^= data.draw(st.integers(1, 255))
    else:
        del encoded[at:]
    try:
        found = list(decode(memoryview(bytes(encoded))))
    except StateError:
        return
    # The upper half of a request's number has no checksum. A journal may end after a transaction.
    assert [each.records for each in found] in ([RECORDS] * 2, [RECORDS], [])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal_or_refused(data: bytes) -> None:
    try:
        contents = Contents()
        contents.apply(decode(memoryview(data)))
    except StateError:
        return


@pytest.fixture
def table(tmp_path: Path) -> InFlight:
    """Return an empty table."""
    return InFlight(os.open(tmp_path / "in-flight", os.O_RDWR | os.O_CREAT, 0o600))


def again(table: InFlight) -> InFlight:
    """Return the table as another process sees it."""
    return InFlight(os.dup(table.fd))


def test_chains_in_flight_are_there_in_their_order(table: InFlight) -> None:
    for head in (7, 3, 5):
        table.add(2, head, head * 10)
    table.add(1, 3, 99)
    table.completing(2, 3, 12)
    table.completed(2, 3)
    table.add(2, 1, 10)
    assert again(table).chains() == [(2, 7, 70), (2, 5, 50), (1, 3, 99), (2, 1, 10)]


@pytest.mark.parametrize(("used", "left"), [(12, []), (11, [(2, 3, 30)])])
def test_used_index_says_whether_a_chain_was_completed(
    table: InFlight, used: int, left: list[tuple[int, int, int]]
) -> None:
    table.add(2, 3, 30)
    table.completing(2, 3, 12)
    other = again(table)
    other.settle(2, used)
    assert other.chains() == left
    # Later the ring may have that index for another chain.
    later = again(table)
    later.settle(2, 12)
    assert later.chains() == left


def test_more_chains_than_entries_are_noticed(table: InFlight) -> None:
    for number in range(ENTRIES + 1):
        table.add(number >> 15, number & 0x7FFF, number)
    with pytest.raises(StateError, match="more requests"):
        again(table).chains()
    table.clear()
    assert again(table).chains() == []


def test_queues_and_intent(table: InFlight) -> None:
    for queue in (0, 2, 65):
        table.has_run(queue)
    assert again(table).queues() == {0, 2, 65}
    assert again(table).intent() is None
    table.intend(5, b"first", b"second", 9)
    intent = again(table).intent()
    assert intent is not None
    assert (intent.unique, intent.first, intent.second, intent.number) == (
        5,
        b"first",
        b"second",
        9,
    )
    table.clear()
    assert again(table).intent() is None and not again(table).queues()
