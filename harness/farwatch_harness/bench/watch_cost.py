# SPDX-License-Identifier: Apache-2.0
"""The cost of a watch: time in the guest, and memory of the daemon and of the guest's kernel.

The measurement also checks that closing the watches frees them.
"""

import os
import re
import time
from dataclasses import dataclass

from farwatch_harness.bench.event_readers import share_directory
from farwatch_harness.bench.operations import cpu_ns_of
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.testbed import Testbed
from farwatch_harness.vm.virtiofs_daemon import Daemon

# Seconds per watch that the guest may take, also on a busy machine. Then seconds for the host's
# marks to be removed at the end: the guest does not wait for the removal of each.
WATCH_LIMIT = 0.02
REMOVAL_LIMIT = 30.0
REMOVAL_LIMIT_PER_WATCH = 0.005
INTERVAL = 0.05
GUEST_LIMIT = "/proc/sys/fs/inotify/max_user_watches"


@dataclass(frozen=True)
class WatchCost:
    """The cost of one inode looked up and of one watch on it, over `count` files.

    Times are microseconds in the guest, except the daemon's CPU time (`..._cpu_us`); sizes are
    bytes.

    watched: the number of watches; fewer than `count` if a limit was reached (ENOSPC, ENFILE),
    mostly the daemon's limit of open files.
    left: host watches that remained after the guest had closed its group; 0 is right.
    """

    mode: str
    count: int
    watched: int
    lookup_us: float
    watch_us: float
    close_us: float
    daemon_bytes_known: float
    daemon_bytes_watched: float
    guest_slab_known: float
    guest_slab_watched: float
    descriptors: float
    host_marks: int
    left: int
    lookup_cpu_us: float = 0.0
    watch_cpu_us: float = 0.0


@dataclass(frozen=True)
class ResourceUsage:
    """The resources in use at one moment.

    cpu_ns: the daemon's CPU time.
    daemon: the daemon's resident bytes.
    descriptors, marks: the daemon's open files and host watches.
    slab: bytes of the guest's slab memory.
    """

    cpu_ns: int
    daemon: int
    descriptors: int
    marks: int
    slab: int


def resource_usage(testbed: Testbed) -> ResourceUsage:
    """Return what is in use now."""
    text = testbed.guest.read_file("/proc/meminfo").decode()
    found = re.search(r"^Slab:\s+(\d+) kB", text, re.MULTILINE)
    if not found:
        raise HarnessError("the guest's /proc/meminfo has no line about slab")
    pid = testbed.daemon.pid
    descriptors = testbed.daemon.descriptors()
    cpu_ns = cpu_ns_of(os.getpgid(pid))
    return ResourceUsage(
        cpu_ns,
        testbed.daemon.resident_bytes(),
        descriptors,
        testbed.daemon.host_watches(),
        int(found[1]) * 1024,
    )


def cost(testbed: Testbed, programs: Programs, mode: str, count: int) -> WatchCost:
    """Watch `count` files of one directory in one group, then close the group."""
    share = share_directory(testbed, f"watches-{count}")
    for number in range(count):
        (share.host / str(number)).touch()
    # The guest's limit follows from its memory, and would be reached first.
    testbed.guest.write_file(GUEST_LIMIT, str(count + 1000).encode())
    with step(f"{count} watches, mode {mode}"):
        before = resource_usage(testbed)
        limit = 30 + count * WATCH_LIMIT
        task = testbed.guest.spawn(str(programs.events), "watches", str(share.guest), str(count))
        looked_up = numbers_after(task.lines(limit=limit, until="looked-up"), "looked-up")[0]
        known = resource_usage(testbed)
        testbed.guest.shell(f"kill -USR1 {task.pid}")
        watching, reached = numbers_after(task.lines(limit=limit, until="watched"), "watched")
        full = resource_usage(testbed)
        testbed.guest.shell(f"kill -TERM {task.pid}")
        closing = numbers_after(task.lines(limit=limit, until="closed"), "closed")[0]
        left = wait_for_removal(
            testbed.daemon,
            before.marks,
            REMOVAL_LIMIT + count * REMOVAL_LIMIT_PER_WATCH,
        )
    watched = max(reached, 1.0)
    return WatchCost(
        mode,
        count,
        int(reached),
        1e6 * looked_up / count,
        1e6 * watching / watched,
        1e6 * closing / watched,
        (known.daemon - before.daemon) / count,
        (full.daemon - known.daemon) / watched,
        (known.slab - before.slab) / count,
        (full.slab - known.slab) / watched,
        (full.descriptors - known.descriptors) / watched,
        full.marks - before.marks,
        left,
        (known.cpu_ns - before.cpu_ns) / 1000 / count,
        (full.cpu_ns - known.cpu_ns) / 1000 / watched,
    )


def numbers_after(lines: list[str], word: str) -> list[float]:
    """Return the numbers after `word`. HarnessError: the output has no such line."""
    for line in lines:
        first, *numbers = line.split()
        if first == word:
            return [float(number) for number in numbers]
    raise HarnessError(
        f"the guest's program did not reach '{word}': {' / '.join(lines) or 'no output'}"
    )


def wait_for_removal(daemon: Daemon, base: int, limit: float) -> int:
    """Wait until the daemon has at most `base` marks; return how many more it has at the limit."""
    deadline = time.monotonic() + limit
    while (left := daemon.host_watches() - base) > 0 and time.monotonic() < deadline:
        # The kernel does not notify other processes when a mark is removed.
        time.sleep(INTERVAL)
    return max(left, 0)
