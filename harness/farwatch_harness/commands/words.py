# SPDX-License-Identifier: Apache-2.0
"""Checks that text and identifiers use the words of docs/glossary.md.

The rules are in docs/words.toml.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

# One word of prose or one part of an identifier: lookFor, look_for and "look for" are two words.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# What may stand between the words of a phrase: an identifier's underscore, the end of a line with
# the start of the next comment line.
BETWEEN = re.compile(r"[\s_#*>`'-]*")


@dataclass(frozen=True)
class WordRule:
    """A phrase that the glossary replaces.

    phrases: the forms of it, in lower case.
    use: what to write.
    allowed: longer phrases in which it is right.
    skip: glob patterns of files in which it is right, or not replaced yet.
    """

    phrases: tuple[str, ...]
    use: str
    allowed: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def applies_to(self, path: str) -> bool:
        """Return whether the rule holds in the file."""
        return not any(fnmatch(path, pattern) for pattern in self.skip)


@dataclass(frozen=True)
class ReplacedWord:
    """A phrase in a file that is to be replaced."""

    path: str
    line: int
    phrase: str
    use: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: not {self.phrase!r} but: {self.use}"


def read_rules(path: Path) -> tuple[tuple[WordRule, ...], tuple[str, ...]]:
    """Return the rules, and the patterns of the files that no rule is for."""
    document = tomllib.loads(path.read_text())
    rules = tuple(
        WordRule(
            tuple(entry["not"]),
            entry["use"],
            tuple(entry.get("allowed", ())),
            tuple(entry.get("skip", ())),
        )
        for entry in document["rule"]
    )
    return rules, tuple(document["skip"])


def check(root: Path, paths: Iterable[str], rules: Iterable[WordRule]) -> Iterator[ReplacedWord]:
    """Yield what the rules find in the files, by file and line."""
    rules = tuple(rules)
    for path in paths:
        file = root / path
        if file.is_symlink() or not file.is_file():
            continue
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        yield from check_text(path, text, rules)


def check_text(path: str, text: str, rules: Iterable[WordRule]) -> list[ReplacedWord]:
    """Return what the rules find in a file's name and text, by line."""
    found = [
        ReplacedWord(path, 0, phrase, rule.use)
        for rule, phrase, _offset in _matches(path, path, rules)
    ]
    found += [
        ReplacedWord(path, text.count("\n", 0, offset) + 1, phrase, rule.use)
        for rule, phrase, offset in _matches(path, text, rules)
    ]
    return sorted(found, key=lambda each: each.line)


def _matches(
    path: str, text: str, rules: Iterable[WordRule]
) -> Iterator[tuple[WordRule, str, int]]:
    words = [(match.group().lower(), match.start(), match.end()) for match in WORD.finditer(text)]
    by_word: dict[str, list[int]] = {}
    for index, (word, _start, _end) in enumerate(words):
        by_word.setdefault(word, []).append(index)

    def spans(phrase: str) -> Iterator[tuple[int, int]]:
        parts = phrase.split()
        for first in by_word.get(parts[0], ()):
            found = words[first : first + len(parts)]
            if [word for word, _start, _end in found] != parts:
                continue
            gaps = (text[before[2] : after[1]] for before, after in pairwise(found))
            if all(BETWEEN.fullmatch(gap) for gap in gaps):
                yield found[0][1], found[-1][2]

    for rule in rules:
        if not rule.applies_to(path):
            continue
        allowed = [span for phrase in rule.allowed for span in spans(phrase)]
        for phrase in rule.phrases:
            for start, end in spans(phrase):
                if not any(begin <= start and end <= stop for begin, stop in allowed):
                    yield rule, phrase, start


def tracked_files(root: Path, skip: Iterable[str]) -> list[str]:
    """Return the files of the checkout that git tracks and no pattern skips."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    patterns = tuple(skip)
    return [
        path
        for path in listed.split("\0")
        if path and not any(fnmatch(path, pattern) for pattern in patterns)
    ]
