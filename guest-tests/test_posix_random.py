# SPDX-License-Identifier: Apache-2.0
"""Random reads, writes, mappings and changes of size agree with a model in memory.

The host finds the same content. FARWATCH_SEED=N changes the operations, FARWATCH_EXAMPLES=N their
number.
"""

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("base"), pytest.mark.daemon]

PROGRAM = Path(__file__).parent / "posix_cases" / "random_io.py"
SEED = int(os.environ.get("FARWATCH_SEED", "1"))
STEPS = int(os.environ.get("FARWATCH_EXAMPLES", "1500"))
#: Seconds for all steps: an emulated guest on a busy machine does at least ten per second.
LIMIT = 60.0 + STEPS / 10
CACHED = ("buffered", "mapped", "direct", "sizes", "space", "copy", "again")
CONFIGURATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "auto": (("--allow-direct-io",), CACHED),
    "writeback": (("--cache=always", "--writeback", "--allow-direct-io"), CACHED),
    "never": (
        ("--cache=never", "--allow-direct-io"),
        tuple(way for way in CACHED if way != "mapped"),
    ),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_random_operations_agree_with_a_model(configuration: str, boot: Any) -> None:
    options, ways = CONFIGURATIONS[configuration]
    testbed: Testbed = boot(daemon_options=options)
    file = testbed.mount_point / "file"
    words = (
        sys.executable,
        "-I",
        "-S",
        "-B",
        str(PROGRAM),
        str(file),
        str(SEED),
        str(STEPS),
        *ways,
    )
    done = testbed.guest.run(*words, limit=LIMIT)
    assert not done.timed_out
    assert done.status == 0, done.stderr
    testbed.guest.shell("sync")
    content = (testbed.shared / "file").read_bytes()
    assert done.stdout.split() == ["agrees", str(len(content)), f"{zlib.crc32(content):08x}"]
