# SPDX-License-Identifier: Apache-2.0
"""The warnings of one kernel that another kernel does not have. No I/O here.

A line number changes with every patch above it, so a warning is identified by its file and its
text. In a C file the same warning may occur twice, and both count. In a header it occurs once per
inclusion, and counts once.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

WARNING = re.compile(r"\b(?:warning|error): ")
LINE_NUMBER = re.compile(r"(?<=[\w)])(?::\d+){1,2}(?=[:,\s]|$)")
HEADER = re.compile(r"^[^\s:]+\.h:")


def causes_of(lines: Iterable[str]) -> frozenset[str]:
    """Return the lines without their line numbers."""
    return frozenset(LINE_NUMBER.sub("", line.removeprefix("./").strip()) for line in lines)


def warnings_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield each warning or error in the text: its identity, and its whole line."""
    for line in text.splitlines():
        if WARNING.search(line):
            yield LINE_NUMBER.sub("", line.removeprefix("./").strip()), line


def new_warnings(before: str, after: str) -> list[str]:
    """Return the warnings of `after` that `before` does not have."""
    known = Counter(name for name, _line in warnings_in(before))
    headers = {name for name in known if HEADER.match(name)}
    fresh: list[str] = []
    for name, line in warnings_in(after):
        if name in headers:
            continue
        if HEADER.match(name):
            headers.add(name)
        elif known[name]:
            known[name] -= 1
            continue
        fresh.append(line)
    return fresh
