# SPDX-License-Identifier: Apache-2.0
"""No loss is silent: any loss is one overflow event per group, and then events arrive again."""

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

#: By mode: the file with the length of an event queue of the host's kernel.
HOST_QUEUE = {
    "others": "/proc/sys/fs/fanotify/max_queued_events",
    "remote": "/proc/sys/fs/inotify/max_queued_events",
}
PROBES = 50
#: The number of events that the daemon reads from the host's kernel with one call.
ONE_READ = 200


@contextlib.contextmanager
def stopped(testbed: Testbed) -> Iterator[None]:
    """Stop the daemon while the block runs."""
    os.kill(testbed.daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(testbed.daemon.pid, signal.SIGCONT)


@contextlib.contextmanager
def frozen(testbed: Testbed) -> Iterator[None]:
    """Stop the guest while the block runs.

    It takes no event and supplies no buffer, while the daemon runs.
    """
    os.killpg(testbed.vm.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(testbed.vm.process.pid, signal.SIGCONT)


def create(directory: Path, count: int, prefix: str) -> list[str]:
    """Create `count` empty files as fast as possible; return their names."""
    names = [f"{prefix}{number}" for number in range(count)]
    for name in names:
        os.close(os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o600))
    return names


@dataclass(frozen=True)
class Watchers:
    """The inotify instances of the guest.

    burst: watches the directory of the burst.
    file: watches a file elsewhere on the share.
    local: watches the guest's own tmpfs.
    prober: watches the directory of probes.
    """

    testbed: Testbed
    burst: GuestInotify
    file: GuestInotify
    local: GuestInotify
    prober: GuestInotify

    def await_calm(self, prefix: str) -> None:
        """Wait until the queued events have arrived or are lost.

        That is the case once a file that is created later is reported.
        """
        for number in range(PROBES):
            name = f"{prefix}-{number}"
            (self.testbed.shared / "probes" / name).touch()
            if any(event.name == name for event in self.prober.read(until=name, limit=1.0)):
                return
        pytest.fail("no event arrives")

    def waiting(self, watcher: GuestInotify) -> list[tuple[In, str]]:
        """Return the events that the watcher has not read yet."""
        return [(In(event.mask), event.name) for event in watcher.read(quiet=0.2, limit=30.0)]


@contextlib.contextmanager
def watching(testbed: Testbed) -> Iterator[Watchers]:
    guest: Guest = testbed.guest
    for name in ("burst", "probes", "elsewhere"):
        (testbed.shared / name).mkdir()
    (testbed.shared / "elsewhere" / "file").touch()
    # The limit of the guest's own queues is not tested here.
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
        yield Watchers(testbed, burst, file, local, prober)


OVERFLOW = (In.Q_OVERFLOW, "")


def assert_one_overflow(watchers: Watchers, made: list[str]) -> int:
    """Check that each group of the mount gets one overflow, and the group elsewhere none.

    The events before the overflow must be complete. Return their number.
    """
    reported = watchers.waiting(watchers.burst)
    assert reported.count(OVERFLOW) == 1
    names = [name for _mask, name in reported[: reported.index(OVERFLOW)]]
    assert names == made[: len(names)]
    assert {name for _mask, name in reported} - {""} < set(made)
    assert watchers.waiting(watchers.file) == [OVERFLOW]
    assert watchers.waiting(watchers.local) == []
    return len(names)


def assert_all_reported(watchers: Watchers) -> None:
    """Check that the watches are unchanged, and that no event is lost."""
    shared = watchers.testbed.shared
    (shared / "elsewhere" / "file").chmod(0o600)
    (shared / "elsewhere" / "file").write_text("x")
    made = create(shared / "burst", 5, "later")
    assert [name for _mask, name in watchers.waiting(watchers.burst)] == made
    assert {mask for mask, _name in watchers.waiting(watchers.file)} == {In.ATTRIB, In.MODIFY}
    assert watchers.waiting(watchers.local) == []


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_full_queue_of_the_daemon_is_one_overflow_per_group(
    boot: Callable[..., Testbed], mode: str
) -> None:
    testbed = boot(daemon_options=(f"--fsnotify={mode}", "--event-queue=16"))
    with watching(testbed) as watchers:
        for burst in ("one", "two"):
            # The daemon reads all events with its next call, before any guest could take them.
            with stopped(testbed):
                made = create(testbed.shared / "burst", ONE_READ, burst)
            watchers.await_calm(burst)
            assert_one_overflow(watchers, made)
        assert_all_reported(watchers)


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_full_queue_of_the_host_kernel_is_one_overflow_per_group(
    boot: Callable[..., Testbed], mode: str
) -> None:
    room = int(Path(HOST_QUEUE[mode]).read_text())
    # A longer queue would lift the limit of the host kernel's.
    testbed = boot(daemon_options=(f"--fsnotify={mode}", f"--event-queue={room}"))
    with watching(testbed) as watchers:
        with stopped(testbed):
            made = create(testbed.shared / "burst", room + 2000, "x")
        testbed.daemon.wait_for_line("the host's event queue overflowed", 30.0)
        watchers.await_calm("after")
        assert_one_overflow(watchers, made)
        assert_all_reported(watchers)


#: How events reach the guest: through the notification queue, or as replies to WAIT requests.
TRANSPORTS = {
    "others": (QemuDevice.EVENTS, "others"),
    "remote": (QemuDevice.EVENTS, "remote"),
    "wait": (QemuDevice.PLAIN, "others"),
}
#: The length of the daemon's queue, a number of events for which that queue and all buffers of the
#: guest have no room, and the number of events that are read together.
QUEUE, BURST, CHUNK = 1024, 3000, 200


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_events_lost_without_guest_buffers_are_one_overflow_per_group(
    boot: Callable[..., Testbed], transport: str
) -> None:
    device, mode = TRANSPORTS[transport]
    testbed = boot(device=device, daemon_options=(f"--fsnotify={mode}", f"--event-queue={QUEUE}"))
    with watching(testbed) as watchers:
        # While the guest runs, none of the same number of events is lost.
        for number in range(0, BURST, CHUNK):
            made = create(testbed.shared / "burst", CHUNK, f"before-{number}-")
            assert [event.name for event in watchers.burst.read(CHUNK, limit=30.0)] == made
        since = testbed.daemon.log_length
        with frozen(testbed):
            made = create(testbed.shared / "burst", BURST, "frozen")
            testbed.daemon.wait_for_line("event queue is full", 30.0, since)
        watchers.await_calm("after")
        assert assert_one_overflow(watchers, made) >= QUEUE - 1
        assert_all_reported(watchers)


WRITES = 5000


@pytest.mark.parametrize("mode", ["others", "remote"])
def test_smallest_queue_reports_events_that_come_one_by_one(
    boot: Callable[..., Testbed], mode: str
) -> None:
    testbed = boot(daemon_options=(f"--fsnotify={mode}", "--event-queue=2"))
    with watching(testbed) as watchers:
        with stopped(testbed):
            made = create(testbed.shared / "burst", ONE_READ, "x")
        watchers.await_calm("after")
        assert_one_overflow(watchers, made)
        for number in range(20):
            (testbed.shared / "burst" / f"single-{number}").mkdir()
            reported = [(In(event.mask), event.name) for event in watchers.burst.read(1)]
            assert reported == [(In.CREATE | In.ISDIR, f"single-{number}")]
        assert watchers.waiting(watchers.file) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_equal_consecutive_events_use_one_queue_entry(
    boot: Callable[..., Testbed], transport: str
) -> None:
    device, mode = TRANSPORTS[transport]
    # The queue has room for the probes, too.
    testbed = boot(device=device, daemon_options=(f"--fsnotify={mode}", "--event-queue=12"))
    with watching(testbed) as watchers:
        with (
            frozen(testbed),
            (testbed.shared / "elsewhere" / "file").open("wb", buffering=0) as file,
        ):
            # The daemon reads many times, and has used up all buffers of the guest long before.
            for _ in range(WRITES):
                file.write(b"x")
                os.sched_yield()
        watchers.await_calm("after")
        assert watchers.waiting(watchers.file) == [(In.MODIFY, "")]
        assert watchers.waiting(watchers.burst) == []
        assert testbed.daemon.warnings() == []
