# SPDX-License-Identifier: Apache-2.0
"""The kernel's fault injection: what fails, how often, and how many times it did.

See Documentation/fault-injection/fault-injection.rst of Linux.
"""

from farwatch_harness.adversary.script import ACTORS_FAIL, FUSE_FAILS
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

FOLDER = "/sys/kernel/debug"
#: Percent of the calls that fail, by capability. Of the tasks that want it, and of what is called
#: by FUSE.
PROBABILITIES = {
    ACTORS_FAIL: {"failslab": 10, "fail_page_alloc": 5, "fail_usercopy": 3},
    FUSE_FAILS: {"failslab": 5, "fail_page_alloc": 5, "fail_usercopy": 0},
}
#: Counted down by each failure.
TIMES = 1_000_000
#: How far up the stack a function of FUSE is searched.
DEPTH = 32
SYMBOLS = """
awk '$2 ~ /^[tT]$/ && $3 ~ /^(fuse|virtio_fs)_/ && $3 !~ /[.](cold|part)/ {print $1}' /proc/kallsyms
"""
#: Code of FUSE is linked together; a function with such a name elsewhere is farther away.
MOST_CODE = 1 << 20


class Faults:
    """Fault injection in a guest. A kernel without it injects nothing; see `available`."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.available = guest.os("access", f"{FOLDER}/failslab/probability", 0)
        self.injected = 0
        self.rounds = 0
        self.on = False
        if self.available:
            self.set_up()

    def set_up(self) -> None:
        """Set what is the same in each round."""
        found = sorted(int(word, 16) for word in self.guest.shell(SYMBOLS).split())
        middle = found[len(found) // 2]
        found = [each for each in found if abs(each - middle) < MOST_CODE]
        start, end = found[0], found[-1]
        lines = []
        for name in PROBABILITIES[ACTORS_FAIL]:
            place = f"{FOLDER}/{name}"
            lines += [
                f"echo 0 > {place}/verbose",
                f"echo 1 > {place}/interval",
                f"echo {DEPTH} > {place}/stacktrace-depth",
            ]
        lines += [
            # What may sleep may fail, too, and the smallest allocations.
            f"echo N > {FOLDER}/failslab/ignore-gfp-wait",
            f"echo N > {FOLDER}/fail_page_alloc/ignore-gfp-wait",
            f"echo 0 > {FOLDER}/fail_page_alloc/min-order",
        ]
        self.fuse = (f"{start:#x}", f"{end:#x}")
        self.guest.shell("set -e\n" + "\n".join(lines))

    def begin(self, kind: str) -> None:
        """Let calls fail from now on: those of ACTORS_FAIL or FUSE_FAILS, or none for ''."""
        if not kind or not self.available:
            return
        start, end = self.fuse if kind == FUSE_FAILS else ("0x0", "0xffffffffffffffff")
        lines = []
        for name, percent in PROBABILITIES[kind].items():
            place = f"{FOLDER}/{name}"
            lines += [
                f"echo {'Y' if kind == ACTORS_FAIL else 'N'} > {place}/task-filter",
                f"echo {start} > {place}/require-start",
                f"echo {end} > {place}/require-end",
                f"echo {TIMES} > {place}/times",
                f"echo {percent} > {place}/probability",
            ]
        self.on = True
        self.rounds += 1
        self.guest.shell("set -e\n" + "\n".join(lines))

    def end(self) -> None:
        """Let no call fail, and count the failures."""
        if not self.on:
            return
        self.on = False
        places = [f"{FOLDER}/{name}" for name in PROBABILITIES[ACTORS_FAIL]]
        # By the agent itself: a new process reads its program by FUSE, and would fail, too.
        for place in places:
            self.guest.write_file(f"{place}/probability", b"0")
        left = [int(self.guest.read_file(f"{place}/times")) for place in places]
        self.injected += sum(TIMES - each for each in left)

    def check(self) -> None:
        """Raise HarnessError if faults were asked for and none came."""
        if self.rounds and not self.injected:
            raise HarnessError(f"{self.rounds} rounds were to inject faults, and none was injected")
