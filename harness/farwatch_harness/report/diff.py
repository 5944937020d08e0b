# SPDX-License-Identifier: Apache-2.0
"""A patch's diff as HTML, file by file; the page's style has the colours of its classes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape
from pygments.lexers.diff import DiffLexer
from pygments.token import Generic

from farwatch_harness.report import text

FILE_START = re.compile(r"^(?=diff --git )", re.MULTILINE)
NAME = re.compile(r"^(?:\+\+\+ b/|rename to |diff --git a/.* b/)(.+)$", re.MULTILINE)
# Characters. Linux's longest patches are shown whole; the limit is for text that is no patch.
LIMIT = 200_000
CLASSES = {Generic.Inserted: "add", Generic.Deleted: "del", Generic.Subheading: "hunk"}


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file: lines added and removed, and the coloured diff."""

    name: str
    added: int
    removed: int
    html: Markup


def files_of(diff: str) -> list[FileDiff]:
    """Return the files of a unified diff, in order; other text is one file without a name."""
    return [file_diff(part) for part in FILE_START.split(diff) if part.strip()]


def file_diff(part: str) -> FileDiff:
    """Return one file's part of a diff."""
    # "+++ b/name" in a header is the name after the patch, unless the patch removes the file.
    header, start, body = part[:LIMIT].partition("\n@@")
    names = NAME.findall(header)
    lines = body.splitlines()
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    html = Markup('<span class="file">{}</span>').format(header)
    html += Markup("").join(coloured(f"{start}{body}".rstrip("\n")))
    if len(part) > LIMIT:
        html += Markup("\n[... {} left out ...]").format(text.size(len(part) - LIMIT))
    return FileDiff(names[-1] if names else "", added, removed, html)


def coloured(hunks: str) -> Iterator[Markup]:
    """Yield the tokens of a file's hunks; a token with a colour is a span of its class."""
    for kind, value in DiffLexer(stripnl=False, ensurenl=False).get_tokens(hunks):
        found = CLASSES.get(kind)
        yield Markup('<span class="{}">{}</span>').format(found, value) if found else escape(value)
