# SPDX-License-Identifier: Apache-2.0
"""A commit message, split into blocks that a page can show at any width.

The lines of a message end at 72 columns.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

ITEM = re.compile(r"(?:[-*+]|\d+[.)]) +")
TRAILER = re.compile(r"[A-Z][\w-]*: \S|\[.*\]$")


class BlockKind(StrEnum):
    """How a block is shown.

    TEXT flows, an ITEM flows beside its sign, LINES keep their line ends.
    """

    TEXT = "text"
    ITEM = "item"
    LINES = "lines"


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list, or lines such as code, tables and trailers.

    sign: the sign of an item.
    """

    kind: BlockKind
    text: str
    sign: str = ""


def blocks(message: str) -> Iterator[Block]:
    """Yield the blocks of a message, in order."""
    for part in re.split(r"\n\s*\n", message.strip("\n")):
        lines = part.rstrip().split("\n")
        if ITEM.match(lines[0]) and all(
            ITEM.match(line) or line.startswith("  ") for line in lines
        ):
            yield from items(lines)
        elif any(line[:1].isspace() for line in lines) or all(
            TRAILER.match(line) for line in lines
        ):
            yield Block(BlockKind.LINES, "\n".join(lines))
        else:
            yield Block(BlockKind.TEXT, " ".join(lines))


def items(lines: list[str]) -> Iterator[Block]:
    """Yield the items of a list, each with the lines that continue it."""
    current: list[str] = []
    for line in [*lines, "- "]:
        if ITEM.match(line) and current:
            sign, text = " ".join(current).split(" ", 1)
            yield Block(BlockKind.ITEM, text, sign)
            current = []
        current.append(line.strip())
