# SPDX-License-Identifier: Apache-2.0
"""JUnit, KTAP, and the parts of the page: texts, diffs, plots, events."""

import dataclasses
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatch_harness import cli, report, results
from farwatch_harness.bench import bench_report
from farwatch_harness.bench import run as bench_run
from farwatch_harness.report import (
    benchmark,
    diff,
    event_table,
    junit,
    ktap,
    message,
    page,
    plots,
    text,
)
from farwatch_harness.results import CheckName, CheckResult, Run, Status, TestResult
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError
from farwatchd.wire.fsnotify import Event
from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite
from tests.support import report_records as records

RUNS = pytest.mark.parametrize(
    "make",
    [
        records.green,
        records.build_error,
        records.checkpatch_error,
        records.lost_event,
        records.hostile,
    ],
)
Make = Callable[[], Run]


# Text


def test_escape_sequences_are_removed_and_control_characters_shown() -> None:
    shown = text.clean(records.HOSTILE)
    assert "error: red link " in shown
    assert "nul ␀ bell ␇ delete ␡ next line \ufffd lone \ufffd \ufffd none \ufffd" in shown
    assert "turned <U+202E>round<U+202C>\nover\nwritten\n" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", shown)


def test_harmless_cleans_every_string_of_a_run() -> None:
    run = text.harmless(records.hostile())
    assert "\x1b" not in json.dumps(dataclasses.asdict(run), ensure_ascii=False)
    assert run.patches[1].checks[2].status is Status.FAILED
    assert run.patches[0] == records.hostile().patches[0]


def test_excerpt_of_a_long_text_has_its_ends_and_the_size_of_the_rest() -> None:
    lines = [f"line {number}" for number in range(10_000)]
    found = text.excerpt("\n".join(lines), 8000)
    head, tail = found.head.split("\n"), found.tail.split("\n")
    assert head == lines[: len(head)]
    assert tail == lines[-len(tail) :]
    missing = len("\n".join(lines)) - len(found.head) - len(found.tail)
    assert (
        found.left_out
        == f"{missing / 1000:.0f} kB, 9\u202f{10_000 - len(head) - len(tail) - 9000} lines"
    )
    assert len(found.head) + len(found.tail) <= 8000
    assert text.excerpt("short\n", 8000) == text.Excerpt("short")


def test_excerpt_cuts_a_very_long_line() -> None:
    found = text.excerpt("x" * 100_000, 1000)
    assert len(found.head) + len(found.tail) == 1000
    assert found.left_out == "99 kB, 0 lines"


def test_message_blocks_are_paragraphs_items_code_and_trailers() -> None:
    code = "It is:\n\n    int\n    main\n"
    found = [
        (block.kind.value, block.sign, block.text)
        for block in message.blocks(code + "\n" + records.MESSAGE)
    ]
    assert found == [
        ("text", "", "It is:"),
        ("lines", "", "    int\n    main"),
        (
            "text",
            "",
            "A file system whose files change on a server has to know what its users watch.",
        ),
        ("item", "-", "one thing, which goes on in the next line"),
        ("item", "-", "another"),
        (
            "lines",
            "",
            "Link: https://lore.kernel.org/r/1\nSigned-off-by: A U Thor <author@example.org>",
        ),
    ]


def test_diff_is_split_into_files() -> None:
    makefile, source = diff.files_of(records.DIFF)
    assert (makefile.name, makefile.added, makefile.removed) == ("fs/fuse/Makefile", 1, 1)
    assert (source.name, source.added, source.removed) == ("fs/fuse/fsnotify.c", 3, 0)
    assert '<span class="del">-fuse-y += old.o</span>' in makefile.html
    assert '<span class="add">+/* &lt;b&gt;&amp;amp; */</span>' in source.html
    moved = diff.files_of(
        "diff --git a/a.c b/b.c\nrename from a.c\nrename to b.c\n@@ -1 +1 @@\n-- a/c.c\n+++ b/d.c\n"
    )
    assert [(each.name, each.added, each.removed) for each in moved] == [("b.c", 1, 1)]
    gone = diff.files_of(
        "diff --git a/x.c b/x.c\ndeleted file\n--- a/x.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
    )
    assert [(each.name, each.removed) for each in gone] == [("x.c", 1)]


def test_table_of_events_has_each_bit_of_the_protocol_once() -> None:
    sent = [event.wire for event in event_table.EVENTS if event.wire]
    assert sorted(sent) == sorted(
        event.name or ""
        for event in Event
        if event not in (Event.ON_CHILD, Event.ISDIR, Event.WATCH_ENDED, Event.WATCHES_LOST)
    )
    assert {
        origin
        for event in event_table.EVENTS
        for origin in (*event.others, *event.remote, *event.off)
    } == {
        *event_table.ORIGINS,
        "",
    }


def test_page_starts_with_the_worst_status_and_its_patches() -> None:
    def overall(run: Run) -> tuple[Status, str]:
        return page.overall_result([page.row_of(patch) for patch in run.patches])

    assert overall(records.green()) == (Status.PASSED, "Passed: base to 0003")
    assert overall(records.build_error()) == (Status.FAILED, "Failed: 0001")
    blocked = dataclasses.replace(records.patch(1), checks=records.checks(boot=records.blocked()))
    assert overall(records.with_patch(records.green(), blocked)) == (
        Status.BLOCKED,
        "Incomplete: 0001",
    )
    without = dataclasses.replace(
        records.green(), patches=tuple(records.patch(number) for number in (0, 1, 3))
    )
    assert overall(without) == (Status.PASSED, "Passed: base, 0001, 0003")
    assert overall(dataclasses.replace(without, patches=())) == (Status.SKIPPED, "No check ran")


def test_scales_begin_and_end_at_round_numbers() -> None:
    scale = plots.log_scale([110.0, 5770.0], 100, 500)
    assert plots.round_numbers(scale) == pytest.approx([100, 200, 500, 1000, 2000, 5000, 10_000])
    assert (scale(100), scale(1000), scale(10_000)) == pytest.approx((100, 300, 500))
    assert plots.round_steps(41_000) == [0, 10_000, 20_000, 30_000, 40_000, 50_000]
    assert plots.round_steps(0) == pytest.approx([0, 0.2])


def test_plot_has_each_value_at_its_position() -> None:
    drawn = plots.latency(records.bench().latencies)
    scale = plots.log_scale([110.0, 5770.0], plots.LEFT, plots.WIDTH - plots.RIGHT)
    for value, words in (
        (240.0, "240 µs"),
        (110.0, "110 µs"),
        (5770.0, "5.77 ms"),
        (2311.0, "2.31 ms"),
    ):
        assert re.search(rf'<text x="{scale(value):.1f}"[^>]*>{words}<', drawn)


def test_page_shows_the_measured_parts_of_a_benchmark() -> None:
    whole = records.bench()
    only = bench_report.Report(whole.environment, (), (), whole.rates[:1], ())
    assert [(each.title.split(",")[0], bool(each.plot)) for each in benchmark.figures_of(only)] == [
        ("Measured on", False),
        ("File operations per second", False),
        ("CPU time of the daemon per operation", False),
    ]


# JUnit


def read_junit(run: Run) -> list[TestSuite]:
    """Return the suites as a common reader reads them."""
    found = JUnitXml.fromroot(JUnitXml.fromstring(junit.render(text.harmless(run)).encode())._elem)
    return list(found)


def state_of(case: TestCase) -> Status:
    if any(isinstance(entry, Failure) for entry in case.result):
        return Status.FAILED
    return (
        Status.BLOCKED
        if any(isinstance(entry, Skipped) for entry in case.result)
        else Status.PASSED
    )


@RUNS
def test_junit_has_a_suite_for_each_patch_with_its_checks_and_tests(make: Make) -> None:
    run = text.harmless(make())
    suites = read_junit(make())
    assert [suite.name for suite in suites] == [junit.title(patch) for patch in run.patches]
    for suite, patch in zip(suites, run.patches, strict=True):
        asked: list[CheckResult | TestResult] = [
            check for check in patch.checks if check.status is not Status.SKIPPED
        ]
        asked += patch.tests
        assert [(case.name, state_of(case)) for case in suite] == [
            (each.name, each.status) for each in asked
        ]
        statuses = [each.status for each in asked]
        assert (suite.tests, suite.failures, suite.errors) == (
            len(asked),
            statuses.count(Status.FAILED),
            0,
        )
        assert suite.skipped == statuses.count(Status.BLOCKED)
        assert suite.time == pytest.approx(sum(check.seconds for check in patch.checks))


def test_junit_failure_has_reason_and_output() -> None:
    cases = {case.name: case for case in read_junit(records.build_error())[1]}
    assert cases["build"].result[0].message == "fs/fuse/fsnotify.c:3:9: error: expected ';'"
    assert cases["build"].result[0].text == "make: *** Error 1"
    assert cases["boot"].result[0].message == "build failed"
    assert cases["apply"].system_out == "apply says\nok"
    failing = {case.name: case for case in read_junit(records.lost_event())[3]}[
        "test_host.py::test_of_1"
    ]
    assert failing.result[0].message == "test_host.py:7: AssertionError"
    assert "assert events == ['a']" in (failing.result[0].text or "")


# KTAP


@dataclass(frozen=True)
class Line:
    """A result of a KTAP document and those nested in it."""

    ok: bool
    name: str
    skipped: bool
    parts: list["Line"]
    output: list[str]


def read_ktap(source: io.StringIO, indent: str = "") -> tuple[str, list[Line]]:
    """Read one document strictly: version, name of the subtest, plan, results in order.

    Return name and results.
    """
    assert source.readline() == f"{indent}KTAP version 1\n"
    line = source.readline()
    named = re.fullmatch(rf"{indent}# Subtest: (.+)\n", line)
    planned = re.fullmatch(rf"{indent}1\.\.(\d+)\n", source.readline() if named else line)
    assert planned, line
    found: list[Line] = []
    nested: tuple[str, list[Line]] = ("", [])
    output: list[str] = []
    while len(found) < int(planned.group(1)):
        start = source.tell()
        line = source.readline()
        result = re.fullmatch(rf"{indent}(ok|not ok) (\d+) ([^#\n]+?)(?: # ([^\n]+))?\n", line)
        if line.startswith(f"{indent}  KTAP"):
            source.seek(start)
            nested = read_ktap(source, f"{indent}  ")
        elif result:
            assert int(result.group(2)) == len(found) + 1
            skipped = (result.group(4) or "").startswith("SKIP")
            point = Line(result.group(1) == "ok", result.group(3), skipped, nested[1], output)
            assert nested[0] in ("", point.name)
            assert point.ok or not skipped
            assert not point.ok or all(part.ok for part in point.parts)
            found.append(point)
            nested, output = ("", []), []
        else:
            assert line.startswith(f"{indent}#   ") or line == f"{indent}#\n", line
            output.append(line[len(indent) + 4 :].rstrip("\n"))
    return (named.group(1) if named else ""), found


def ktap_of(run: Run) -> list[Line]:
    source = io.StringIO(ktap.render(text.harmless(run)))
    found = read_ktap(source)[1]
    assert source.read() == ""
    return found


@RUNS
def test_ktap_nests_patches_checks_and_tests(make: Make) -> None:
    run = text.harmless(make())
    for line, patch in zip(ktap_of(make()), run.patches, strict=True):
        assert line.name == ktap.plain(junit.title(patch))
        assert line.ok is not bool(patch.failed)
        asked = [check for check in patch.checks if check.status is not Status.SKIPPED]
        expected = [
            (check.name, check.status is not Status.FAILED, check.status is Status.BLOCKED)
            for check in asked
        ]
        assert [(each.name, each.ok, each.skipped) for each in line.parts] == expected
        for each, check in zip(line.parts, asked, strict=True):
            below = (
                patch.tests
                if check.name is CheckName.TESTS and check.status is not Status.BLOCKED
                else ()
            )
            assert [(part.name, part.ok) for part in each.parts] == [
                (ktap.plain(test.name), test.status is Status.PASSED) for test in below
            ]


def test_ktap_failure_has_reason_and_output() -> None:
    build = ktap_of(records.build_error())[1].parts[2]
    assert build.output == ["fs/fuse/fsnotify.c:3:9: error: expected ';'", "make: *** Error 1"]
    tests = ktap_of(records.lost_event())[3].parts[6]
    assert ">   assert events == ['a']" in next(part for part in tests.parts if not part.ok).output


def test_no_log_ends_the_ktap_parser_of_the_kernel() -> None:
    rendered = ktap.render(text.harmless(records.hostile()))
    assert not re.search(
        r"List of all partitions:|Kernel panic - not syncing: VFS:|reboot: System halted", rendered
    )
    assert "System halted" in rendered


# Files and the command


def test_report_writes_all_forms_and_leaves_no_other_file(tmp_path: Path) -> None:
    written = report.write(records.hostile(), tmp_path / "new" / "report", records.bench())
    assert written == tmp_path / "new" / "report" / "index.html"
    assert sorted(path.name for path in written.parent.iterdir()) == [
        "index.html",
        "junit.xml",
        "ktap.txt",
    ]


def test_page_of_many_patches_and_long_logs_is_small(tmp_path: Path) -> None:
    long = records.long_logs()
    patches = [
        dataclasses.replace(long.patches[1], number=number, diff=records.DIFF * 100)
        for number in range(15)
    ]
    report.write(dataclasses.replace(long, patches=tuple(patches)), tmp_path)
    for name in ("index.html", "junit.xml", "ktap.txt"):
        assert (tmp_path / name).stat().st_size < 3_000_000
    assert "lines left out; <code>results.json</code> has" in (tmp_path / "index.html").read_text()


def test_unwritable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot write the report"):
        report.write(records.green(), tmp_path / "file")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command finds results and leaves the report."""
    monkeypatch.setattr(paths, "REPORT", tmp_path / "report")
    monkeypatch.setattr(bench_run, "RESULT", tmp_path / "bench.json")
    return tmp_path


def test_report_command_prints_the_path_of_the_page(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(records.green(), checkout / "report" / "results.json")
    bench_report.write_json(records.bench(), checkout / "bench.json")
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().out == f"{checkout}/report/index.html\n"
    assert "Benchmark" in (checkout / "report" / "index.html").read_text()


def test_merged_results_are_written(checkout: Path) -> None:
    whole = records.build_error()
    parts = [checkout / f"results-{number}.json" for number in range(2)]
    results.save(dataclasses.replace(whole, patches=whole.patches[:2]), parts[0])
    results.save(dataclasses.replace(whole, patches=whole.patches[2:]), parts[1])
    # As the run of the whole.
    assert cli.main(["report", "--merge", *map(str, reversed(parts))]) == 1
    assert results.load(checkout / "report" / "results.json") == whole
    assert len(ktap_of(whole)) == 4


@pytest.mark.parametrize("broken", ["results", "merged", "bench"])
def test_unreadable_results_are_an_error_of_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    (checkout / "broken.json").write_text('{"schema": 2}')
    words = ["--merge", str(checkout / "broken.json")] if broken == "merged" else []
    if broken == "bench":
        results.save(records.green(), checkout / "report" / "results.json")
        (checkout / "broken.json").rename(checkout / "bench.json")
    assert cli.main(["report", *words]) == 1
    expected = {
        "results": "no results .*: run make test",
        "merged": "broken.json is not",
        "bench": "run make bench",
    }
    assert re.search(expected[broken], capsys.readouterr().err)


@pytest.mark.parametrize(
    "path, value",
    [
        ("environment", ["a"]),
        ("finished", 5),
        ("patches.1.number", "1"),
        ("patches.1.checks.0.status", "green"),
        ("patches.1.checks.0.seconds", "long"),
        ("patches.1.tests.0.patch", True),
        ("patches", 3),
        ("patches.0.logs", None),
    ],
)
def test_value_of_another_type_is_an_error_of_one_line(
    tmp_path: Path, path: str, value: object
) -> None:
    results.save(records.green(), tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    *way, last = path.split(".")
    at = found
    for name in way:
        at = at[int(name) if name.isdigit() else name]
    at[last] = value
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(HarnessError, match="is not a file of results") as error:
        results.load(tmp_path / "results.json")
    assert "\n" not in str(error.value)


def test_benchmark_results_survive_a_round_trip(tmp_path: Path) -> None:
    bench_report.write_json(records.bench(), tmp_path / "bench.json")
    assert benchmark.load(tmp_path / "bench.json") == records.bench()
    assert benchmark.load(tmp_path / "none.json") is None


def test_checks_that_were_not_requested_are_absent() -> None:
    run = records.with_patch(
        records.green(), dataclasses.replace(records.patch(2), checks=(), tests=())
    )
    assert list(read_junit(run)[2]) == []
    assert ktap_of(run)[2].skipped
    absent = dataclasses.replace(
        records.patch(2), checks=(CheckResult(CheckName.BUILD, Status.SKIPPED),), tests=()
    )
    assert ktap_of(records.with_patch(run, absent))[2].parts == []
