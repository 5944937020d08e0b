# SPDX-License-Identifier: Apache-2.0
"""How an option is declared: once, as a field of the record of the part that it is for.

``options.py`` makes the command line's parser of these declarations, and fills the records. This
module imports nothing of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

_METADATA = "farwatchd.options"


class UserError(Exception):
    """The daemon cannot serve with these options.

    The text is one line: what is wrong and what to do.
    """


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    ``parse`` turns the text of a value into the value; its ``ValueError`` is for the user.
    ``arguments`` are those of ``argparse``'s ``add_argument``.
    """

    name: str
    help: str
    parse: Callable[[str], object] | None
    arguments: Mapping[str, Any]


def option(
    name: str,
    help: str,
    default: Any = MISSING,
    parse: Callable[[str], object] | None = None,
    **arguments: Any,
) -> Any:
    """Declare a field of a record together with the option ``--name`` that sets it.

    Without ``parse`` the default's type says what the value is: a bool makes a flag (with
    ``negatable=True`` also ``--no-name``), an Enum a choice of its members' values, and all else
    text. A field without a default must be given.
    """
    if arguments.pop("negatable", False):
        arguments["negatable"] = True
    elif default is False and parse is None:
        arguments.setdefault("action", "store_true")
    elif isinstance(default, Enum) and parse is None:
        parse = choice(type(default))
        arguments.setdefault("metavar", choices(type(default)))
    return options(Option(name, help, parse, arguments), default=default)


def options(*declared: Option, default: Any) -> Any:
    """Declare a field that several options set, each known to ``options.py`` by its own name."""
    return field(default=default, metadata={_METADATA: declared})


def declared(record: type) -> list[tuple[Field[Any], Option]]:
    """Return the options of a record's fields, in their order."""
    return [(each, one) for each in fields(record) for one in each.metadata.get(_METADATA, ())]


def number(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return parse


_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(low: int) -> Callable[[str], int]:
    """Return a parser of sizes of at least ``low`` bytes: a number, K, M, G or T after it."""

    def parse(text: str) -> int:
        digits = text.rstrip("".join(_UNITS))
        unit = text[len(digits) :]
        if not (digits.isascii() and digits.isdigit()) or len(unit) > 1:
            raise ValueError(f"{text!r} is not a size such as 64M")
        value = int(digits) * _UNITS.get(unit, 1)
        if value < low:
            raise ValueError(f"{text} is too little: {low} bytes at least")
        return value

    return parse


def choice(kind: type[Enum], **former: Enum) -> Callable[[str], Enum]:
    """Return a parser of an Enum's values; ``former`` are names that are accepted, not listed."""

    def parse(text: str) -> Enum:
        if text in former:
            return former[text]
        try:
            return kind(text)
        except ValueError:
            listed = ", ".join(str(member.value) for member in kind)
            raise ValueError(f"{text!r} is not one of {listed}") from None

    return parse


def choices(kind: type[Enum]) -> str:
    """Return the values of an Enum as the usage text shows them."""
    return "{" + ",".join(str(member.value) for member in kind) + "}"
