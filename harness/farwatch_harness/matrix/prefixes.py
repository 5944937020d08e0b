# SPDX-License-Identifier: Apache-2.0
"""The prefixes of a series that a run checks: the base, and the series up to each chosen patch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default

from farwatch_harness.kernel.series import BASE, Patch, number_of
from farwatch_harness.results import PatchResult
from farwatch_harness.util.errors import HarnessError

RANGE = re.compile(r"(\d+)(?:-(\d+))?")
#: What stands for the last patch where patches are chosen.
LAST = "last"
NAME_OF_PATCH = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]")
TAG = re.compile(r"^\[PATCH[^\]]*\]\s*")
SIGNATURE = re.compile(r"\n-- \n.*\Z", re.DOTALL)


@dataclass(frozen=True)
class Prefix:
    """The first patches of a series. A check is about the last of them.

    patches: the patches of this prefix; none for the base.
    series: all patches.
    """

    patches: tuple[Patch, ...]
    series: tuple[Patch, ...]

    @property
    def number(self) -> int:
        """The number of the prefix's last patch; 0 for the base."""
        return len(self.patches)

    @property
    def patch(self) -> Patch | None:
        """The patch that the checks are about; None for the base."""
        return self.patches[-1] if self.patches else None

    @property
    def last(self) -> bool:
        """Whether this prefix is the whole series."""
        return len(self.patches) == len(self.series)

    @property
    def name(self) -> str:
        """The patch's name in the series file; "base" for the base."""
        return self.patches[-1].name if self.patches else BASE

    @property
    def title(self) -> str:
        """Number and name of the patch, for people."""
        return self.patches[-1].title if self.patches else "the base"


def select_prefixes(series: Sequence[Patch], choice: str | None) -> list[Prefix]:
    """Return the base and the chosen patches, in order.

    `choice`: numbers, ranges and names, as "3", "3-5", "3,7-9" or "overflow", or "last"; None
    means all.
    HarnessError: the series has no such patch.
    """
    numbers = range(1, len(series) + 1) if choice is None else chosen(choice, series)
    return [Prefix(tuple(series[:number]), tuple(series)) for number in (0, *numbers)]


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
        elif word == LAST:
            numbers.add(len(series))
        elif word == BASE or NAME_OF_PATCH.fullmatch(word):
            numbers.add(number_of(word, series))
        else:
            raise HarnessError(
                f"'{choice}' names no patches: give a number as 3, a range as 3-5, or a name"
            )
    return sorted(numbers - {0})


def unchecked_result(prefix: Prefix, base: str) -> PatchResult:
    """Return the result of a patch before any check.

    base: the name of the kernel source.
    """
    if prefix.patch is None:
        return PatchResult(0, "", f"The base: {base}", BASE)
    subject, message, diffstat, diff = parts_of(prefix.patch.content)
    patch = prefix.patch
    return PatchResult(
        patch.number, patch.file, subject, patch.name, patch.section, message, diffstat, diff
    )


def parts_of(content: bytes) -> tuple[str, str, str, str]:
    """Return subject, message, diffstat and diff of a mailed patch."""
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
