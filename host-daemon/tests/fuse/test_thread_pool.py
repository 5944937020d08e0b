# SPDX-License-Identifier: Apache-2.0
"""Threads run the tasks that wait for a disk.

Other requests are served meanwhile, and nothing is lost when the guest leaves.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.filesystem import OperationDeferred
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import CANCEL_LIMIT, Session
from farwatchd.fuse.thread_pool import ThreadPool, _Buffers
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtio_fs.device import DRAIN_LIMIT
from farwatchd.wire import fuse
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.vhost_user import FrontEndRequest as Request
from tests.support.deferred_guest import DeferredGuest
from tests.support.driver import Buffer
from tests.support.fake_fs import FakeFs

THREADS = 2
LIMIT = 10.0
NODE, FH = 42, 9
FSYNC = fuse.fsync_in.pack(fh=FH)


class ThreadedGuest(DeferredGuest):
    """A guest whose requests are done by threads where they take long."""

    def __init__(self, fs: FakeFs | PassthroughFs, threads: int = THREADS) -> None:
        loop = Loop()
        self.pool = ThreadPool(threads, loop.call_from_thread)
        super().__init__(loop, Session(fs, None, SessionOptions(), pool=self.pool))

    def settle_until(self, done: Callable[[], bool], patience: float = LIMIT) -> None:
        super().settle_until(done, patience)

    def close(self) -> None:
        self.leave()
        self.pool.close(LIMIT)
        self.loop.close()


@pytest.fixture
def fs() -> Iterator[FakeFs]:
    """Yield a file system whose tasks block; they are released before the guest ends."""
    fs = FakeFs()
    fs.hold = threading.Event()
    yield fs
    fs.hold.set()


@pytest.fixture
def guest(fs: FakeFs) -> Iterator[ThreadedGuest]:
    guest = ThreadedGuest(fs)
    yield guest
    assert fs.hold is not None
    fs.hold.set()
    guest.close()


def let_go(fs: FakeFs) -> None:
    assert fs.hold is not None
    fs.hold.set()


#: A request that waits for the disk: opcode, arguments, room for its reply, the reply.
WAITING = [
    (Opcode.FSYNC, FSYNC, 0, b""),
    (Opcode.FSYNCDIR, FSYNC, 0, b""),
    (Opcode.SYNCFS, bytes(8), 0, b""),
    (Opcode.FALLOCATE, fuse.fallocate_in.pack(fh=FH, length=1), 0, b""),
    (
        Opcode.COPY_FILE_RANGE,
        fuse.copy_file_range_in.pack(fh_in=FH, nodeid_out=43, fh_out=FH, len=700),
        fuse.write_out.size,
        fuse.write_out.pack(size=700),
    ),
    (Opcode.READ, fuse.read_in.pack(fh=FH, size=100), 100, b"content"),
    (
        Opcode.WRITE,
        fuse.write_in.pack(fh=FH, size=5) + b"12345",
        fuse.write_out.size,
        fuse.write_out.pack(size=5),
    ),
]


@pytest.mark.parametrize(
    ("opcode", "payload", "room", "reply"), WAITING, ids=[str(row[0].name) for row in WAITING]
)
def test_other_requests_are_served_while_a_task_runs(
    guest: ThreadedGuest, fs: FakeFs, opcode: Opcode, payload: bytes, room: int, reply: bytes
) -> None:
    fs.content = b"content"
    waiting = guest.send(opcode, NODE, payload, room)
    guest.ask(Opcode.GETATTR, NODE, fuse.getattr_in.pack(), fuse.attr_out.size)
    assert guest.answers == {}
    let_go(fs)
    guest.settle_until(lambda: waiting in guest.answers)
    assert guest.answers == {waiting: (0, reply)}
    if opcode is Opcode.WRITE:
        assert fs.written == b"12345"


def test_tasks_beyond_the_number_of_threads_are_queued(guest: ThreadedGuest, fs: FakeFs) -> None:
    waiting = [guest.send(Opcode.FSYNC, NODE, FSYNC) for _ in range(3 * THREADS)]
    assert guest.answers == {}
    let_go(fs)
    guest.settle_until(lambda: len(guest.answers) == len(waiting))
    assert guest.answers == dict.fromkeys(waiting, (0, b""))
    assert len(guest.pool) == 0


def test_error_of_a_task_is_the_reply(guest: ThreadedGuest, fs: FakeFs) -> None:
    fs.task_error = OSError(errno.EDQUOT, "no room left")
    waiting = guest.send(Opcode.FALLOCATE, NODE, fuse.fallocate_in.pack(fh=FH, length=1))
    let_go(fs)
    guest.settle_until(lambda: waiting in guest.answers)
    assert guest.answers == {waiting: (errno.EDQUOT, b"")}


def test_bug_in_a_task_is_logged_and_the_reply_is_eio(
    guest: ThreadedGuest, fs: FakeFs, caplog: pytest.LogCaptureFixture
) -> None:
    fs.task_error = ZeroDivisionError("oh")
    with caplog.at_level(logging.ERROR):
        waiting = guest.send(Opcode.FSYNC, NODE, FSYNC)
        let_go(fs)
        guest.settle_until(lambda: waiting in guest.answers)
    assert guest.answers == {waiting: (errno.EIO, b"")}
    assert "bug: a task failed" in caplog.text


def test_refused_request_needs_no_thread(guest: ThreadedGuest, fs: FakeFs) -> None:
    fs.error = OSError(errno.EBADF, "not open")
    refused = guest.send(Opcode.FSYNC, NODE, FSYNC)
    assert guest.answers == {refused: (errno.EBADF, b"")}


def test_stop_of_a_ring_waits_for_running_tasks(guest: ThreadedGuest, fs: FakeFs) -> None:
    waiting = [guest.send(Opcode.FSYNC, NODE, FSYNC) for _ in range(2 * THREADS)]
    timer = threading.Timer(0.05, let_go, [fs])
    timer.start()
    guest.front_end.stop_ring(1)
    timer.join(LIMIT)
    guest.settle()
    assert guest.answers == dict.fromkeys(waiting, (0, b""))


@pytest.mark.parametrize("opcode", [Opcode.INIT, Opcode.DESTROY])
def test_end_of_the_session_closes_files_after_running_tasks(
    guest: ThreadedGuest, fs: FakeFs, opcode: Opcode
) -> None:
    waiting = guest.send(Opcode.FSYNC, NODE, FSYNC)
    timer = threading.Timer(0.05, let_go, [fs])
    timer.start()
    sent = guest.send(opcode, 0, fuse.init_in.pack(major=7, minor=41), fuse.init_out.size)
    timer.join(LIMIT)
    guest.settle()
    assert guest.answers[waiting] == (0, b"")
    assert guest.answers[sent][0] == 0
    assert len(guest.pool) == 0
    assert fs.calls[-1] == ("reset",)
    assert fs.tasks_done_at_reset == 1


def test_disconnect_waits_for_running_tasks(guest: ThreadedGuest, fs: FakeFs) -> None:
    guest.send(Opcode.FSYNC, NODE, FSYNC)
    timer = threading.Timer(0.05, let_go, [fs])
    timer.start()
    guest.front_end.sock.close()
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the daemon does not see that the front-end has gone"
    timer.join(LIMIT)
    assert fs.calls[-1] == ("reset",)


# Limits: what the host does not finish keeps nobody waiting for long.


def duration(operation: Callable[[], object]) -> float:
    """Return the seconds that an operation takes."""
    began = time.monotonic()
    operation()
    return time.monotonic() - began


def test_ring_that_stops_leaves_a_hung_task_in_flight(
    guest: ThreadedGuest, fs: FakeFs, caplog: pytest.LogCaptureFixture
) -> None:
    hung = [guest.send(Opcode.FSYNC, NODE, FSYNC) for _ in range(2 * THREADS)]
    assert duration(lambda: guest.front_end.stop_ring(1)) < 2 * DRAIN_LIMIT
    assert "queue 1 stops with requests that wait" in caplog.text
    # Once for all queues, and not again.
    assert duration(lambda: [guest.front_end.stop_ring(index) for index in (0, 1)]) < DRAIN_LIMIT
    let_go(fs)
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the tasks do not end"
    assert guest.front_end.requests().queue.used_count() == 0
    for index in (0, 1):
        guest.front_end.start_ring(index)
    guest.settle()
    assert guest.answers == dict.fromkeys(hung, (0, b""))
    guest.ask(Opcode.GETATTR, NODE, fuse.getattr_in.pack(), fuse.attr_out.size)


def test_data_that_is_read_while_its_ring_is_stopped_is_not_kept(
    guest: ThreadedGuest, fs: FakeFs
) -> None:
    fs.content = b"before"
    read = [
        guest.send(Opcode.READ, NODE, fuse.read_in.pack(fh=FH, size=100), 100)
        for _ in range(4 * THREADS)
    ]
    guest.front_end.stop_ring(1)
    let_go(fs)
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the tasks do not end"
    fs.content = b"after"
    guest.front_end.start_ring(1)
    guest.settle_until(lambda: len(guest.answers) == len(read))
    assert guest.answers == dict.fromkeys(read, (0, b"after"))


@pytest.mark.parametrize("opcode", [Opcode.INIT, Opcode.DESTROY])
def test_end_of_the_session_cancels_tasks_that_have_not_begun(
    guest: ThreadedGuest, fs: FakeFs, opcode: Opcode
) -> None:
    tasks = [guest.send(Opcode.FSYNC, NODE, FSYNC) for _ in range(2 * THREADS)]
    payload = fuse.init_in.pack(major=7, minor=41)
    end: list[int] = []
    assert (
        duration(lambda: end.append(guest.send(opcode, 0, payload, fuse.init_out.size)))
        < 2 * CANCEL_LIMIT
    )
    assert guest.answers[end[0]][0] == 0
    cancelled = {task for task in tasks if task in guest.answers}
    assert {guest.answers[task][0] for task in cancelled} == {errno.EINTR}
    # The others may use their requests' memory: it stays theirs.
    assert len(cancelled) == THREADS
    let_go(fs)
    guest.settle_until(lambda: len(guest.answers) == len(tasks) + 1)
    assert {guest.answers[task][0] for task in tasks if task not in cancelled} == {0}
    assert fs.tasks_done == THREADS


def test_reset_of_the_device_forgets_hung_tasks(guest: ThreadedGuest, fs: FakeFs) -> None:
    for _ in range(2 * THREADS):
        guest.send(Opcode.FSYNC, NODE, FSYNC)
    assert duration(guest.front_end.reboot) < 2 * (DRAIN_LIMIT + CANCEL_LIMIT)
    guest.places.clear()
    let_go(fs)
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the tasks do not end"
    guest.settle()
    assert guest.answers == {}
    assert guest.front_end.requests().queue.used_count() == 0


def test_front_end_that_leaves_waits_for_no_hung_task(guest: ThreadedGuest, fs: FakeFs) -> None:
    for _ in range(2 * THREADS):
        guest.send(Opcode.FSYNC, NODE, FSYNC)
    guest.front_end.sock.close()

    def left() -> None:
        while ("reset",) not in fs.calls[-1:]:
            assert guest.loop.run_once(LIMIT), "the daemon does not see that the front-end left"

    assert duration(left) < 2 * CANCEL_LIMIT
    assert len(guest.pool) == THREADS


def test_close_of_the_pool_returns_whether_threads_have_ended(
    guest: ThreadedGuest, fs: FakeFs
) -> None:
    for _ in range(2 * THREADS):
        guest.send(Opcode.FSYNC, NODE, FSYNC)
    assert not guest.pool.close(0)
    let_go(fs)
    assert guest.pool.close(LIMIT)


# Guest memory: no thread uses it, so that a task may outlive its guest.

PATTERN = b"\xa5"


def overwrite(guest: ThreadedGuest, place: Buffer) -> bytes:
    """Give the memory at ``place`` another use; return what it holds then."""
    content = PATTERN * place.length
    guest.front_end.ram.write(place.addr, content)
    return content


def finish_tasks(guest: ThreadedGuest, fs: FakeFs) -> None:
    let_go(fs)
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the tasks do not end"
    wait_for(lambda: fs.tasks_done >= 1, "a task")
    guest.settle()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.001)


def wait_until_begun(fs: FakeFs, tasks: int) -> None:
    wait_for(lambda: fs.tasks_begun == tasks, f"the start of {tasks} tasks")


def reboot(guest: ThreadedGuest) -> None:
    guest.front_end.reboot()


def disconnect(guest: ThreadedGuest) -> None:
    guest.front_end.sock.close()
    while guest.server.connected:
        assert guest.loop.run_once(LIMIT), "the daemon does not see that the front-end left"


@pytest.mark.parametrize("end", [reboot, disconnect])
def test_hung_read_does_not_write_to_memory_after_a_reset(
    guest: ThreadedGuest, fs: FakeFs, end: Callable[[ThreadedGuest], None]
) -> None:
    fs.content = b"content"
    guest.send(Opcode.READ, NODE, fuse.read_in.pack(fh=FH, size=100), 100)
    ((_, place),) = guest.places.values()
    end(guest)
    guest.places.clear()
    content = overwrite(guest, place)
    finish_tasks(guest, fs)
    assert guest.front_end.ram.read(place.addr, place.length) == content


@pytest.mark.parametrize("end", [reboot, disconnect])
def test_hung_write_does_not_read_from_memory_after_a_reset(
    guest: ThreadedGuest, fs: FakeFs, end: Callable[[ThreadedGuest], None]
) -> None:
    payload = fuse.write_in.pack(fh=FH, size=5) + b"12345"
    guest.send(Opcode.WRITE, NODE, payload, fuse.write_out.size)
    end(guest)
    guest.places.clear()
    overwrite(guest, guest.request)
    finish_tasks(guest, fs)
    assert fs.written == b"12345"


def test_queued_write_does_not_read_from_memory_after_its_ring_has_stopped(
    guest: ThreadedGuest, fs: FakeFs
) -> None:
    head = fuse.write_in.pack(fh=FH, size=5)
    for _ in range(4 * THREADS):
        guest.send(Opcode.WRITE, NODE, head + b"first", fuse.write_out.size)
    guest.send(Opcode.WRITE, NODE, head + b"12345", fuse.write_out.size)
    guest.front_end.stop_ring(1)
    overwrite(guest, guest.request)
    finish_tasks(guest, fs)
    assert fs.writes.count(b"12345") == 1


def test_hung_writes_of_guests_that_left_are_not_in_the_way_of_the_next(
    guest: ThreadedGuest, fs: FakeFs
) -> None:
    payload = fuse.write_in.pack(fh=FH, size=5) + b"12345"
    for number in (1, 2, 3):
        for _ in range(2 * THREADS):
            guest.send(Opcode.WRITE, NODE, payload, fuse.write_out.size)
        wait_until_begun(fs, number * THREADS)
        reboot(guest)
        guest.places.clear()
        guest.send(Opcode.INIT, 0, fuse.init_in.pack(major=7, minor=41), fuse.init_out.size)
    guest.send(Opcode.WRITE, NODE, payload, fuse.write_out.size)
    wait_until_begun(fs, 3 * THREADS + 1)


def test_queued_writes_have_no_copies_but_the_next_ones(guest: ThreadedGuest, fs: FakeFs) -> None:
    payload = fuse.write_in.pack(fh=FH, size=5) + b"12345"
    sent = [guest.send(Opcode.WRITE, NODE, payload, fuse.write_out.size) for _ in range(20)]
    # The driver may change the data until the request is served.
    overwritten = fuse.write_in.size + fuse.in_header.size
    guest.front_end.ram.write(guest.request.addr + overwritten, b"54321")
    let_go(fs)
    guest.settle_until(lambda: len(guest.answers) == len(sent))
    # The threads end in any order.
    assert sorted(fs.writes) == [b"12345"] * (len(sent) - 1) + [b"54321"]


def test_queued_reads_have_no_memory_but_the_next_ones(
    guest: ThreadedGuest, fs: FakeFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    get = _Buffers.get

    def counted(buffers: _Buffers, size: int) -> memoryview:
        sizes.append(size)
        return get(buffers, size)

    monkeypatch.setattr(_Buffers, "get", counted)
    fs.content = b"content"
    payload = fuse.read_in.pack(fh=FH, size=100)
    sent = [guest.send(Opcode.READ, NODE, payload, 100) for _ in range(20)]
    let_go(fs)
    # The threads go on while the loop is busy.
    begun = [task.future for task in guest.pool._tasks.values() if task.future is not None]
    assert not wait(begun, LIMIT).not_done
    assert len(sizes) == 2 * THREADS
    guest.settle_until(lambda: len(guest.answers) == len(sent))
    assert guest.answers == dict.fromkeys(sent, (0, b"content"))


@pytest.mark.parametrize("end", [reboot, disconnect])
def test_hung_operation_that_would_wait_again_ends_when_its_guest_has_left(
    guest: ThreadedGuest,
    fs: FakeFs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[ThreadedGuest], None],
) -> None:
    hung = fs.fsync(NODE, FH, datasync=False)

    def wait_again(_: int) -> None:
        raise OperationDeferred(lambda: 0, wait_again)

    def wait(*_: object) -> None:
        raise OperationDeferred(hung, wait_again)

    monkeypatch.setattr(fs, "open", wait)
    guest.send(Opcode.OPEN, NODE, fuse.open_in.pack(), fuse.open_out.size)
    end(guest)
    guest.places.clear()
    finish_tasks(guest, fs)
    assert "bug: " not in caplog.text


@dataclass(frozen=True)
class Hotplug:
    """Memory that can be unplugged, with the buffer of a reply in it."""

    region: bytes
    memory: int
    place: Buffer


@pytest.fixture
def hotplug(guest: ThreadedGuest) -> Iterator[Hotplug]:
    more = os.memfd_create("more")
    os.ftruncate(more, 4096)
    region = wire.single_region.pack(guest_addr=1 << 40, size=4096, user_addr=1 << 41)
    guest.front_end.set(Request.ADD_MEM_REG, region, [more])
    yield Hotplug(region, more, Buffer(1 << 40, fuse.out_header.size + 100))
    os.close(more)


def test_memory_region_is_removed_though_a_task_hangs(
    guest: ThreadedGuest, fs: FakeFs, hotplug: Hotplug
) -> None:
    fs.content = b"content"
    guest.send(Opcode.READ, NODE, fuse.read_in.pack(fh=FH, size=100), answer=hotplug.place)
    assert duration(lambda: guest.front_end.set(Request.REM_MEM_REG, hotplug.region)) < DRAIN_LIMIT
    guest.places.clear()
    content = PATTERN * 4096
    os.pwrite(hotplug.memory, content, 0)
    finish_tasks(guest, fs)
    assert os.pread(hotplug.memory, 4096, 0) == content
    guest.ask(Opcode.GETATTR, NODE, fuse.getattr_in.pack(), fuse.attr_out.size)


def test_reply_of_a_task_goes_to_the_region_that_has_its_memory_then(
    guest: ThreadedGuest, fs: FakeFs, hotplug: Hotplug
) -> None:
    fs.content = b"content"
    read = guest.send(Opcode.READ, NODE, fuse.read_in.pack(fh=FH, size=100), answer=hotplug.place)
    guest.places.clear()
    guest.front_end.set(Request.REM_MEM_REG, hotplug.region)
    other = os.memfd_create("other")
    os.ftruncate(other, 4096)
    guest.front_end.set(Request.ADD_MEM_REG, hotplug.region, [other])
    let_go(fs)
    while len(guest.pool):
        assert guest.loop.run_once(LIMIT), "the task does not end"
    reply = os.pread(other, 4096, 0)
    os.close(other)
    header = fuse.out_header.unpack_from(reply)
    assert (header.unique, header.error) == (read, 0)
    assert reply[fuse.out_header.size : header.len] == b"content"
    assert not any(os.pread(hotplug.memory, 4096, 0))


def test_pool_without_threads_runs_tasks_immediately() -> None:
    before = threading.active_count()
    guest = ThreadedGuest(FakeFs(), threads=0)
    done = guest.send(Opcode.FSYNC, NODE, FSYNC)
    assert guest.answers == {done: (0, b"")}
    assert threading.active_count() == before
    guest.close()


def test_write_without_memory_for_its_data_fails_alone(
    guest: ThreadedGuest, fs: FakeFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = fuse.write_in.pack(fh=FH, size=5) + b"12345"

    def send(count: int) -> list[int]:
        return [guest.send(Opcode.WRITE, NODE, payload, fuse.write_out.size) for _ in range(count)]

    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    # As many as have a copy of their data, and some that wait for one.
    copied, queued = send(2 * THREADS), send(3)
    monkeypatch.setattr("farwatchd.fuse.thread_pool._Buffers.get", no_memory)
    let_go(fs)
    guest.settle_until(lambda: len(guest.answers) == len(copied + queued))
    (refused,) = send(1)
    monkeypatch.undo()
    (later,) = send(1)
    guest.settle_until(lambda: later in guest.answers)
    assert {
        unique: error for unique, (error, _) in guest.answers.items() if error
    } == dict.fromkeys([*queued, refused], errno.ENOMEM)
    assert fs.writes == [b"12345"] * (len(copied) + 1)


# What has no reply


def test_pool_without_threads_runs_what_has_no_reply_immediately() -> None:
    pool = ThreadPool()
    pool.start()
    done: list[int] = []
    pool.run_aside(lambda: done.append(1))
    pool.run_then(lambda: 2, done.append)
    assert done == [1, 2]
    assert pool.settle(0)
    assert pool.close(0)


@pytest.fixture
def aside() -> Iterator[tuple[Loop, ThreadPool]]:
    loop = Loop()
    pool = ThreadPool(1, loop.call_from_thread)
    yield loop, pool
    assert pool.close(LIMIT)
    loop.close()


def test_what_has_no_reply_is_settled_with_the_tasks(aside: tuple[Loop, ThreadPool]) -> None:
    _, pool = aside
    hold = threading.Event()
    pool.run_aside(lambda: check(hold.wait(LIMIT)))
    assert not pool.settle(0.01)
    hold.set()
    assert pool.settle(LIMIT)


def check(happened: bool) -> None:
    assert happened


def test_error_of_what_has_no_reply_is_logged(
    aside: tuple[Loop, ThreadPool], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "the server has gone")

    _, pool = aside
    with caplog.at_level(logging.DEBUG):
        pool.run_aside(fail)
        assert pool.settle(LIMIT)
    assert "a task without a reply: the server has gone" in caplog.text


def test_result_of_a_call_is_used_by_the_loop(aside: tuple[Loop, ThreadPool]) -> None:
    loop, pool = aside
    threads: list[int] = []
    pool.run_then(
        threading.get_ident, lambda called: threads.extend([called, threading.get_ident()])
    )
    while not threads:
        assert loop.run_once(LIMIT), "the call does not end"
    assert threads[0] != threads[1] == threading.get_ident()


def test_threads_that_cannot_be_replaced_serve_the_next_guest(
    guest: ThreadedGuest,
    fs: FakeFs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for _ in range(THREADS):
        guest.send(Opcode.FSYNC, NODE, FSYNC)
    wait_until_begun(fs, THREADS)
    monkeypatch.setattr(threading.Thread, "start", fail)
    reboot(guest)
    monkeypatch.undo()
    guest.places.clear()
    assert "threads that wait cannot be replaced: can't start new thread" in caplog.text
    guest.ask(Opcode.INIT, 0, fuse.init_in.pack(major=7, minor=41), fuse.init_out.size)
    synced = guest.send(Opcode.FSYNC, NODE, FSYNC)
    let_go(fs)
    guest.settle_until(lambda: synced in guest.answers)
    assert guest.answers == {synced: (0, b"")}


def test_start_creates_all_threads() -> None:
    before = threading.active_count()
    pool = ThreadPool(3, lambda _callback: None)
    pool.start()
    # For local disks, and for what waits for another process.
    assert threading.active_count() == before + 2 * 3
    pool.close(LIMIT)
    assert threading.active_count() == before


def test_start_without_resources_for_threads_raises_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = threading.active_count()
    start = threading.Thread.start

    def fail_later(thread: threading.Thread) -> None:
        if threading.active_count() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    pool = ThreadPool(3, lambda _callback: None)
    monkeypatch.setattr(threading.Thread, "start", fail_later)
    with pytest.raises(RuntimeError, match="can't start"):
        pool.start()
    pool.close(LIMIT)
    assert threading.active_count() == before


# On the host's files


@pytest.fixture
def share(tmp_path: Path) -> Iterator[ThreadedGuest]:
    (tmp_path / "file").write_bytes(b"content")
    passthrough = PassthroughFs(tmp_path, ShareOptions(allow_direct_io=True))
    guest = ThreadedGuest(passthrough)
    yield guest
    guest.close()
    passthrough.close()


def opened(guest: ThreadedGuest, flags: int) -> tuple[int, int]:
    entry = fuse.entry_out.unpack_from(guest.ask(Opcode.LOOKUP, 1, b"file\0", fuse.entry_out.size))
    reply = guest.ask(Opcode.OPEN, entry.nodeid, fuse.open_in.pack(flags=flags), fuse.open_out.size)
    return int(entry.nodeid), int(fuse.open_out.unpack_from(reply).fh)


def test_file_released_during_fsync_is_synced(share: ThreadedGuest) -> None:
    nodeid, fh = opened(share, os.O_RDWR)
    waiting = share.send(Opcode.FSYNC, nodeid, fuse.fsync_in.pack(fh=fh))
    released = share.send(Opcode.RELEASE, nodeid, fuse.release_in.pack(fh=fh))
    share.settle_until(lambda: len(share.answers) == 2)
    assert share.answers == {waiting: (0, b""), released: (0, b"")}


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes_are_tasks(share: ThreadedGuest, tmp_path: Path, flag: int) -> None:
    nodeid, fh = opened(share, os.O_RDWR | flag)
    payload = fuse.write_in.pack(fh=fh, size=3, offset=7) + b"end"
    written = share.send(Opcode.WRITE, nodeid, payload, fuse.write_out.size)
    share.settle_until(lambda: written in share.answers)
    assert share.answers == {written: (0, fuse.write_out.pack(size=3))}
    assert (tmp_path / "file").read_bytes() == b"contentend"


@pytest.mark.parametrize("kept", [0, 1 << 19])
def test_uncached_data_is_read_by_a_task(share: ThreadedGuest, tmp_path: Path, kept: int) -> None:
    # With ``kept`` bytes in memory, reading without waiting ends early.
    data = os.urandom(1 << 20)
    with (tmp_path / "file").open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), kept, 0, os.POSIX_FADV_DONTNEED)
    nodeid, fh = opened(share, os.O_RDONLY)
    read = share.send(Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=len(data)), len(data))
    share.settle_until(lambda: read in share.answers)
    assert share.answers == {read: (0, data)}


@pytest.mark.parametrize(
    ("offset", "size", "found"), [(0, 7, 7), (0, 100, 7), (3, 100, 4), (7, 10, 0), (100, 10, 0)]
)
def test_cached_data_is_read_immediately(
    share: ThreadedGuest, offset: int, size: int, found: int
) -> None:
    nodeid, fh = opened(share, os.O_RDONLY)
    payload = fuse.read_in.pack(fh=fh, offset=offset, size=size)
    assert share.ask(Opcode.READ, nodeid, payload, size) == b"content"[offset : offset + found]


def test_direct_io_of_unaligned_guest_memory_is_aligned(
    share: ThreadedGuest, tmp_path: Path
) -> None:
    nodeid, fh = opened(share, os.O_RDWR | os.O_DIRECT)
    data = os.urandom(3 * 4096)
    payload = fuse.write_in.pack(fh=fh, size=len(data)) + data
    written = share.send(Opcode.WRITE, nodeid, payload, fuse.write_out.size)
    share.settle_until(lambda: written in share.answers)
    assert share.answers[written] == (0, fuse.write_out.pack(size=len(data)))
    read = share.send(Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=len(data)), len(data))
    share.settle_until(lambda: read in share.answers)
    assert share.answers[read] == (0, data)
    assert (tmp_path / "file").read_bytes() == data


def test_read_larger_than_the_buffers_that_are_kept(share: ThreadedGuest, tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 4096)
    (tmp_path / "file").write_bytes(data)
    nodeid, fh = opened(share, os.O_RDONLY | os.O_DIRECT)
    read = share.send(Opcode.READ, nodeid, fuse.read_in.pack(fh=fh, size=len(data)), len(data))
    share.settle_until(lambda: read in share.answers)
    assert share.answers == {read: (0, data)}
