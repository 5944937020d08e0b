# SPDX-License-Identifier: Apache-2.0
"""The mutants fit the series, and their heads are as they should be."""

from pathlib import Path

import pytest
from farwatch_harness.commands import mutants
from farwatch_harness.kernel import series, versions
from farwatch_harness.util.errors import HarnessError

NAMES = sorted(path.stem for path in mutants.FOLDER.glob("*.patch"))


@pytest.mark.parametrize("name", NAMES)
def test_mutant_applies_to_a_file_that_the_series_adds(name: str, tmp_path: Path) -> None:
    (mutant,) = mutants.read_mutants(mutants.FOLDER, [name])
    added = [
        line[1:] for line in mutant.patch.decode().splitlines() if line.startswith(("-\t", " \t"))
    ]
    written = "\n".join(
        patch.content.decode() for patch in series.read_series(versions.DEFAULT.folder)
    )
    # What the mutant takes away or leaves is the series' own; the kernel's may be there, too.
    assert any(f"\n+{line}\n" in written for line in added)
    with mutants.mutated_series(mutant) as folder:
        assert series.read_series(folder)[-1].content == mutant.patch


@pytest.mark.parametrize(
    "text",
    ["", "A rule.\n\n--- a/f\n+++ b/f\n", "A rule.\n\nTest: name\n", "Test: name\n--- a/f\n"],
)
def test_mutant_with_a_malformed_head_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.patch"
    path.write_text(text)
    with pytest.raises(HarnessError, match="a mutant is"):
        mutants.read_mutant(path)


def test_unknown_mutant_is_an_error_with_the_known_names(tmp_path: Path) -> None:
    (tmp_path / "one.patch").write_text("Rule.\n\nTest: t\n\n--- a/f\n+++ b/f\n")
    with pytest.raises(HarnessError, match=r"no mutant 'two'.*one"):
        mutants.read_mutants(tmp_path, ["two"])


def test_failed_tests_are_read_from_junit(tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    report.write_text(
        '<r><testcase name="a"/><testcase name="b"><failure message="x"/></testcase></r>'
    )
    assert mutants.failed_tests(report) == ["b"]
