# SPDX-License-Identifier: Apache-2.0
"""No loss is silent: whatever loses events, each listener of the mount is told once, and then
events flow again."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.guest_client import Guest, GuestInotify
from farwatch_harness.vm.testbed import Testbed

pytestmark = pytest.mark.patch("overflow")

#: By mode: how many events a queue of the host's kernel holds.
HOST_QUEUE = {
    "others": "/proc/sys/fs/fanotify/max_queued_events",
    "remote": "/proc/sys/fs/inotify/max_queued_events",
}
PROBES = 50
#: Events that the daemon reads at once from the host's kernel.
AT_A_LOOK = 200


@contextlib.contextmanager
def stopped(testbed: Testbed) -> Iterator[None]:
    """The daemon does not run meanwhile."""
    os.kill(testbed.daemon.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(testbed.daemon.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def frozen(testbed: Testbed) -> Iterator[None]:
    """The guest does not run meanwhile: it takes nothing and supplies no buffers, while the daemon
    goes on."""
    os.killpg(testbed.vm.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(testbed.vm.process.pid, signal.SIGCONT)


def create(directory: Path, count: int, prefix: str) -> list[str]:
    """Make so many empty files as fast as possible; their names."""
    names = [f"{prefix}{number}" for number in range(count)]
    for name in names:
        os.close(os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o600))
    return names


@dataclass(frozen=True)
class Listeners:
    """Listeners in the guest: on the directory of the burst, on a file elsewhere, on the guest's
    own tmpfs."""

    testbed: Testbed
    burst: GuestInotify
    file: GuestInotify
    local: GuestInotify
    prober: GuestInotify

    def await_calm(self, prefix: str) -> None:
        """Wait until what was in the queues has arrived, or its loss: until a file made later is
        told of."""
        for number in range(PROBES):
            name = f"{prefix}-{number}"
            (self.testbed.shared / "probes" / name).touch()
            if any(event.name == name for event in self.prober.read(until=name, limit=1.0)):
                return
        pytest.fail("no event arrives any more")

    def waiting(self, listener: GuestInotify) -> list[tuple[In, str]]:
        """What the listener has not read yet."""
        return [(In(event.mask), event.name) for event in listener.read(quiet=0.2, limit=30.0)]


@contextlib.contextmanager
def listening(testbed: Testbed) -> Iterator[Listeners]:
    guest: Guest = testbed.guest
    for name in ("burst", "probes", "elsewhere"):
        (testbed.shared / name).mkdir()
    (testbed.shared / "elsewhere" / "file").touch()
    # The guest's own limit is not what is tested here.
    guest.write_file("/proc/sys/fs/inotify/max_queued_events", b"100000")
    guest.os("makedirs", "/run/farwatch/local", exist_ok=True)
    with (
        guest.inotify() as burst,
        guest.inotify() as file,
        guest.inotify() as local,
        guest.inotify() as prober,
    ):
        burst.add(f"{testbed.mount_point}/burst", In.CREATE)
        file.add(f"{testbed.mount_point}/elsewhere/file", In.ATTRIB | In.MODIFY)
        local.add("/run/farwatch/local", In.ALL)
        prober.add(f"{testbed.mount_point}/probes", In.CREATE)
        yield Listeners(testbed, burst, file, local, prober)


OVERFLOW = (In.Q_OVERFLOW, "")


def assert_told_once(listeners: Listeners, made: list[str]) -> int:
    """Each listener of the mount knows of one loss, the one elsewhere of none, and what came up to
    it is whole.

    Returns how much came up to it.
    """
    told = listeners.waiting(listeners.burst)
    assert told.count(OVERFLOW) == 1
    names = [name for _mask, name in told[: told.index(OVERFLOW)]]
    assert names == made[: len(names)]
    assert {name for _mask, name in told} - {""} < set(made)
    assert listeners.waiting(listeners.file) == [OVERFLOW]
    assert listeners.waiting(listeners.local) == []
    return len(names)


def assert_all_is_told(listeners: Listeners) -> None:
    """The watches are those that they were, and nothing is lost."""
    shared = listeners.testbed.shared
    (shared / "elsewhere" / "file").chmod(0o600)
    (shared / "elsewhere" / "file").write_text("x")
    made = create(shared / "burst", 5, "later")
    assert [name for _mask, name in listeners.waiting(listeners.burst)] == made
    assert {mask for mask, _name in listeners.waiting(listeners.file)} == {In.ATTRIB, In.MODIFY}
    assert listeners.waiting(listeners.local) == []


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_a_full_queue_in_the_daemon_is_told_once_to_each_listener(
    boot: Callable[..., Testbed], mode: str
) -> None:
    testbed = boot(daemon_options=(f"--fsnotify={mode}", "--event-queue=16"))
    with listening(testbed) as listeners:
        for burst in ("one", "two"):
            # All in the daemon's next look, which no guest is fast enough for.
            with stopped(testbed):
                made = create(testbed.shared / "burst", AT_A_LOOK, burst)
            listeners.await_calm(burst)
            assert_told_once(listeners, made)
        assert_all_is_told(listeners)


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_a_full_queue_of_the_hosts_kernel_is_told_once_to_each_listener(
    boot: Callable[..., Testbed], mode: str
) -> None:
    room = int(Path(HOST_QUEUE[mode]).read_text())
    testbed = boot(daemon_options=(f"--fsnotify={mode}", f"--event-queue={10 * room}"))
    with listening(testbed) as listeners:
        with stopped(testbed):
            made = create(testbed.shared / "burst", room + 2000, "x")
        testbed.daemon.wait_for_line("the host's event queue overflowed", 30.0)
        listeners.await_calm("after")
        assert_told_once(listeners, made)
        assert_all_is_told(listeners)


#: The ways in which events travel: a notification queue with buffers of the guest, or a request of
#: it that waits.
WAYS = {
    "others": (QemuDevice.EVENTS, "others"),
    "remote": (QemuDevice.EVENTS, "remote"),
    "wait": (QemuDevice.PLAIN, "others"),
}
#: More than this queue and all of the guest's buffers hold.
QUEUE, BURST, CHUNK = 1024, 3000, 200


@pytest.mark.parametrize("way", WAYS)
def test_what_a_guest_without_buffers_misses_is_told_once_to_each_listener(
    boot: Callable[..., Testbed], way: str
) -> None:
    device, mode = WAYS[way]
    testbed = boot(device=device, daemon_options=(f"--fsnotify={mode}", f"--event-queue={QUEUE}"))
    with listening(testbed) as listeners:
        # While the guest runs, the same number of events is no loss.
        for number in range(0, BURST, CHUNK):
            made = create(testbed.shared / "burst", CHUNK, f"before-{number}-")
            assert [event.name for event in listeners.burst.read(CHUNK, limit=30.0)] == made
        since = testbed.daemon.log_length
        with frozen(testbed):
            made = create(testbed.shared / "burst", BURST, "frozen")
            testbed.daemon.wait_for_line("event queue is full", 30.0, since)
        listeners.await_calm("after")
        assert assert_told_once(listeners, made) >= QUEUE - 1
        assert_all_is_told(listeners)


WRITES = 5000


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_the_smallest_queue_tells_all_that_comes_one_by_one(
    boot: Callable[..., Testbed], mode: str
) -> None:
    testbed = boot(daemon_options=(f"--fsnotify={mode}", "--event-queue=2"))
    with listening(testbed) as listeners:
        with stopped(testbed):
            made = create(testbed.shared / "burst", AT_A_LOOK, "x")
        listeners.await_calm("after")
        assert_told_once(listeners, made)
        for number in range(20):
            (testbed.shared / "burst" / f"single-{number}").mkdir()
            told = [(In(event.mask), event.name) for event in listeners.burst.read(1)]
            assert told == [(In.CREATE | In.ISDIR, f"single-{number}")]
        assert listeners.waiting(listeners.file) == []


@pytest.mark.parametrize("way", WAYS)
def test_equal_events_in_a_row_need_one_place_in_the_queue(
    boot: Callable[..., Testbed], way: str
) -> None:
    device, mode = WAYS[way]
    # Room for the probes, too.
    testbed = boot(device=device, daemon_options=(f"--fsnotify={mode}", "--event-queue=12"))
    with listening(testbed) as listeners:
        with (
            frozen(testbed),
            (testbed.shared / "elsewhere" / "file").open("wb", buffering=0) as file,
        ):
            # Enough for the daemon to read many times, and to have used all buffers of the guest up
            # long before.
            for _ in range(WRITES):
                file.write(b"x")
                os.sched_yield()
        listeners.await_calm("after")
        assert listeners.waiting(listeners.file) == [(In.MODIFY, "")]
        assert listeners.waiting(listeners.burst) == []
        assert testbed.daemon.warnings() == []
