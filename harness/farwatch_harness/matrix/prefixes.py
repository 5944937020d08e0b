# SPDX-License-Identifier: Apache-2.0
"""The rows of the matrix: the base and each patch, which of them are asked for, and what a patch
says of itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default

from farwatch_harness.kernel.series import BASE, Patch, number_of
from farwatch_harness.results import PatchResult
from farwatch_harness.util.errors import HarnessError

RANGE = re.compile(r"(\d+)(?:-(\d+))?")
NAME_OF_PATCH = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]")
TAG = re.compile(r"^\[PATCH[^\]]*\]\s*")
SIGNATURE = re.compile(r"\n-- \n.*\Z", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """The kernel with the first patches of a series; `patches` are these, `series` all that there
    are."""

    patches: tuple[Patch, ...]
    series: tuple[Patch, ...]

    @property
    def number(self) -> int:
        return len(self.patches)

    @property
    def patch(self) -> Patch | None:
        """The patch that the row is about; None for the base."""
        return self.patches[-1] if self.patches else None

    @property
    def last(self) -> bool:
        """Whether this is the whole series."""
        return len(self.patches) == len(self.series)

    @property
    def title(self) -> str:
        """What the row is called on the terminal."""
        return self.patches[-1].file.removesuffix(".patch") if self.patches else "the base"


def rows_of(series: Sequence[Patch], choice: str | None) -> list[Row]:
    """Return the base and the chosen patches, in order.

    `choice`: numbers, ranges and names, as "3", "3-5", "3,7-9" or "overflow"; None means all.
    HarnessError: the series has no such patch.
    """
    numbers = range(1, len(series) + 1) if choice is None else chosen(choice, series)
    return [Row(tuple(series[:number]), tuple(series)) for number in (0, *numbers)]


def chosen(choice: str, series: Sequence[Patch]) -> list[int]:
    """Return the numbers, in order, of the patches that the user chose.

    The base is always part of a run, so that 0 is not among the numbers.
    """
    numbers: set[int] = set()
    for word in (word.strip() for word in choice.split(",")):
        match = RANGE.fullmatch(word)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last or last > len(series):
                raise HarnessError(f"there is no patch {word}: the series has 1 to {len(series)}")
            numbers.update(range(first, last + 1))
        elif word == BASE or NAME_OF_PATCH.fullmatch(word):
            numbers.add(number_of(word, series))
        else:
            raise HarnessError(
                f"'{choice}' names no patches: give a number as 3, a range as 3-5, or a name"
            )
    return sorted(numbers - {0})


def described(row: Row, base: str) -> PatchResult:
    """The row with what its patch says of itself, nothing checked yet; `base` names the kernel
    source."""
    if row.patch is None:
        return PatchResult(0, "", f"The base: {base}")
    subject, message, diffstat, diff = parts_of(row.patch.content)
    return PatchResult(
        row.number, row.patch.file, subject, row.patch.section, message, diffstat, diff
    )


def parts_of(content: bytes) -> tuple[str, str, str, str]:
    """A mailed patch's subject, message, diffstat and diff."""
    _header, _, body = content.decode(errors="replace").partition("\n\n")
    head, start, diff = body.partition("\ndiff --git ")
    message, _, diffstat = head.partition("\n---\n")
    subject = str(message_from_bytes(content, policy=default)["subject"] or "")
    return (
        TAG.sub("", " ".join(subject.split())),
        message.strip(),
        diffstat.strip("\n"),
        SIGNATURE.sub("\n", (start + diff).lstrip("\n")),
    )
