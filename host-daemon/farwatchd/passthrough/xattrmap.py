# SPDX-License-Identifier: Apache-2.0
"""Other names on the host for extended attributes of the guest, by the rules of virtiofsd's
``--xattrmap``.

The rules' language is described in virtiofsd's doc/xattr-mapping.md.
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
    """Whose names a rule matches: what the guest asks for, what the host lists, or both."""

    CLIENT = "client"
    SERVER = "server"
    ALL = "all"


#: What the guest gets for a name that is refused.
_ERRORS = {Type.BAD: errno.EPERM, Type.UNSUPPORTED: errno.EOPNOTSUPP}
#: Stands for several rules: names that begin with its key get a prefix, which no other name may
#: have.
_MAP = "map"

_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches the guest's names that begin with ``key``, and the host's that begin with
    ``prepend``."""

    type: Type
    scope: Scope
    key: bytes
    prepend: bytes


class XattrMap:
    """Rules, of which the first that matches holds. A name that none matches is refused, or
    hidden."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._client = [rule for rule in rules if rule.scope is not Scope.SERVER]
        self._server = [rule for rule in rules if rule.scope is not Scope.CLIENT]

    def to_host(self, name: bytes) -> bytes:
        """The host's name of the guest's ``name``; EPERM or EOPNOTSUPP as the rule says."""
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
        """The guest's name of the host's ``name``; None for one that it is not to see."""
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
    """The rules of a text; ``ValueError`` says what is wrong with it.

    A rule is ``:type:scope:key:prepend:`` or ``:map:key:prepend:``, with any character in the
    colon's place.
    """
    rules: list[Rule] = []
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
                Rule(chosen, _choice(Scope, scope), os.fsencode(key), os.fsencode(prepend))
            )
        rest = rest.lstrip()
    return XattrMap(tuple(rules))


def _map_rules(key: bytes, prepend: bytes) -> Iterator[Rule]:
    yield Rule(Type.PREFIX, Scope.ALL, key, prepend)
    if not key:
        yield Rule(Type.BAD, Scope.ALL, b"", b"")
        return
    # What the host calls so is not the guest's, and what the guest calls so would be taken for a
    # mapped name.
    yield Rule(Type.BAD, Scope.SERVER, b"", key)
    yield Rule(Type.BAD, Scope.CLIENT, prepend, b"")
    yield Rule(Type.OK, Scope.ALL, b"", b"")


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
        raise ValueError(f"'{word}' is none of {known}") from None
