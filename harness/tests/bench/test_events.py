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
from farwatch_harness.bench import bench_report, events, operations, programs, run
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.virtiofs_daemon import watches_of

EVENTS = 100


def plan(*words: str) -> run.BenchmarkPlan:
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    return run.plan_of(parser.parse_args(words))


def test_latency_is_round_trip_without_the_guests_part() -> None:
    count = events.WARM_UP + EVENTS
    trips = [9_000_000] * events.WARM_UP + [1000_000 + 1000 * n for n in range(EVENTS)]
    found = events.latency_of("others", trips, [(100_000, 200_000)] * count)
    assert found.count == EVENTS
    assert found.median == pytest.approx(1000 + 49.5 - 100 - 100)
    assert found.p99 == pytest.approx(898, abs=1.5)
    assert found.error == pytest.approx(100)
    assert found.round_trip == pytest.approx(1049.5)


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
    programs.TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=programs.TARGET) as name:
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
