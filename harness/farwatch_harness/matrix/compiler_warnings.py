# SPDX-License-Identifier: Apache-2.0
"""What is new in the warnings of one kernel against those of another. No I/O here.

A line number changes with every patch above it, so a warning is known by its file and its text. In
a C file the same warning can come to stand twice, which counts; one in a header is there as often
as the header is included, which does not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

FINDING = re.compile(r"\b(?:warning|error): ")
PLACE = re.compile(r"(?<=[\w)])(?::\d+){1,2}(?=[:,\s]|$)")
HEADER = re.compile(r"^[^\s:]+\.h:")


def causes_of(lines: Iterable[str]) -> frozenset[str]:
    """What the lines say, wherever in the files it is."""
    return frozenset(PLACE.sub("", line.removeprefix("./").strip()) for line in lines)


def found_in(text: str) -> Iterator[tuple[str, str]]:
    """Each warning or error in the text: by what it is known, and the whole line."""
    for line in text.splitlines():
        if FINDING.search(line):
            yield PLACE.sub("", line.removeprefix("./").strip()), line


def new_findings(before: str, after: str) -> list[str]:
    """The lines of `after` that `before` has no counterpart of."""
    known = Counter(name for name, _line in found_in(before))
    headers = {name for name in known if HEADER.match(name)}
    fresh: list[str] = []
    for name, line in found_in(after):
        if name in headers:
            continue
        if HEADER.match(name):
            headers.add(name)
        elif known[name]:
            known[name] -= 1
            continue
        fresh.append(line)
    return fresh
