# SPDX-License-Identifier: Apache-2.0
"""Makes text that other programs printed fit to be shown.

It has no escape sequences and no invisible characters afterwards, and is not too long.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, TypeVar

Record = TypeVar("Record")

# ECMA-48: control sequences, command strings (titles, hyperlinks), other escapes.
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
)
RETURNS = re.compile(r"\r+\n|\r+")
# Characters that XML does not allow, that terminals interpret, or that are invisible and change how
# other characters are shown.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
CONTROL_PICTURES = 0x2400
DELETE, DELETE_PICTURE = 0x7F, "\u2421"
REPLACEMENT = "\ufffd"
# Characters between the wanted cut and the end of a line at which the text is cut instead.
LINE_REACH = 400


def harmless(record: Record) -> Record:
    """Return the record with every string in it made harmless.

    record: a frozen dataclass, tuple, dictionary or string.
    """
    return cleaned(record)  # type: ignore[no-any-return]


def cleaned(value: Any) -> Any:
    """Do as harmless(); leave enums and numbers unchanged."""
    if type(value) is str:
        return clean(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            each.name: cleaned(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple):
        return tuple(cleaned(each) for each in value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    return value


def clean(text: str) -> str:
    """Return the text without escape sequences and invisible characters.

    A control character becomes its picture; another invisible character becomes its name.
    """
    return UNSEEN.sub(visible, RETURNS.sub("\n", ESCAPES.sub("", text)))


def visible(found: re.Match[str]) -> str:
    """Return what replaces an invisible character."""
    code = ord(found.group())
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    if code == DELETE:
        return DELETE_PICTURE
    if code < 0xA0 or code >= 0xD800:
        return REPLACEMENT
    return f"<U+{code:04X}>"


@dataclass(frozen=True)
class Excerpt:
    """The beginning and the end of a text.

    left_out: the size of what is missing between them; empty for a whole text.
    """

    head: str
    tail: str = ""
    left_out: str = ""


def excerpt(text: str, limit: int) -> Excerpt:
    """Return about `limit` characters of a text.

    A quarter is from its beginning, the rest from its end.
    """
    text = text.strip("\n")
    if len(text) <= limit:
        return Excerpt(text)
    start, end = limit // 4, len(text) - (limit - limit // 4)
    start = text.rfind("\n", max(0, start - LINE_REACH), start) + 1 or start
    newline = text.find("\n", end, end + LINE_REACH)
    end = newline + 1 if newline >= 0 else end
    left = text[start:end]
    return Excerpt(
        text[:start].rstrip("\n"),
        text[end:],
        f"{size(len(left))}, {count(left.count(chr(10)), 'line')}",
    )


def joined(text: str, limit: int) -> str:
    """Return excerpt() as one string."""
    found = excerpt(text, limit)
    return (
        f"{found.head}\n[... {found.left_out} left out ...]\n{found.tail}"
        if found.left_out
        else found.head
    )


def size(characters: int) -> str:
    """Format a number of characters for people."""
    if characters < 1000:
        return f"{characters} B"
    return (
        f"{characters / 1000:.0f} kB"
        if characters < 1_000_000
        else f"{characters / 1_000_000:.1f} MB"
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 test`, `2 tests`."""
    return f"{number:,} {noun}".replace(",", "\u202f") + ("" if number == 1 else "s")
