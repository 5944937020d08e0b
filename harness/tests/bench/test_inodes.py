# SPDX-License-Identifier: Apache-2.0
"""The measurement of the daemon with many inodes works; its figures are not tested."""

from pathlib import Path

import pytest
from farwatch_harness.bench import bench_report, inodes
from farwatch_harness.util.errors import HarnessError
from farwatchd.wire.fsnotify import Event


@pytest.mark.root
def test_inodes_are_looked_up_watched_measured_and_forgotten() -> None:
    (cost,) = inodes.measure([1200])
    assert cost.count == 1200
    times = (
        cost.getattr_hot,
        cost.getattr,
        cost.lookup,
        cost.open,
        cost.set_mask,
        cost.event,
        cost.renew,
        cost.end,
    )
    assert all(0 < time < 100_000 for time in times)
    assert cost.bytes_known > 0
    assert bench_report.inodes_table([cost]).row_count == 1


@pytest.mark.root
def test_missing_event_ends_the_measurement(tmp_path: Path) -> None:
    inodes.make_files(tmp_path, 3)
    served = inodes.WatchedShare(tmp_path)
    served.know(3)
    served.watch(served.nodeids[0], Event.ATTRIB)
    assert served.event_us([0]) > 0
    with pytest.raises(HarnessError, match="2 events were caused, 1 reported"):
        served.event_us([0, 1])
