# SPDX-License-Identifier: Apache-2.0
"""A run of the matrix with made-up checks: what it leaves when it is ended, and how it says that it
failed."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix import run as matrix_run
from farwatch_harness.matrix.check_outcome import Outcome, failure
from farwatch_harness.matrix.estimates import Forecast
from farwatch_harness.matrix.live_table import Caption, Display
from farwatch_harness.matrix.prefixes import Row, rows_of
from farwatch_harness.matrix.run import Keeping, summary
from farwatch_harness.results import CheckName, Run, State, TestResult, load
from farwatch_harness.util.errors import HarnessError
from rich.console import Console

SERIES = tuple(
    Patch(number, f"000{number}-the-patch.patch", b"Subject: a\n\nb\n---\n") for number in (1, 2, 3)
)
NAMES = list(CheckName)
Step = Callable[[Row], Outcome]


@pytest.fixture
def forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("farwatch_harness.matrix.estimates.is_kept", lambda row: row.number == 1)
    return Forecast(rows_of(SERIES, None))


def run_of(path: Path, forecast: Forecast, step: Step, choice: str | None = None) -> Run:
    rows = rows_of(SERIES, choice)
    keeping = Keeping(
        Display(rows, NAMES, forecast), forecast, path, {"kernel": "linux"}, lambda: {"qemu": "11"}
    )
    return keeping.walked(rows, dict.fromkeys(NAMES, step), "linux")


def found(row: Row) -> Outcome:
    """What is found of every row, the same each time."""
    test = TestResult("test_a", 0, State.PASSED, 1.0)
    return (
        failure("Oops")
        if row.number == 2
        else Outcome(seconds=1.0, tests=(test,), logs={"console": "text"})
    )


def timeless(run: Run) -> Run:
    checks = [tuple(replace(check, seconds=0.0) for check in patch.checks) for patch in run.patches]
    patches = tuple(
        replace(patch, checks=cells) for patch, cells in zip(run.patches, checks, strict=True)
    )
    return replace(run, started="", finished="", patches=patches)


def test_the_results_are_those_that_were_found(tmp_path: Path, forecast: Forecast) -> None:
    path = tmp_path / "report" / "results.json"
    run = run_of(path, forecast, found)
    assert load(path) == run
    assert [patch.number for patch in run.patches] == [0, 1, 2, 3]
    assert run.facts == {"kernel": "linux", "qemu": "11"}
    assert [check.state for check in run.patches[2].checks][:2] == [State.FAILED, State.FAILED]


def test_rows_are_in_order_though_guests_end_later_than_builds(
    tmp_path: Path, forecast: Forecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast.kept = {0, 1, 2, 3}
    written: list[list[int]] = []
    monkeypatch.setattr(
        matrix_run, "save", lambda run, path: written.append([row.number for row in run.patches])
    )
    run_of(tmp_path / "results.json", forecast, found)
    assert len(written) == 24 and written[-1] == [0, 1, 2, 3]
    assert all(numbers == sorted(numbers) for numbers in written)


@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_a_run_that_is_killed_leaves_what_it_found_and_the_next_is_as_a_clean_one(
    tmp_path: Path, forecast: Forecast, stop: int
) -> None:
    path = tmp_path / "results.json"
    clean = timeless(run_of(path, forecast, found))
    asked = 0

    def killed(row: Row) -> Outcome:
        nonlocal asked
        asked += 1
        if asked > stop:
            raise KeyboardInterrupt
        return found(row)

    with pytest.raises(KeyboardInterrupt):
        run_of(path, forecast, killed)
    assert path.exists() == (stop > 0)
    if stop:
        assert load(path).patches[0].checks
    assert timeless(run_of(path, forecast, found)) == clean


def test_the_end_names_patch_and_check_of_each_failure_and_the_status_says_so(
    tmp_path: Path,
    forecast: Forecast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(tmp_path / "results.json", forecast, found, "1-2")
    assert summary(run) == [
        "FAILED 0002-the-patch: apply: Oops",
        "FAILED 0002-the-patch: checkpatch: Oops",
        "12 checks passed, 2 failed, 4 blocked; 12 tests passed on 3 kernels",
    ]
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *arguments: run)
    assert matrix_run.matrix(tmp_path, None, NAMES, tmp_path / "results.json") == 1
    assert "FAILED 0002-the-patch: apply: Oops" in capsys.readouterr().out
    good = run_of(tmp_path / "results.json", forecast, found, "1")
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *arguments: good)
    assert matrix_run.matrix(tmp_path, None, NAMES, tmp_path / "results.json") == 0


def test_two_runs_in_one_checkout_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farwatch_harness.util.paths.REPORT", tmp_path)
    with (
        matrix_run.alone(),
        pytest.raises(HarnessError, match="another run"),
        matrix_run.alone(),
    ):
        pass
    with matrix_run.alone():
        pass


def test_the_time_that_is_left_is_learned(tmp_path: Path, forecast: Forecast) -> None:
    row = rows_of(SERIES, "3")[1]
    before = forecast.seconds(row, CheckName.TESTS)
    forecast.learn(row, CheckName.TESTS, 321.0)
    again = Forecast(rows_of(SERIES, None))
    assert before != 321.0 == again.seconds(row, CheckName.TESTS)
    built, fresh = rows_of(SERIES, "1-2")[1:]
    assert again.seconds(built, CheckName.BUILD) < again.seconds(fresh, CheckName.BUILD)


def test_the_table_has_all_rows_and_what_goes_on(tmp_path: Path, forecast: Forecast) -> None:
    rows = rows_of(SERIES, None)
    display = Display(rows, NAMES, forecast)
    display.live = None
    Keeping(display, forecast, tmp_path / "r.json", {}, dict).walked(
        rows[:3], dict.fromkeys(NAMES, found), "linux"
    )
    Caption(display).write("\r\x1b[K  building: 7 of 9 steps\n")
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(display.table())
    lines = capture.get().splitlines()
    assert any("the patch" in line and line.count("✗") == 2 for line in lines)
    assert sum(line.count("✓") for line in lines) == 12
    assert "building: 7 of 9 steps" in lines[-1] and "left" in lines[0]
