# SPDX-License-Identifier: Apache-2.0
"""Blocking locks: a pending request is completed by a release, an interrupt, or the end.

No other request waits meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import MAX_PENDING, RETRY_INTERVAL, BlockingLocks
from farwatchd.fuse.filesystem import OperationDeferred
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.wire import fuse
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.fuse import InitFlag, Opcode
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.deferred_guest import DeferredGuest

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
END = (1 << 63) - 1
ROOT = 1


class LockingGuest(DeferredGuest):
    """A guest whose client takes its locks from the daemon.

    ``errors``: the errno of each completed request, by unique number.
    """

    def __init__(self, share: Path) -> None:
        loop = Loop()
        self.fs = PassthroughFs(share, ShareOptions())
        self.waits = BlockingLocks(loop.call_later)
        session = Session(self.fs, None, SessionOptions(posix_lock=True, flock=True), self.waits)
        flags = int(InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS | InitFlag.INIT_EXT)
        super().__init__(loop, session, flags)
        entry = fuse.entry_out.unpack_from(
            self.ask(Opcode.LOOKUP, ROOT, b"file\0", fuse.entry_out.size)
        )
        self.node = int(entry.nodeid)

    @property
    def errors(self) -> dict[int, int]:
        return {unique: error for unique, (error, _) in self.answers.items()}

    def open(self) -> int:
        payload = fuse.open_in.pack(flags=os.O_RDWR)
        return int(
            fuse.open_out.unpack_from(
                self.ask(Opcode.OPEN, self.node, payload, fuse.open_out.size)
            ).fh
        )

    def lock(
        self, fh: int, owner: int, kind: int, start: int = 0, end: int = END, flags: int = 0
    ) -> int:
        """SETLK; returns the errno."""
        payload = self._payload(fh, owner, kind, start, end, flags)
        return self.front_end.request(Opcode.SETLK, self.node, payload)[0]

    def wait_for_lock(
        self, fh: int, owner: int, kind: int = WRITE, flags: int = 0, unique: int = 0
    ) -> int:
        """Send SETLKW; returns its unique number."""
        return self.send(
            Opcode.SETLKW, self.node, self._payload(fh, owner, kind, 0, END, flags), unique=unique
        )

    def interrupt(self, unique: int) -> None:
        self.front_end.send_no_reply(Opcode.INTERRUPT, 0, fuse.interrupt_in.pack(unique=unique))
        self.settle()

    def unlock(self, fh: int, owner: int) -> None:
        assert self.lock(fh, owner, NONE) == 0

    def _payload(self, fh: int, owner: int, kind: int, start: int, end: int, flags: int) -> bytes:
        return fuse.lk_in.pack_values(fh, owner, start, end, kind, 1, flags, 0)

    def close(self) -> None:
        self.leave()
        self.loop.close()
        self.fs.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[LockingGuest]:
    (tmp_path / "file").write_bytes(bytes(10))
    guest = LockingGuest(tmp_path)
    yield guest
    guest.close()


def test_free_lock_is_taken_immediately(guest: LockingGuest) -> None:
    waiting = guest.wait_for_lock(guest.open(), 1)
    assert guest.errors == {waiting: 0}


@pytest.mark.parametrize("flags", [0, fuse.LK_FLOCK])
def test_unlock_completes_a_pending_lock_while_others_are_served(
    guest: LockingGuest, flags: int
) -> None:
    first, second = guest.open(), guest.open()
    assert guest.lock(first, 1, WRITE, flags=flags) == 0
    waiting = guest.wait_for_lock(second, 2, flags=flags)
    assert guest.lock(second, 2, WRITE, flags=flags) == errno.EAGAIN
    guest.ask(Opcode.GETATTR, ROOT, fuse.getattr_in.pack(), fuse.attr_out.size)
    guest.settle()
    assert guest.errors == {}
    assert guest.lock(first, 1, NONE, flags=flags) == 0
    guest.settle()
    assert guest.errors == {waiting: 0}
    assert guest.lock(first, 1, WRITE, flags=flags) == errno.EAGAIN


def test_flush_of_the_owner_completes_a_pending_lock(guest: LockingGuest) -> None:
    first = guest.open()
    guest.lock(first, 1, WRITE)
    waiting = guest.wait_for_lock(guest.open(), 2)
    guest.ask(Opcode.FLUSH, guest.node, fuse.flush_in.pack(fh=first, lock_owner=1))
    guest.settle()
    assert guest.errors == {waiting: 0}


def test_release_of_the_owner_s_file_completes_a_pending_flock(guest: LockingGuest) -> None:
    first = guest.open()
    guest.lock(first, 1, WRITE, flags=fuse.LK_FLOCK)
    waiting = guest.wait_for_lock(guest.open(), 2, flags=fuse.LK_FLOCK)
    guest.ask(Opcode.RELEASE, guest.node, fuse.release_in.pack(fh=first))
    guest.settle()
    assert guest.errors == {waiting: 0}


def test_pending_locks_are_completed_in_order(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    waiting = [guest.wait_for_lock(fh, owner) for owner in (2, 3)]
    guest.unlock(fh, 1)
    guest.settle()
    assert guest.errors == {waiting[0]: 0}
    guest.unlock(fh, 2)
    guest.settle()
    assert guest.errors == dict.fromkeys(waiting, 0)


def test_lock_of_a_host_process_is_retried_until_it_is_released(
    guest: LockingGuest, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("r+b") as other:
        fcntl.lockf(other, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = guest.wait_for_lock(guest.open(), 1, flags=fuse.LK_FLOCK)
        guest.loop.run_once(2 * RETRY_INTERVAL)
        guest.settle()
        assert guest.errors == {}
    guest.settle_until(lambda: guest.errors == {waiting: 0}, 2 * RETRY_INTERVAL)


def test_interrupt_completes_a_pending_lock_with_eintr(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    kept, ended = guest.wait_for_lock(fh, 2), guest.wait_for_lock(fh, 3)
    guest.interrupt(ended)
    assert guest.errors == {ended: errno.EINTR}
    guest.unlock(fh, 1)
    guest.settle()
    assert guest.errors == {ended: errno.EINTR, kept: 0}
    # The interrupted one has no lock.
    assert len(guest.fs.share.locks) == 1


def test_interrupt_before_its_request_completes_it_with_eintr(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    guest.interrupt(4711)
    guest.wait_for_lock(fh, 2, unique=4711)
    assert guest.errors == {4711: errno.EINTR}


def test_interrupts_of_unknown_requests_are_forgotten(guest: LockingGuest) -> None:
    for unique in range(2, 200, 2):
        guest.interrupt(unique)
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    guest.wait_for_lock(fh, 2, unique=2)
    assert guest.errors == {}


def test_too_many_pending_locks_are_enolck(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    for owner in range(2, MAX_PENDING + 2):
        guest.wait_for_lock(fh, owner)
    assert guest.errors == {}
    refused = guest.wait_for_lock(fh, 1000)
    assert guest.errors == {refused: errno.ENOLCK}
    # There is room for what ends the waits.
    guest.unlock(fh, 1)
    guest.settle()
    assert len(guest.errors) == 2


@pytest.mark.parametrize("while_stopped", [True, False])
def test_blocking_lock_outlives_a_pause_of_the_vm(guest: LockingGuest, while_stopped: bool) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    pending = guest.wait_for_lock(fh, 2)
    later = guest.send(Opcode.GETATTR, ROOT, fuse.getattr_in.pack(), fuse.attr_out.size)
    assert guest.errors == {later: 0}
    guest.front_end.stop_ring(1)
    if while_stopped:
        # As a process of the host does, or the guest by another queue.
        guest.fs.unlock_owner(guest.node, 1)
        guest.loop.run_once(2 * RETRY_INTERVAL)
    guest.settle()
    assert pending not in guest.errors
    guest.front_end.start_ring(1)
    guest.settle()
    if not while_stopped:
        assert pending not in guest.errors
        guest.unlock(fh, 1)
    guest.settle_until(lambda: pending in guest.errors, 2 * RETRY_INTERVAL)
    assert guest.errors == {later: 0, pending: 0}
    guest.ask(Opcode.GETATTR, ROOT, fuse.getattr_in.pack(), fuse.attr_out.size)


def test_reset_of_the_device_forgets_pending_locks(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    guest.wait_for_lock(fh, 2)
    guest.front_end.reboot()
    guest.places.clear()
    guest.settle()
    assert guest.errors == {}
    assert len(guest.waits) == 0


@pytest.mark.parametrize("opcode", [Opcode.INIT, Opcode.DESTROY])
def test_end_of_the_session_completes_pending_locks_with_eintr(
    guest: LockingGuest, opcode: Opcode
) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    waiting = guest.wait_for_lock(fh, 2)
    sent = guest.send(opcode, guest.node, fuse.init_in.pack(major=7, minor=41), fuse.init_out.size)
    assert guest.errors == {waiting: errno.EINTR, sent: 0}
    assert len(guest.waits) == len(guest.fs.share.locks) == 0


def test_release_of_the_file_completes_a_pending_lock_with_ebadf(guest: LockingGuest) -> None:
    first, second = guest.open(), guest.open()
    guest.lock(first, 1, WRITE)
    waiting = guest.wait_for_lock(second, 2)
    guest.ask(Opcode.RELEASE, guest.node, fuse.release_in.pack(fh=second))
    guest.settle()
    assert guest.errors == {waiting: errno.EBADF}


def test_pending_lock_outlives_a_change_of_memory_regions(guest: LockingGuest) -> None:
    fh = guest.open()
    guest.lock(fh, 1, WRITE)
    waiting = guest.wait_for_lock(fh, 2)
    more = os.memfd_create("more")
    os.ftruncate(more, 4096)
    fields = {"guest_addr": 1 << 40, "size": 4096, "user_addr": 1 << 41, "mmap_offset": 0}
    guest.front_end.set(Request.ADD_MEM_REG, wire.single_region.pack(**fields), [more])
    os.close(more)
    for _ in range(5):
        guest.ask(Opcode.GETATTR, ROOT, fuse.getattr_in.pack(), fuse.attr_out.size)
    guest.unlock(fh, 1)
    guest.settle()
    assert guest.errors == {waiting: 0}
    guest.ask(Opcode.GETATTR, ROOT, fuse.getattr_in.pack(), fuse.attr_out.size)


@pytest.mark.parametrize(
    ("kind", "start", "end", "flags"),
    [(3, 0, END, 0), (WRITE, 5, 4, 0), (WRITE, 0, END + 1, 0), (WRITE, 0, END, 2)],
)
def test_malformed_locks_are_refused(
    guest: LockingGuest, kind: int, start: int, end: int, flags: int
) -> None:
    assert guest.lock(guest.open(), 1, kind, start, end, flags) == errno.EINVAL


def test_getlk_returns_the_owner_of_a_lock(guest: LockingGuest) -> None:
    fh = guest.open()

    def holder(owner: int) -> tuple[int, int, int, int]:
        payload = fuse.lk_in.pack_values(fh, owner, 0, END, WRITE, 2, 0, 0)
        found = fuse.lk_out.unpack_from(
            guest.ask(Opcode.GETLK, guest.node, payload, fuse.lk_out.size)
        )
        return found.lk_start, found.lk_end, found.lk_type, found.lk_pid

    guest.lock(fh, 1, READ, 3, 7)
    assert holder(2) == (3, 7, READ, 1)
    assert holder(1)[2] == NONE


class LockServer:
    """What a file server is asked, until ``answer``. ``taken``: how often the lock was taken."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.asked: list[Callable[[Any], None]] = []
        self.locked = True
        self.taken = 0
        self.pending = BlockingLocks(lambda _seconds, callback: self.timers.append(callback))

    def attempt(self) -> None:
        raise OperationDeferred(lambda: None, self.take)

    def take(self, _: object) -> None:
        if self.locked:
            raise BlockingIOError
        self.taken += 1

    def run_then(self, _call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.asked.append(then)

    def add(self) -> dict[str, int]:
        """Add a request; return the errno of its reply, once there is one."""
        replied: dict[str, int] = {}
        first = OperationDeferred(lambda: None, self.take)
        reply = self.pending.add(5, self.attempt, first, self.run_then)
        reply.hold(
            lambda header, _: replied.update(error=-fuse.out_header.unpack_from(header).error)
        )
        self.turn()
        return replied

    def turn(self) -> None:
        timers, self.timers = self.timers, []
        for callback in timers:
            callback()

    def answer(self) -> None:
        (then,) = self.asked
        self.asked.clear()
        then(None)


def test_server_is_asked_for_a_pending_lock_once_at_a_time() -> None:
    server = LockServer()
    replied = server.add()
    for _ in range(3):
        server.turn()
    assert len(server.asked) == 1
    server.answer()
    assert not replied
    server.turn()
    server.locked = False
    server.answer()
    assert (replied, server.taken, len(server.pending)) == ({"error": 0}, 1, 0)


def test_lock_that_was_interrupted_is_not_taken_with_the_answer() -> None:
    server = LockServer()
    replied = server.add()
    server.pending.interrupt(5)
    server.locked = False
    server.answer()
    assert (replied, server.taken) == ({"error": errno.EINTR}, 0)


def test_locks_that_are_interrupted_again_and_again_ask_a_server_so_often_only() -> None:
    """Each question has a descriptor, until the server answers."""
    server = LockServer()
    for _ in range(MAX_PENDING):
        server.add()
        server.pending.interrupt(5)
    with pytest.raises(OSError, match="wait for a server") as refused:
        server.add()
    assert refused.value.errno == errno.ENOLCK
    assert len(server.asked) == MAX_PENDING
    for then in server.asked[:2]:
        then(None)
    server.add()
    server.add()
