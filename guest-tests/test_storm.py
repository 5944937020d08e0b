# SPDX-License-Identifier: Apache-2.0
"""The host creates, changes, moves and deletes a thousand files; inotifywait misses no event.

inotifywait is Debian's, in the guest.
"""

from collections import Counter
from pathlib import Path

import pytest
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

pytestmark = pytest.mark.patch("notifications")

FILES = 1000
#: Tables and the allocator's pools grow to the size that they keep, which is that of the longest
#: backlog: in a slow guest the whole storm. They have it after six rounds at the latest; the last
#: two that are looked at must be quiet.
FEWEST_ROUNDS, MOST_ROUNDS = 3, 10
#: What each file goes through, as inotifywait names it; only MODIFY may come more than once.
EXPECTED = ("CREATE", "MODIFY", "CLOSE_WRITE,CLOSE", "MOVED_FROM", "MOVED_TO", "DELETE")
#: Growth in two rounds that is no leak. A record kept for each event, 300 bytes, would be over 3
#: MiB, in any two.
MAX_GROWTH = 2 * 1024 * 1024


def storm(directory: Path) -> None:
    for number in range(FILES):
        file = directory / f"file {number}"
        file.write_text("content")
        moved = file.rename(directory / f"moved {number}")
        moved.unlink()


@pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)
def test_a_storm_loses_no_event_and_leaves_no_memory(
    testbed: Testbed, guest: Guest, share: Share
) -> None:
    below = share.host / "sub" / "dir"
    below.mkdir(parents=True)
    since = testbed.daemon.log_length
    program = guest.spawn("inotifywait", "-m", "-r", "--format", "%e %f", str(share.guest))
    program.lines(until="Watches established")
    memory: list[int] = []
    for number in range(MOST_ROUNDS):
        storm(below)
        (below / f"end {number}").touch()
        lines = program.lines(until=f"CLOSE_WRITE,CLOSE end {number}", limit=120.0)
        counts = Counter(lines)
        for file in range(FILES):
            for event in EXPECTED:
                name = f"moved {file}" if event in ("MOVED_TO", "DELETE") else f"file {file}"
                found = counts[f"{event} {name}"]
                assert found == 1 or (event == "MODIFY" and found > 1), (
                    f"{event} {name}: {found} times"
                )
        memory.append(testbed.daemon.resident_bytes())
        if len(memory) >= FEWEST_ROUNDS and memory[-1] - memory[-3] < MAX_GROWTH:
            break
    else:
        pytest.fail(f"the daemon grows and grows: {memory}")
    program.stop()
    assert testbed.daemon.warnings(since) == []
