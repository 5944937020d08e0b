# SPDX-License-Identifier: Apache-2.0
"""The check of the words that the glossary replaces."""

from pathlib import Path

import pytest
from farwatch_harness.commands import words
from farwatch_harness.commands.words import WordRule
from farwatch_harness.util import paths

RULES = (
    WordRule(("told", "tells"), "report"),
    WordRule(("looked for",), "poll"),
    WordRule(("verdict",), "result", allowed=("the jury s verdict",), skip=("law/*",)),
)


@pytest.mark.parametrize(
    "text",
    [
        "The guest is told.",
        "told = 1",
        "def events_told(self):",
        "class WhatIsTold:",
        "is_told_once",
        "It tells all.",
        "nobody looked for it",
        "nobody looked_for it",
        "# nobody looked\n    # for it",
        "LookedFor()",
    ],
)
def test_replaced_word_is_found_in_prose_and_identifiers(text: str) -> None:
    assert len(words.check_text("file.py", text, RULES)) == 1


@pytest.mark.parametrize(
    "text", ["The stolid guest", "untold", "foretells", "looked. For it", "looked up for"]
)
def test_other_words_pass(text: str) -> None:
    assert words.check_text("file.py", text, RULES) == []


def test_allowed_phrase_and_skipped_file_pass() -> None:
    assert words.check_text("file.py", "the jury's verdict", RULES) == []
    assert words.check_text("law/file.py", "a verdict", RULES) == []
    assert len(words.check_text("file.py", "a verdict", RULES)) == 1


def test_finding_names_file_line_and_replacement() -> None:
    (each,) = words.check_text("file.py", "one\ntwo told\n", RULES)
    assert str(each) == "file.py:2: not 'told' but: report"


def test_file_name_is_checked() -> None:
    (each,) = words.check_text("src/what_is_told.py", "", RULES)
    assert each.line == 0


def test_binary_and_missing_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89told")
    assert list(words.check(tmp_path, ["picture.png", "deleted.py"], RULES)) == []


def test_rules_of_the_checkout_are_read_and_replace_words_of_the_glossary() -> None:
    rules, skipped = words.read_rules(paths.CHECKOUT / "docs" / "words.toml")
    assert "docs/glossary.md" in skipped
    assert all(phrase == phrase.lower() for rule in rules for phrase in rule.phrases)
