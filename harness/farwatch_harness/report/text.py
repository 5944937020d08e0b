# SPDX-License-Identifier: Apache-2.0
"""Text that other programs printed, made fit to be shown: no escape sequences, nothing invisible,
not too long."""

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
# What XML cannot hold, terminals obey, or readers do not see although it changes what they see.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
CONTROL_PICTURES = 0x2400
DELETE, DELETE_PICTURE = 0x7F, "\u2421"
REPLACEMENT = "\ufffd"
# How far from the wanted place a line's end is looked for when text is cut, in characters.
LINE_REACH = 400


def harmless(record: Record) -> Record:
    """The record, a frozen dataclass, tuple, dict or string, with every string in it made
    harmless."""
    return cleaned(record)  # type: ignore[no-any-return]


def cleaned(value: Any) -> Any:
    """See harmless(); enums and numbers stay as they are."""
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
    """The text without escape sequences; control characters are pictures, what else is not seen is
    named."""
    return UNSEEN.sub(visible, RETURNS.sub("\n", ESCAPES.sub("", text)))


def visible(found: re.Match[str]) -> str:
    """What stands for a character that would not be seen."""
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
    """The beginning and the end of a text; `left_out` says what is missing between, empty for a
    whole text."""

    head: str
    tail: str = ""
    left_out: str = ""


def excerpt(text: str, limit: int) -> Excerpt:
    """At most about `limit` characters of a text: a quarter from its beginning, the rest from its
    end."""
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
    """As excerpt(), in one string."""
    found = excerpt(text, limit)
    return (
        f"{found.head}\n[... {found.left_out} left out ...]\n{found.tail}"
        if found.left_out
        else found.head
    )


def size(characters: int) -> str:
    """A number of characters for people."""
    if characters < 1000:
        return f"{characters} B"
    return (
        f"{characters / 1000:.0f} kB"
        if characters < 1_000_000
        else f"{characters / 1_000_000:.1f} MB"
    )


def count(number: int, noun: str) -> str:
    """`1 test`, `2 tests`."""
    return f"{number:,} {noun}".replace(",", "\u202f") + ("" if number == 1 else "s")
