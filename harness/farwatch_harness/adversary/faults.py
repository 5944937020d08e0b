# SPDX-License-Identifier: Apache-2.0
"""The kernel's fault injection: what fails, how often, and how many times it did.

See Documentation/fault-injection/fault-injection.rst of Linux.
"""

from collections.abc import Mapping

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
FUSE = "^(fuse|virtio_fs)_"
#: The guest's root. When 9p cannot allocate the request that gives a fid back, it uses the number
#: of the fid for another one, which the server refuses (EINVAL) from then on.
ROOT = "^v9fs_"
SYMBOLS = """
awk '$2 ~ /^[tT]$/ && $3 ~ /{names}/ && $3 !~ /[.](cold|part)/ {{print $1}}' /proc/kallsyms
"""
#: Code of a file system is linked together; a function with such a name elsewhere is farther away.
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
        self.fuse = self.code(FUSE)
        start, end = self.code(ROOT)
        for name in PROBABILITIES[ACTORS_FAIL]:
            self.write(name, {"verbose": 0, "interval": 1, "stacktrace-depth": DEPTH})
            self.write(name, {"reject-start": start, "reject-end": end})
        # What may sleep may fail, too, and the smallest allocations.
        self.write("failslab", {"ignore-gfp-wait": "N"})
        self.write("fail_page_alloc", {"ignore-gfp-wait": "N", "min-order": 0})

    def code(self, names: str) -> tuple[str, str]:
        """Return start and end of the code whose functions have such names, in hexadecimal."""
        symbols = self.guest.shell(SYMBOLS.format(names=names))
        found = sorted(int(word, 16) for word in symbols.split())
        middle = found[len(found) // 2]
        found = [each for each in found if abs(each - middle) < MOST_CODE]
        return f"{found[0]:#x}", f"{found[-1]:#x}"

    def write(self, name: str, values: Mapping[str, object]) -> None:
        """Set these values of one kind of fault, in this order.

        The agent writes them by itself: a new process would have to be read from a disk, and
        allocations for it could fail.
        """
        for file, value in values.items():
            self.guest.write_file(f"{FOLDER}/{name}/{file}", str(value).encode())

    def begin(self, kind: str) -> None:
        """Let calls fail from now on: those of ACTORS_FAIL or FUSE_FAILS, or none for ''."""
        if not kind or not self.available:
            return
        start, end = self.fuse if kind == FUSE_FAILS else ("0x0", "0xffffffffffffffff")
        self.on = True
        self.rounds += 1
        for name, percent in PROBABILITIES[kind].items():
            values = {
                "task-filter": "Y" if kind == ACTORS_FAIL else "N",
                "require-start": start,
                "require-end": end,
                "times": TIMES,
                "probability": percent,
            }
            self.write(name, values)

    def end(self) -> None:
        """Let no call fail, and count the failures."""
        if not self.on:
            return
        self.on = False
        names = PROBABILITIES[ACTORS_FAIL]
        for name in names:
            self.write(name, {"probability": 0})
        left = [int(self.guest.read_file(f"{FOLDER}/{name}/times")) for name in names]
        self.injected += sum(TIMES - each for each in left)

    def check(self) -> None:
        """Raise HarnessError if faults were asked for and none came."""
        if self.rounds and not self.injected:
            raise HarnessError(f"{self.rounds} rounds were to inject faults, and none was injected")
