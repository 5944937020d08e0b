# SPDX-License-Identifier: Apache-2.0
"""The check that a patch applies."""

import difflib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix.apply_check import apply_check
from farwatch_harness.matrix.prefixes import Prefix

# patch(1).
pytestmark = pytest.mark.packages

LINES = [f"line {number}\n" for number in range(12)]


def mail(number: int, before: str, after: str, name: str = "fs/one.c") -> Patch:
    """Return a patch as git format-patch makes it, from a file's content before and after."""
    header = (
        "From 1 Mon Sep 17 00:00:00 2001\nFrom: A <a@example.org>\nSubject: [PATCH] Change"
        f" {number}\n\nWhy.\n---\n"
    )
    return Patch(
        number,
        f"000{number}-change.patch",
        f"{header}\n{diff(before, after, name)}-- \n2.39\n".encode(),
    )


def diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(True), after.splitlines(True), f"a/{name}", f"b/{name}"
    )
    return f"diff --git a/{name} b/{name}\n" + "".join(lines)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs" / "one.c").write_text("".join(LINES))
    yield tmp_path
    assert (tmp_path / "fs" / "one.c").read_text() == "".join(LINES), "the source was changed"


def statuses(*changed: dict[int, str]) -> list[str]:
    """Return the file after each change of some of its lines."""
    lines, found = list(LINES), ["".join(LINES)]
    for change in changed:
        for number, text in change.items():
            lines[number] = f"{text}\n"
        found.append("".join(lines))
    return found


def prefixes(patches: list[Patch]) -> list[Prefix]:
    return [Prefix(tuple(patches[:number]), tuple(patches)) for number in range(len(patches) + 1)]


def test_patches_apply_in_order_with_the_output_of_the_tools(source: Path) -> None:
    first, second, third = statuses({2: "two"}, {3: "three"})
    patches = [mail(1, first, second), mail(2, second, third)]
    with apply_check(source, patches) as applying:
        found = [applying.check(prefix) for prefix in prefixes(patches)]
        assert (applying.plain / "fs" / "one.c").read_text() == third
        log = subprocess.run(
            ["git", "log", "--format=%s"], cwd=applying.repository, capture_output=True, check=True
        )
    assert [outcome.reason for outcome in found] == ["", "", ""]
    assert "patching file fs/one.c" in found[1].output and "Applying: Change 1" in found[1].output
    assert log.stdout.splitlines()[:2] == [b"Change 2", b"Change 1"]


def test_patches_in_between_may_be_left_out(source: Path) -> None:
    first, second, third = statuses({2: "two"}, {3: "three"})
    patches = [mail(1, first, second), mail(2, second, third)]
    with apply_check(source, patches) as applying:
        assert applying.check(prefixes(patches)[2]).passed


def test_a_hunk_with_fuzz_is_refused(source: Path) -> None:
    first, second = statuses({5: "five"})
    patches = [mail(1, first.replace("line 3", "other"), second.replace("line 3", "other"))]
    with apply_check(source, patches) as applying:
        outcome = applying.check(prefixes(patches)[1])
    assert (
        "Hunk #1 FAILED" in outcome.reason and "0001" not in outcome.reason and not outcome.usable
    )


def test_an_earlier_patch_that_does_not_apply_is_named(source: Path) -> None:
    first, second, third = statuses({2: "two"}, {8: "eight"})
    patches = [
        mail(1, first.replace("line 1", "other"), second.replace("line 1", "other")),
        mail(2, second, third),
    ]
    with apply_check(source, patches) as applying:
        assert applying.check(prefixes(patches)[2]).reason.startswith(
            "0001-change.patch does not apply"
        )


def test_trailing_white_space_that_git_complains_of_is_a_failure(source: Path) -> None:
    first, second = statuses({5: "five \t "})
    patches = [mail(1, first, second)]
    with apply_check(source, patches) as applying:
        outcome = applying.check(prefixes(patches)[1])
    assert outcome.reason.startswith("git am complains: warning:") and outcome.usable
