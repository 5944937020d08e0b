# SPDX-License-Identifier: Apache-2.0
"""The comparison of a run of the benchmark with the recorded one."""

from pathlib import Path

import pytest
from farwatch_harness.bench import bench_report, recorded, run
from farwatch_harness.bench.bench_report import RatioChange
from farwatch_harness.util.errors import HarnessError
from tests.support import report_records as records


def test_ratios_are_greater_when_ours_is_better() -> None:
    ratios = recorded.ratios_of(records.bench())
    assert ratios["in a guest, getattr, ours / C"] == 1.0
    assert ratios["in a guest, getattr per CPU time, ours / Rust"] == 1.0
    assert ratios["without a guest, getattr per CPU time, ours / C"] == 1.0
    assert "without a guest, getattr, ours / C" not in ratios
    assert ratios["events, mode others, getattr / latency"] == pytest.approx(230 / 240)
    assert ratios["events, mode remote, per second / native"] == pytest.approx(8000 / 10_000)


def test_what_lost_more_than_a_tenth_is_worse_and_the_worst_comes_first() -> None:
    before = {"a": 1.0, "b": 1.0, "c": 2.0, "gone": 1.0}
    now = {"a": 0.91, "b": 0.89, "c": 1.0, "new": 0.1}
    assert recorded.worse(now, before) == [RatioChange("c", 2.0, 1.0), RatioChange("b", 1.0, 0.89)]


def test_machines_of_one_class_have_one_file() -> None:
    path = recorded.record_path(records.bench().environment)
    assert path.name == "2-cpu.json"


def test_recorded_run_is_compared_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorded, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(run, "CHECKOUT", tmp_path)
    report = records.bench()
    run.compare_with_recorded(report, record=True)
    run.compare_with_recorded(report, record=False)
    output = capsys.readouterr()
    assert "no run on such a machine is recorded" in output.err
    assert f"None of {len(recorded.ratios_of(report))} ratios is worse" in output.out
    bench_report.show_changes([RatioChange("a ratio", 1.0, 0.5)], 1, "then")
    assert "a ratio" in capsys.readouterr().out


def test_record_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(HarnessError, match="is not a recorded run"):
        recorded.load(tmp_path / "run.json")
    assert recorded.load(tmp_path / "none.json") is None
