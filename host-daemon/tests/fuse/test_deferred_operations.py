# SPDX-License-Identifier: Apache-2.0
"""Operations that have to wait, for the holder of a lease or a file server.

Their replies are those of operations that need not wait, with threads and without.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.filesystem import DirEntry, Lock, OperationDeferred
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.fuse.thread_pool import ThreadPool
from farwatchd.iovec import scatter
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.virtqueue import Chain
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import Opcode, SetattrValid
from tests.support.fake_fs import FakeFs, FakeWatches
from tests.support.fuse_client import OFFER, Client

LIMIT = 10.0
#: The operations that may raise ``OperationDeferred``.
WAITING = frozenset(
    (
        "create",
        "flock",
        "flush",
        "getattr",
        "getlk",
        "getxattr",
        "link",
        "listxattr",
        "lookup",
        "lseek",
        "mkdir",
        "mknod",
        "open",
        "opendir",
        "readdir",
        "readlink",
        "removexattr",
        "rename",
        "rmdir",
        "setattr",
        "setlk",
        "setxattr",
        "statfs",
        "statx",
        "symlink",
        "tmpfile",
        "unlink",
        "unlock_owner",
        "watch_target",
    )
)
LOCK = Lock(fcntl.F_WRLCK, 0, 10, 7)


class WaitingFs:
    """A file system whose operations wait twice, and then do what ``FakeFs`` does."""

    def __init__(self, fs: FakeFs) -> None:
        self._fs = fs
        self.waiting = WAITING

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._fs, name)
        return partial(wait_twice, operation) if name in self.waiting else operation


def wait_twice(operation: Callable[..., Any], *args: Any, **fields: Any) -> None:
    def complete(first: str) -> None:
        assert first == "first answer"
        raise OperationDeferred(lambda: "second answer", complete_again)

    def complete_again(second: str) -> Any:
        assert second == "second answer"
        return operation(*args, **fields)

    raise OperationDeferred(lambda: "first answer", complete)


class CompletingSession(Session):
    """A session whose deferred replies are waited for, as a guest does."""

    def __init__(self, fs: Any, threads: int) -> None:
        self.threads = threads
        self.loop = Loop()
        self.deferred = 0
        super().__init__(
            fs,
            FakeWatches(),
            SessionOptions(posix_lock=True, flock=True),
            BlockingLocks(self.loop.call_later),
            ThreadPool(threads, self.loop.call_from_thread),
        )

    def handle(self, chain: Chain) -> int:
        written = super().handle(chain)
        if not isinstance(written, DeferredReply):
            return written
        self.deferred += 1
        replies: list[bytes] = []
        written.hold(lambda header, payload: replies.append(header + bytes(payload)))
        while not replies:
            assert self.loop.run_once(LIMIT), "the operation does not end"
        scatter(chain.writable, 0, replies[0])
        return len(replies[0])

    def close(self) -> None:
        assert self._pool.close(LIMIT)
        self.loop.close()


@pytest.fixture
def fs() -> FakeFs:
    fs = FakeFs()
    fs.entries = [DirEntry(b"name", 5, 8, 1), DirEntry(b"..", 6, 4, 2)]
    fs.values = {b"user.a": b"value"}
    return fs


@pytest.fixture
def waiting(fs: FakeFs) -> WaitingFs:
    return WaitingFs(fs)


@pytest.fixture(params=[0, 2], ids=["without threads", "with threads"])
def session(request: pytest.FixtureRequest, waiting: WaitingFs) -> Iterator[CompletingSession]:
    session = CompletingSession(waiting, request.param)
    yield session
    session.close()


@pytest.fixture
def client(session: CompletingSession) -> Client:
    client = Client(session)
    client.init(OFFER)
    return client


def lock(client: Client, opcode: Opcode, flags: int = 0) -> bytes:
    args = fuse.lk_in.pack(
        fh=9, owner=3, lk_end=10, lk_type=fcntl.F_WRLCK, lk_pid=7, lk_flags=flags
    )
    return client.call(opcode, 42, args, fuse.lk_out.size)


CALLS: dict[str, Callable[[Client], object]] = {
    "lookup": lambda c: c.lookup(1, b"name"),
    "getattr": lambda c: c.getattr(3, 9),
    "setattr": lambda c: c.setattr(3, SetattrValid.MODE, mode=0o600),
    "statx": lambda c: c.statx(3),
    "statfs": lambda c: c.statfs(),
    "readlink": lambda c: c.readlink(3),
    "symlink": lambda c: c.symlink(1, b"l", b"to"),
    "mknod": lambda c: c.mknod(1, b"n", 0o100600),
    "mkdir": lambda c: c.mkdir(1, b"d"),
    "unlink": lambda c: c.unlink(1, b"n"),
    "rmdir": lambda c: c.rmdir(1, b"d"),
    "rename": lambda c: c.rename(1, b"a", 2, b"b"),
    "rename2": lambda c: c.rename(1, b"a", 2, b"b", 1),
    "link": lambda c: c.link(42, 2, b"b"),
    "open": lambda c: c.open(42, os.O_RDWR),
    "create": lambda c: c.create(1, b"n"),
    "tmpfile": lambda c: c.tmpfile(1),
    "opendir": lambda c: c.opendir(1),
    "readdir": lambda c: c.readdir(1, 9),
    "lseek": lambda c: c.lseek(42, 9, 1, os.SEEK_DATA),
    "flush": lambda c: c.flush(42, 9),
    "setxattr": lambda c: c.setxattr(42, b"user.a", b"v"),
    "getxattr": lambda c: c.getxattr(42, b"user.a"),
    "size of getxattr": lambda c: c.getxattr(42, b"user.a", 0),
    "listxattr": lambda c: c.listxattr(42),
    "removexattr": lambda c: c.removexattr(42, b"user.a"),
    "getlk": lambda c: lock(c, Opcode.GETLK),
    "setlk": lambda c: lock(c, Opcode.SETLK),
    "setlkw": lambda c: lock(c, Opcode.SETLKW),
    "flock": lambda c: lock(c, Opcode.SETLK, fuse.LK_FLOCK),
    "fsnotify": lambda c: c.fsnotify(42, Event.CREATE, generation=7),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_reply_is_that_of_an_operation_that_need_not_wait(
    client: Client, session: CompletingSession, fs: FakeFs, call: Callable[[Client], object]
) -> None:
    fs.lock = LOCK
    immediate = FakeFs()
    immediate.entries, immediate.values, immediate.lock = fs.entries, fs.values, fs.lock
    other = CompletingSession(immediate, 0)
    expected = Client(other)
    expected.init(OFFER)
    assert call(client) == call(expected)
    assert fs.calls == immediate.calls
    assert session.deferred == 1 or not session.threads
    assert other.deferred == 0
    other.close()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_error_after_waiting_reaches_the_guest(
    client: Client, fs: FakeFs, call: Callable[[Client], object]
) -> None:
    fs.error = OSError(errno.EDQUOT, "quota")
    with pytest.raises(OSError) as caught:
        call(client)
    assert caught.value.errno == errno.EDQUOT


def test_name_that_is_not_there_is_enoent_after_waiting(client: Client, fs: FakeFs) -> None:
    fs.vanished.add(b"name")
    with pytest.raises(FileNotFoundError):
        client.lookup(1, b"name")


def test_target_without_room_is_refused_after_waiting(client: Client) -> None:
    with pytest.raises(OSError) as caught:
        client.call(Opcode.READLINK, 42, room=5)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("operation", ["lookup", "readdir"])
def test_names_whose_lookup_would_wait_are_listed_without_inodes(
    client: Client, waiting: WaitingFs, operation: str
) -> None:
    waiting.waiting = frozenset({operation})
    listed = client.readdir(1, 9, plus=True)
    assert [(each.name, each.entry) for each in listed] == [(b"name", None), (b"..", None)]


def test_flush_releases_the_locks_of_the_owner_first(client: Client, fs: FakeFs) -> None:
    client.call(Opcode.FLUSH, 42, fuse.flush_in.pack(fh=9, lock_owner=3), 0)
    assert fs.unlocked == [(42, 3)]
    assert fs.calls[-1] == ("flush", 42, 9)
