# SPDX-License-Identifier: Apache-2.0
"""Shortens a failing script: leaves out what the same finding does not need. No I/O here."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from farwatch_harness.adversary.script import Lies, Round, Script

T = TypeVar("T")


def shrink(script: Script, fails: Callable[[Script], bool], going_on: Callable[[], bool]) -> Script:
    """Return the shortest script found for which `fails` is true, as it is for `script`.

    going_on: returns False to end the search.
    """
    current = script
    changed = True
    while changed and going_on():
        changed = False
        for candidate in shorter(current):
            if not going_on():
                return current
            if fails(candidate):
                current, changed = candidate, True
                break
    return current


def shorter(script: Script) -> Iterator[Script]:
    """Yield scripts with something left out, the largest parts first."""
    rounds = script.rounds
    for index in range(len(rounds)):
        yield replace(script, rounds=rounds[:index] + rounds[index + 1 :])
    for index, each in enumerate(rounds):
        for smaller in smaller_rounds(each):
            yield replace(script, rounds=[*rounds[:index], smaller, *rounds[index + 1 :]])


def smaller_rounds(each: Round) -> Iterator[Round]:
    """Yield the round with something left out."""
    for actor in each.actors:
        yield replace(
            each, actors={number: ops for number, ops in each.actors.items() if number != actor}
        )
    if each.server:
        yield replace(each, server=[])
    if each.lies != Lies():
        yield replace(each, lies=Lies())
    for actor, ops in each.actors.items():
        for fewer in halves(ops):
            yield replace(each, actors={**each.actors, actor: fewer})
    for actions in halves(each.server):
        yield replace(each, server=actions)
    for lies in halves(list(each.lies.fsnotify)):
        yield replace(each, lies=replace(each.lies, fsnotify=tuple(lies)))
    for lies in halves(list(each.lies.wait)):
        yield replace(each, lies=replace(each.lies, wait=tuple(lies)))
    for lies in halves(list(each.lies.rest)):
        yield replace(each, lies=replace(each.lies, rest=tuple(lies)))


def halves(items: list[T]) -> Iterator[list[T]]:
    """Yield the list without each half, each quarter, and so on down to each item."""
    size = len(items) // 2
    while size >= 1:
        for start in range(0, len(items), size):
            yield items[:start] + items[start + size :]
        size //= 2
    if len(items) == 1:
        yield []
