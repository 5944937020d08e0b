# SPDX-License-Identifier: Apache-2.0
"""Several CPUs with a request queue each; replies in another order than the requests."""

import hashlib
import re
from typing import Any

import pytest
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("base"), pytest.mark.daemon]

LIMIT = 300.0
CPUS = 2
FILES = 12
#: Write files and sync them, read them without a cache, list and remove them.
WORK = """
mkdir $0; cd $0
for number in $(seq FILES); do
    seq -f "$0 $number %g" 20000 > $number
    sync $number
    echo 1 > /proc/sys/vm/drop_caches
    md5sum < $number >> sums
    ls -l > /dev/null
    cp $number copy; truncate -s 1000 copy; fallocate -l 100000 copy; sync -d copy; rm copy
done
"""


def requests_by_queue(testbed: Testbed) -> dict[int, int]:
    """Return how often each request queue has interrupted the guest."""
    found = re.findall(
        r"^ *\d+:((?: +\d+)+) .*-requests\.(\d+)$",
        testbed.guest.shell("cat /proc/interrupts"),
        re.M,
    )
    return {int(queue): sum(map(int, counts.split())) for counts, queue in found}


def test_each_cpu_uses_its_own_request_queue(boot: Any) -> None:
    options = "--num-request-queues=2", "--fsnotify=off"
    testbed: Testbed = boot(
        cpus=CPUS, request_queues=CPUS, device=QemuDevice.PLAIN, daemon_options=options
    )
    before = requests_by_queue(testbed)
    assert len(before) == CPUS
    work = WORK.replace("FILES", str(FILES))
    commands = "".join(
        f"taskset -c {number} sh -ec '{work}' process{number} & " for number in range(CPUS)
    )
    testbed.guest.shell(f"cd {testbed.mount_point}; {commands} wait", limit=LIMIT)
    after = requests_by_queue(testbed)
    assert all(after[queue] > before[queue] for queue in after)
    for number in range(CPUS):
        at = testbed.shared / f"process{number}"
        sums = (at / "sums").read_text().split()[::2]
        assert sums == [
            hashlib.md5((at / f"{file}").read_bytes()).hexdigest() for file in range(1, FILES + 1)
        ]
        assert {path.name for path in at.iterdir()} == {"sums", *map(str, range(1, FILES + 1))}
