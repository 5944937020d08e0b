# SPDX-License-Identifier: Apache-2.0
"""A run with simulated checks: the results that it writes, its summary and its table."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix import run as matrix_run
from farwatch_harness.matrix.check_outcome import CheckOutcome, failure
from farwatch_harness.matrix.estimates import Estimates
from farwatch_harness.matrix.live_table import Caption, LiveTable
from farwatch_harness.matrix.prefixes import Prefix, select_prefixes
from farwatch_harness.matrix.run import ResultWriter, summary
from farwatch_harness.results import CheckName, Run, Status, TestResult, load
from farwatch_harness.util.errors import HarnessError
from rich.console import Console

SERIES = tuple(
    Patch(number, f"000{number}-the-patch.patch", b"Subject: a\n\nb\n---\n", name="the-patch")
    for number in (1, 2, 3)
)
NAMES = list(CheckName)
CheckRunner = Callable[[Prefix], CheckOutcome]


@pytest.fixture
def estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Estimates:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "farwatch_harness.matrix.estimates.has_cached_kernel", lambda prefix: prefix.number == 1
    )
    return Estimates(select_prefixes(SERIES, None))


def run_of(path: Path, estimates: Estimates, step: CheckRunner, choice: str | None = None) -> Run:
    prefixes = select_prefixes(SERIES, choice)
    keeping = ResultWriter(
        LiveTable(prefixes, NAMES, estimates),
        estimates,
        path,
        {"kernel": "linux"},
        lambda: {"qemu": "11"},
    )
    return keeping.run_all(prefixes, dict.fromkeys(NAMES, step), "linux")


def outcome_of(prefix: Prefix) -> CheckOutcome:
    """Return the same outcome for a prefix each time."""
    test = TestResult("test_a", 0, Status.PASSED, 1.0)
    return (
        failure("Oops")
        if prefix.number == 2
        else CheckOutcome(seconds=1.0, tests=(test,), logs={"console": "text"})
    )


def without_times(run: Run) -> Run:
    checks = [tuple(replace(check, seconds=0.0) for check in patch.checks) for patch in run.patches]
    patches = tuple(
        replace(patch, checks=cells) for patch, cells in zip(run.patches, checks, strict=True)
    )
    return replace(run, started="", finished="", patches=patches)


def test_results_file_has_the_results_of_the_run(tmp_path: Path, estimates: Estimates) -> None:
    path = tmp_path / "report" / "results.json"
    run = run_of(path, estimates, outcome_of)
    assert load(path) == run
    assert [patch.number for patch in run.patches] == [0, 1, 2, 3]
    assert run.environment == {"kernel": "linux", "qemu": "11"}
    assert [check.status for check in run.patches[2].checks][:2] == [Status.FAILED, Status.FAILED]


def test_patches_are_in_order_though_guests_finish_after_builds(
    tmp_path: Path, estimates: Estimates, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates.cached_kernels = {0, 1, 2, 3}
    written: list[list[int]] = []
    monkeypatch.setattr(
        matrix_run,
        "save",
        lambda run, path: written.append([prefix.number for prefix in run.patches]),
    )
    run_of(tmp_path / "results.json", estimates, outcome_of)
    assert len(written) == 28 and written[-1] == [0, 1, 2, 3]
    assert all(numbers == sorted(numbers) for numbers in written)


@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_killed_run_leaves_its_results_and_the_next_run_is_complete(
    tmp_path: Path, estimates: Estimates, stop: int
) -> None:
    path = tmp_path / "results.json"
    clean = without_times(run_of(path, estimates, outcome_of))
    asked = 0

    def killed(prefix: Prefix) -> CheckOutcome:
        nonlocal asked
        asked += 1
        if asked > stop:
            raise KeyboardInterrupt
        return outcome_of(prefix)

    with pytest.raises(KeyboardInterrupt):
        run_of(path, estimates, killed)
    assert path.exists() == (stop > 0)
    if stop:
        assert load(path).patches[0].checks
    assert without_times(run_of(path, estimates, outcome_of)) == clean


def test_summary_names_patch_and_check_of_each_failure_and_exit_status_is_1(
    tmp_path: Path,
    estimates: Estimates,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(tmp_path / "results.json", estimates, outcome_of, "1-2")
    assert summary(run) == [
        "FAILED 0002 the-patch: apply: Oops",
        "FAILED 0002 the-patch: checkpatch: Oops",
        "13 checks passed, 2 failed, 4 blocked; 13 tests passed on 3 kernels",
    ]
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *arguments: run)
    assert matrix_run.matrix(tmp_path, None, NAMES, tmp_path / "results.json") == 1
    assert "FAILED 0002 the-patch: apply: Oops" in capsys.readouterr().out
    good = run_of(tmp_path / "results.json", estimates, outcome_of, "1")
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *arguments: good)
    assert matrix_run.matrix(tmp_path, None, NAMES, tmp_path / "results.json") == 0


def test_second_run_in_one_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farwatch_harness.util.paths.REPORT", tmp_path)
    with (
        matrix_run.exclusive_run(),
        pytest.raises(HarnessError, match="another run"),
        matrix_run.exclusive_run(),
    ):
        pass
    with matrix_run.exclusive_run():
        pass


def test_estimates_use_recorded_times(tmp_path: Path, estimates: Estimates) -> None:
    prefix = select_prefixes(SERIES, "3")[1]
    before = estimates.seconds(prefix, CheckName.TESTS)
    estimates.record(prefix, CheckName.TESTS, 321.0)
    again = Estimates(select_prefixes(SERIES, None))
    assert before != 321.0 == again.seconds(prefix, CheckName.TESTS)
    built, fresh = select_prefixes(SERIES, "1-2")[1:]
    assert again.seconds(built, CheckName.BUILD) < again.seconds(fresh, CheckName.BUILD)


def test_table_shows_all_patches_and_the_check_in_progress(
    tmp_path: Path, estimates: Estimates
) -> None:
    prefixes = select_prefixes(SERIES, None)
    display = LiveTable(prefixes, NAMES, estimates)
    display.live = None
    ResultWriter(display, estimates, tmp_path / "r.json", {}, dict).run_all(
        prefixes[:3], dict.fromkeys(NAMES, outcome_of), "linux"
    )
    Caption(display).write("\r\x1b[K  building: 7 of 9 steps\n")
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(display.table())
    lines = capture.get().splitlines()
    assert any("the-patch" in line and line.count("✗") == 2 for line in lines)
    assert sum(line.count("✓") for line in lines) == 13
    assert "building: 7 of 9 steps" in lines[-1] and "left" in lines[0]
