# SPDX-License-Identifier: Apache-2.0
"""`make clients`: what a watcher reports is collected step by step, and compared."""

import sys
from pathlib import Path

import pytest
from farwatch_harness.clients import run, scenario
from farwatch_harness.clients.catalog import DIRECTORY, WatchProgram
from farwatch_harness.util.errors import HarnessError

#: Prints the names in a directory when they have changed.
POLLING = """
import os, sys, time
seen = set(os.listdir(sys.argv[1]))
print("READY", flush=True)
while True:
    now = set(os.listdir(sys.argv[1]))
    for name in sorted(now - seen):
        print("+", f"{sys.argv[1]}/{name}", flush=True)
    seen = now
    time.sleep(0.01)
"""


def client(code: str) -> WatchProgram:
    return WatchProgram("polling", (sys.executable, "-c", code, DIRECTORY), lambda: "1")


def test_report_has_the_lines_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "QUIET", 0.5)
    report = run.native_report(client(POLLING), tmp_path / "directory")
    assert list(report) == [step.name for step in scenario.STEPS]
    assert report["create"] == ("+ DIR/new.txt",)
    assert report["rename"] == ("+ DIR/renamed.txt",)
    assert report["delete"] == ()
    assert len(report[f"{scenario.MANY} files"]) == scenario.MANY


def test_watcher_that_ends_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="polling does not watch; it said: no such thing"):
        run.native_report(client("print('no such thing')"), tmp_path / "directory")


def test_lines_that_native_runs_had_are_awaited(tmp_path: Path) -> None:
    scenario.prepare(tmp_path)
    # Nothing comes within the time after which a faster watcher has reported all of the first step.
    said = iter(["READY", None, None, None, "late", None])
    first, *others = (step.name for step in scenario.STEPS)
    wanted: run.Report = {first: ("late",), **dict.fromkeys(others, ())}
    report = run.observe(client(""), tmp_path, "DIR", 0, lambda _limit: next(said, None), wanted)
    assert report == wanted


def test_step_that_no_native_run_reported_so_is_a_difference() -> None:
    native: list[run.Report] = [{"a": ("1", "x"), "b": ("2",)}, {"a": ("1", "y"), "b": ("2",)}]
    assert run.differences(native, {"a": ("1",), "b": ("2",)}) == {}
    assert run.differences(native, {"a": ("1", "x", "y"), "b": ("2",)}) == {}
    assert run.differences(native, {"a": ("x",), "b": ("2",)}) == {"a": (("1",), ())}
    assert run.differences(native, {"a": ("1",), "b": ("2", "3")}) == {"b": ((), ("3",))}


def test_table_names_the_steps_that_differ() -> None:
    outcomes = [
        run.Outcome("one", "1.0", {}),
        run.Outcome("two", "2.0", {"edit": run.Difference((), ("x",))}),
    ]
    assert run.table(outcomes).splitlines()[2:] == [
        "| one | 1.0 | as natively |",
        "| two | 2.0 | different: edit |",
    ]


def test_path_order_and_number_of_lines_do_not_count() -> None:
    lines = ["change /share/1/b", "", "change /share/1/a ", "change /share/1/b"]
    assert run.normalized(lines, "/share/1") == ("change DIR/a", "change DIR/b")
