# SPDX-License-Identifier: Apache-2.0
"""A patch's diff, file by file, as HTML whose classes the page's style colours."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape
from pygments.lexers.diff import DiffLexer
from pygments.token import Generic

from farwatch_harness.report import text

FILE_START = re.compile(r"^(?=diff --git )", re.MULTILINE)
NAME = re.compile(r"^(?:\+\+\+ b/|rename to |diff --git a/.* b/)(.+)$", re.MULTILINE)
# The longest of Linux's patches are shown whole; this is for what is no patch. In characters.
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
    """The files of a unified diff, in its order; a text that is none is one file without a name."""
    return [file_diff(part) for part in FILE_START.split(diff) if part.strip()]


def file_diff(part: str) -> FileDiff:
    """One file's part of a diff."""
    # A header's "+++ b/name" is the name after the patch, where there is a file after it.
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
    """The tokens of a file's hunks, those that have a colour in a span of their class."""
    for kind, value in DiffLexer(stripnl=False, ensurenl=False).get_tokens(hunks):
        found = CLASSES.get(kind)
        yield Markup('<span class="{}">{}</span>').format(found, value) if found else escape(value)
