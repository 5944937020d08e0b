# SPDX-License-Identifier: Apache-2.0
"""Translates names of extended attributes, by the rules of virtiofsd's ``--xattrmap``.

virtiofsd's doc/xattr-mapping.md describes the rules.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from farwatchd.linux.libc import failure


class Type(Enum):
    """What a rule does with a name that it matches."""

    PREFIX = "prefix"
    OK = "ok"
    BAD = "bad"
    UNSUPPORTED = "unsupported"


class Scope(Enum):
    """Which names a rule matches: those the guest asks for, those the host lists, or both."""

    CLIENT = "client"
    SERVER = "server"
    ALL = "all"


#: The guest's error for a refused name.
_ERRORS = {Type.BAD: errno.EPERM, Type.UNSUPPORTED: errno.EOPNOTSUPP}
#: A shorthand for several rules: names that begin with its key get a prefix, which no other name
#: may have.
_MAP = "map"

_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True, slots=True)
class XattrRule:
    """A rule.

    It matches the guest's names that begin with ``key``, and the host's that begin with
    ``prepend``.
    """

    type: Type
    scope: Scope
    key: bytes
    prepend: bytes


class XattrMap:
    """A list of rules; the first that matches holds.

    A name of the guest that none matches is refused; one of the host is hidden.
    """

    def __init__(self, rules: tuple[XattrRule, ...]) -> None:
        self._client = [rule for rule in rules if rule.scope is not Scope.SERVER]
        self._server = [rule for rule in rules if rule.scope is not Scope.CLIENT]

    def to_host(self, name: bytes) -> bytes:
        """Return the host's name of the guest's ``name``; EPERM or EOPNOTSUPP as the rule says."""
        for rule in self._client:
            if name.startswith(rule.key):
                match rule.type:
                    case Type.PREFIX:
                        return rule.prepend + name
                    case Type.OK:
                        return name
                    case _:
                        raise failure(_ERRORS[rule.type])
        raise failure(errno.EPERM)

    def to_guest(self, name: bytes) -> bytes | None:
        """Return the guest's name of the host's ``name``; None for a hidden one."""
        for rule in self._server:
            if name.startswith(rule.prepend):
                match rule.type:
                    case Type.PREFIX:
                        return name[len(rule.prepend) :]
                    case Type.OK:
                        return name
                    case _:
                        return None
        return None


def parse(text: str) -> XattrMap:
    """Parse rules; ``ValueError`` says what is wrong.

    A rule is ``:type:scope:key:prepend:`` or ``:map:key:prepend:``, with any character in the
    colon's place.
    """
    rules: list[XattrRule] = []
    rest = text.strip()
    if not rest:
        raise ValueError("there is no rule")
    while rest:
        separator, rest = rest[0], rest[1:]
        kind, rest = _field(rest, separator, "type")
        if kind == _MAP:
            key, rest = _field(rest, separator, "key")
            prepend, rest = _field(rest, separator, "prepend")
            rules += _map_rules(os.fsencode(key), os.fsencode(prepend))
            if rest.strip():
                raise ValueError("nothing may follow a rule of type map")
        else:
            chosen = _choice(Type, kind)
            scope, rest = _field(rest, separator, "scope")
            key, rest = _field(rest, separator, "key")
            prepend, rest = _field(rest, separator, "prepend")
            rules.append(
                XattrRule(chosen, _choice(Scope, scope), os.fsencode(key), os.fsencode(prepend))
            )
        rest = rest.lstrip()
    return XattrMap(tuple(rules))


def _map_rules(key: bytes, prepend: bytes) -> Iterator[XattrRule]:
    yield XattrRule(Type.PREFIX, Scope.ALL, key, prepend)
    if not key:
        yield XattrRule(Type.BAD, Scope.ALL, b"", b"")
        return
    # Such a name of the host is hidden, and such a name of the guest would look like a mapped one.
    yield XattrRule(Type.BAD, Scope.SERVER, b"", key)
    yield XattrRule(Type.BAD, Scope.CLIENT, prepend, b"")
    yield XattrRule(Type.OK, Scope.ALL, b"", b"")


def _field(rest: str, separator: str, what: str) -> tuple[str, str]:
    field, found, rest = rest.partition(separator)
    if not found:
        raise ValueError(f"'{field}': no '{separator}' after the {what}")
    return field, rest


def _choice(choices: type[_Choice], word: str) -> _Choice:
    try:
        return choices(word)
    except ValueError:
        known = ", ".join(
            [*(choice.value for choice in choices), *([_MAP] if choices is Type else [])]
        )
        raise ValueError(f"'{word}' is not one of {known}") from None
