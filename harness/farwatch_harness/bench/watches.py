# SPDX-License-Identifier: Apache-2.0
"""What a watch costs: time in the guest, memory of the daemon and of the guest's kernel; and that
closing frees it."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.events import share_directory
from farwatch_harness.bench.operations import processor_ns
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.testbed import Testbed

# Seconds per watch that the guest may take, on a busy machine too; and for the host's marks to go
# at the end: the guest tells of each without waiting for it.
WATCH_LIMIT = 0.02
GONE_LIMIT = 30.0
GONE_LIMIT_PER_WATCH = 0.005
INTERVAL = 0.05
GUEST_LIMIT = "/proc/sys/fs/inotify/max_user_watches"


@dataclass(frozen=True)
class WatchCost:
    """Costs of one inode known and of one watch on it: microseconds and bytes each, over `count`
    files.

    The times are the guest's, but for the daemon's processor time (`..._cpu_us`). `watched` is
    fewer where a limit was reached (ENOSPC, ENFILE), mostly the daemon's limit of open files.
    `left` are host watches that remained after the guest's group was closed: none, when all is
    well.
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
class Memory:
    """At one moment: the daemon's processor time, resident bytes, open files and marks, the guest's
    slab bytes."""

    cpu_ns: int
    daemon: int
    descriptors: int
    marks: int
    slab: int


def memory(testbed: Testbed) -> Memory:
    """Now."""
    text = testbed.guest.read_file("/proc/meminfo").decode()
    found = re.search(r"^Slab:\s+(\d+) kB", text, re.MULTILINE)
    if not found:
        raise HarnessError("the guest's /proc/meminfo has no line about slab")
    pid = testbed.daemon.process.pid
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    cpu_ns = processor_ns(os.getpgid(pid))
    return Memory(
        cpu_ns, testbed.daemon.resident_bytes(), descriptors, marks(pid), int(found[1]) * 1024
    )


def marks(pid: int) -> int:
    """The inotify watches and fanotify inode marks that the process holds."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            # Only these: a daemon may have a hundred thousand descriptors.
            if str(entry.readlink()) in ("anon_inode:inotify", "anon_inode:[fanotify]"):
                text = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                total += len(re.findall(r"^(?:inotify wd|fanotify ino):", text, re.MULTILINE))
        except FileNotFoundError:
            # Closed in the meantime.
            continue
    return total


def cost(testbed: Testbed, programs: Programs, mode: str, count: int) -> WatchCost:
    """Watches `count` files of one directory in one group, then closes the group."""
    share = share_directory(testbed, f"watches-{count}")
    for number in range(count):
        (share.host / str(number)).touch()
    # The guest's own limit follows from its memory and would be the first to be reached.
    testbed.guest.write_file(GUEST_LIMIT, str(count + 1000).encode())
    with step(f"{count} watches, mode {mode}"):
        before = memory(testbed)
        limit = 30 + count * WATCH_LIMIT
        task = testbed.guest.spawn(str(programs.events), "watches", str(share.guest), str(count))
        looked_up = said(task.lines(limit=limit, until="looked-up"), "looked-up")[0]
        known = memory(testbed)
        testbed.guest.shell(f"kill -USR1 {task.pid}")
        watching, reached = said(task.lines(limit=limit, until="watched"), "watched")
        full = memory(testbed)
        testbed.guest.shell(f"kill -TERM {task.pid}")
        closing = said(task.lines(limit=limit, until="closed"), "closed")[0]
        left = wait_until_gone(
            testbed.daemon.process.pid, before.marks, GONE_LIMIT + count * GONE_LIMIT_PER_WATCH
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


def said(lines: list[str], word: str) -> list[float]:
    """The numbers after `word`; HarnessError with what the program said instead."""
    for line in lines:
        first, *numbers = line.split()
        if first == word:
            return [float(number) for number in numbers]
    raise HarnessError(
        f"the guest's program did not come to '{word}': {' / '.join(lines) or 'it said nothing'}"
    )


def wait_until_gone(pid: int, base: int, limit: float) -> int:
    """How many marks more than `base` are left once they are gone, or after `limit` seconds."""
    deadline = time.monotonic() + limit
    while (left := marks(pid) - base) > 0 and time.monotonic() < deadline:
        # The kernel gives no notice of a mark's end to others.
        time.sleep(INTERVAL)
    return max(left, 0)
