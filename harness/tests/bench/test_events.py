# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, and its measurements of this machine; no figures are tested."""

import argparse
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.bench import (
    bench_report,
    event_readers,
    events,
    operations,
    programs,
    run,
    storms,
)
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.virtiofs_daemon import watches_of

EVENTS = 100


def plan(*words: str) -> run.BenchmarkPlan:
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    return run.plan_of(parser.parse_args(words))


def lines(values: list[int], *last: str) -> list[str]:
    return [*map(str, values), *last]


def test_latency_is_the_difference_of_the_counters_less_their_offset() -> None:
    # The guest's counter is 5000 to 5200 ahead; a tick is half a microsecond.
    calls = [1_000_000 * n for n in range(events.WARM_UP + EVENTS)]
    latencies = [9_000_000] * events.WARM_UP + [2000 + 2 * n for n in range(EVENTS)]
    returns = [call + 5100 + taken for call, taken in zip(calls, latencies, strict=True)]
    found = events.latency_of(
        "others",
        lines(calls, "bound 5000", "rate 2000000"),
        lines(returns, "bound 5200"),
        lines([99] * events.WARM_UP + [400] * EVENTS),
    )
    assert found.count == EVENTS
    assert found.median == pytest.approx(1000 + 49.5)
    assert found.p99 == pytest.approx(1098.99)
    assert found.p999 == pytest.approx(1099.9)
    assert found.error == pytest.approx(50)
    assert found.getattr == pytest.approx(200)


def test_counters_that_drift_are_refused() -> None:
    values = [0] * (events.WARM_UP + EVENTS)
    with pytest.raises(HarnessError, match="drift"):
        events.latency_of(
            "others",
            lines(values, "bound 5", "rate 1000000"),
            lines(values, "bound 3"),
            lines(values),
        )


def test_events_of_the_host_itself_are_measured(tmp_path: Path) -> None:
    place = event_readers.NativePlace(tmp_path, run.page_file(tmp_path))
    compiled = programs.compiled()
    found = events.latency(place, compiled, EVENTS)
    assert (found.mode, found.count) == ("native", EVENTS)
    # On a busy machine the clocks are known less exactly than a native event takes.
    assert -found.error < found.median <= found.p99 <= found.p999
    # Both counters are the same one, and its offset is known to be about 0.
    assert 0 <= found.error < 1000
    burst = events.batch(place, compiled, "burst", 50, None)
    assert (burst.arrived, burst.lost, burst.cpu_us) == (50, False, 0.0)


def test_ratio_compares_rounds_and_least_ratio_compares_minima() -> None:
    assert bench_report.ratio([1.0, 20.0, 3.0], [2.0, 40.0, 3.0]) == 0.5
    assert bench_report.least_ratio([4.0, 9.0], [8.0, 2.0]) == 2.0


def test_all_parts_are_measured_by_default() -> None:
    assert plan().parts == frozenset(run.Part)
    assert plan("--only", "latency", "--only", "watches").parts == {
        run.Part.LATENCY,
        run.Part.WATCHES,
    }


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--seconds", "0"], ["--events", "1"], ["--watches", "5", "0"]]
)
def test_numbers_out_of_range_are_refused(words: list[str]) -> None:
    with pytest.raises(HarnessError, match="positive"):
        plan(*words)


def test_marks_of_a_process_are_counted() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    before = watches_of(os.getpid())
    fd = libc.inotify_init1(os.O_CLOEXEC)
    for path in (b"/", b"/proc", b"/dev"):
        assert libc.inotify_add_watch(fd, path, ctypes.c_uint32(2)) > 0
    assert watches_of(os.getpid()) - before == 3
    os.close(fd)
    assert watches_of(os.getpid()) == before


def test_cpu_time_of_a_group_includes_children() -> None:
    before = operations.cpu_ns_of(os.getpgid(0))
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        used = operations.cpu_ns_of(os.getpgid(0)) - before
        child.kill()
    assert used > 1_000_000


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """Yield a directory that supports O_DIRECT, which tmpfs does only since Linux 6.6."""
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.LOGS) as name:
        yield Path(name)


def test_every_operation_runs(on_disk: Path) -> None:
    program = programs.compiled().operations
    operations.fill(on_disk)
    for operation in operations.OPERATIONS:
        done = subprocess.run(
            [program, on_disk, "0.01", operation.key],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        count, seconds = done.stdout.split()
        assert int(count) >= 1
        assert float(seconds) >= 0.01
    assert sorted(entry.name for entry in on_disk.iterdir()) == ["data", "list", "name"]


def test_files_are_created_in_order_and_at_the_given_rate(tmp_path: Path) -> None:
    taken = events.create_files(tmp_path, 20, 200.0)
    assert taken >= 19 / 200 - events.TICK
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"f{n:06}" for n in range(20)]


def test_storms_are_measured_with_a_watcher_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("CHANGED", 120), ("INSTALLED", 150), ("BUILT", 20)):
        monkeypatch.setattr(storms, name, count)
    monkeypatch.setattr(storms, "LOG_SECONDS", 0.05)
    place = event_readers.NativePlace(tmp_path, run.page_file(tmp_path))
    found = storms.measure(place, programs.compiled())
    assert [cost.storm for cost in found] == [storm.title for storm in storms.STORMS]
    # As many files are written, made or removed. A new directory is watched only after its first
    # files were made, so that of the installed files any number can be missed. The equal events of
    # the log are coalesced while the watcher does not read.
    for cost, least in zip(found, (120, 1, 150, 20, 0), strict=True):
        assert (cost.mode, cost.overflows, cost.cpu_s) == ("native", 0, 0.0)
        assert cost.events > least
    unwatched = storms.measure_unwatched(tmp_path)
    assert [cost.storm for cost in unwatched] == [cost.storm for cost in found]
    assert list(tmp_path.iterdir()) == [tmp_path / "page"]
