# SPDX-License-Identifier: Apache-2.0
"""The check that names are not shared."""

from pathlib import Path

from farwatch_harness.commands import unique_names, words
from farwatch_harness.util import paths


def shared(root: Path, **texts: str) -> list[str]:
    """Return what is found in files whose paths have _ for each /."""
    files = {name.replace("_", "/") + ".py": text for name, text in texts.items()}
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return [f"{each.kind} {each.name}" for each in unique_names.check(root, files)]


def test_two_modules_or_classes_of_one_name_are_found(tmp_path: Path) -> None:
    assert shared(tmp_path, a_one="class A: ...", b_one="class B: ...") == ["module one"]
    nested = "def f():\n    class A: ...\n"
    assert shared(tmp_path, a_one="class A: ...", b_two=nested) == ["class A"]
    assert shared(tmp_path, a_one="class A: ...\nclass A: ...") == ["class A"]


def test_generic_names_and_tests_may_be_shared(tmp_path: Path) -> None:
    assert shared(tmp_path, a_options="", b_options="", c_errors="", d_errors="") == []
    (tmp_path / "a").mkdir(exist_ok=True)
    for folder in ("a", "b"):
        (tmp_path / folder / "test_one.py").write_text("")
    assert list(unique_names.check(tmp_path, ["a/test_one.py", "b/test_one.py"])) == []


def test_project_shares_no_name() -> None:
    assert list(unique_names.check(paths.CHECKOUT, words.tracked_files(paths.CHECKOUT, ()))) == []
