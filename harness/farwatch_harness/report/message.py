# SPDX-License-Identifier: Apache-2.0
"""A commit message, whose lines end at 72 columns, in blocks that a page can set at any width."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

ITEM = re.compile(r"(?:[-*+]|\d+[.)]) +")
TRAILER = re.compile(r"[A-Z][\w-]*: \S|\[.*\]$")


class Kind(StrEnum):
    """How a block is set: `text` flows, an `item` does beside its sign, `lines` stay as they
    are."""

    TEXT = "text"
    ITEM = "item"
    LINES = "lines"


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list, or lines that must stay lines: code, tables, trailers. `sign`
    is the item's."""

    kind: Kind
    text: str
    sign: str = ""


def blocks(message: str) -> Iterator[Block]:
    """The blocks of a message, in order."""
    for part in re.split(r"\n\s*\n", message.strip("\n")):
        lines = part.rstrip().split("\n")
        if ITEM.match(lines[0]) and all(
            ITEM.match(line) or line.startswith("  ") for line in lines
        ):
            yield from items(lines)
        elif any(line[:1].isspace() for line in lines) or all(
            TRAILER.match(line) for line in lines
        ):
            yield Block(Kind.LINES, "\n".join(lines))
        else:
            yield Block(Kind.TEXT, " ".join(lines))


def items(lines: list[str]) -> Iterator[Block]:
    """The items of a list, each with the lines that continue it."""
    current: list[str] = []
    for line in [*lines, "- "]:
        if ITEM.match(line) and current:
            sign, text = " ".join(current).split(" ", 1)
            yield Block(Kind.ITEM, text, sign)
            current = []
        current.append(line.strip())
