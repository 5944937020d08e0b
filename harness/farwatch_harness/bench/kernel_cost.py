# SPDX-License-Identifier: Apache-2.0
"""What the series costs those who do not use it: instructions per operation on a tmpfs.

QEMU counts them: with `-icount shift=0` each instruction takes the guest's clock one nanosecond.
"""

import contextlib
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.bench.operations import DATA_BYTES, OPERATIONS, Operation
from farwatch_harness.bench.programs import Programs
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.qemu import Accelerator
from farwatch_harness.vm.testbed import Testbed, start_testbed

MEASURED = ("open+close", "create+unlink", "rename", "read-4k", "write-4k")
ICOUNT = ("-icount", "shift=0,sleep=off")
DIRECTORY = "/run/farwatch-cost"
# Virtual seconds: a billion instructions are some seconds of emulation.
SECONDS = 0.3
IN_MASK = 0xFFF


@dataclass(frozen=True)
class KernelCost:
    """Instructions per operation on a tmpfs, without the series and with it.

    watched: whether inotify watches the directory and the file.
    """

    operation: Operation
    watched: bool
    before: float
    after: float


def measure(base: Environment, patched: Environment, programs: Programs) -> list[KernelCost]:
    """Measure each operation on both kernels, not watched and watched."""
    before = counted(base, programs)
    after = counted(patched, programs)
    return [KernelCost(*key, before[key], after[key]) for key in before]


def counted(environment: Environment, programs: Programs) -> dict[tuple[Operation, bool], float]:
    """Return the instructions per operation, by operation and whether it is watched."""
    with contextlib.ExitStack() as stack:
        share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farwatch-bench-")))
        environment = dataclasses.replace(environment, accelerator=Accelerator.TCG)
        spec = dataclasses.replace(
            environment.testbed_spec("kernel-cost", share), qemu_options=ICOUNT
        )
        with step(f"counting instructions: {environment.kernel.title}"):
            testbed = stack.enter_context(start_testbed(spec))
            testbed.guest.shell(
                f"mkdir {DIRECTORY} && mount -t tmpfs none {DIRECTORY} && cd {DIRECTORY} &&"
                f" mkdir list && touch name && head -c {DATA_BYTES} /dev/zero > data"
            )
            chosen = [operation for operation in OPERATIONS if operation.key in MEASURED]
            found = {(each, False): instructions(testbed, programs, each) for each in chosen}
            with testbed.guest.inotify() as listener:
                for name in ("", "/data", "/name"):
                    listener.add(f"{DIRECTORY}{name}", IN_MASK)
                # The queue is full soon: what is counted is the same for each event from then on.
                for each in chosen:
                    found[each, True] = instructions(testbed, programs, each)
        return found


def instructions(testbed: Testbed, programs: Programs, operation: Operation) -> float:
    """Return the instructions of one operation. HarnessError: it failed in the guest."""
    done = testbed.guest.run(programs.operations, DIRECTORY, str(SECONDS), operation.key, limit=120)
    if done.status or done.timed_out:
        raise HarnessError(f"{operation.title} on a tmpfs: {done.stderr.strip() or done.status}")
    count, taken = done.stdout.split()
    return float(taken) * 1e9 / int(count)
