# SPDX-License-Identifier: Apache-2.0
"""Uid and gid translation (``--translate-uid``, ``--translate-gid``), by virtiofsd's rules.

A rule is ``type:source base:target base:count``. ``guest`` and ``host`` translate a range of the
guest's or the host's ids to a range of the other side, ``map`` does both; ``squash-guest`` and
``squash-host`` translate a range to one id. ``forbid-guest:base:count`` forbids the guest to use
the ids of a range. An id that no rule names is the same on both sides.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from farwatchd.linux.libc import failure

if TYPE_CHECKING:
    # It has most of the server's interface, which takes long to load.
    from farwatchd.fuse.filesystem import Requester

#: Ids are 0 to 2^32 - 2; the last number is no id.
_END = (1 << 32) - 1


#: The fields of a stat_result beyond its ten numbers, in which the times are whole seconds.
_NAMED = (
    *("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
    *("st_blksize", "st_blocks", "st_rdev"),
)


class TranslationRule(NamedTuple):
    """One rule, as it was written. ``target`` is -1 where the rule has none."""

    text: str
    kind: str
    source: int
    target: int
    size: int


class _Range(NamedTuple):
    """Ids from ``start`` to before ``end``, and what they are translated to.

    They become those from ``target`` on, or with ``squash`` all ``target``; -1 refuses them.
    """

    start: int
    end: int
    target: int
    squash: bool


#: The types of rules, and how many numbers they have.
_KINDS = {"guest": 3, "host": 3, "squash-guest": 3, "squash-host": 3, "map": 3, "forbid-guest": 2}


def parse_rule(text: str) -> TranslationRule:
    """Parse one rule; ``ValueError`` with a text for the user."""
    kind, *numbers = text.split(":")
    if kind not in _KINDS:
        raise ValueError(f"{text!r}: {kind!r} is not one of {', '.join(_KINDS)}")
    if len(numbers) != _KINDS[kind] or not all(
        number.isascii() and number.isdigit() for number in numbers
    ):
        form = "base:count" if kind == "forbid-guest" else "source base:target base:count"
        raise ValueError(f"{text!r} is not {kind}:{form}")
    source, *between, count = map(int, numbers)
    target = between[0] if between else -1
    last = target if kind.startswith("squash") else target + count - 1
    # A VM manager that computes the last range may give it a count of 0.
    if (count and (source + count > _END or last >= _END)) or max(source, target) > _END:
        raise ValueError(f"{text!r}: ids are 0 to {_END - 1}")
    return TranslationRule(text, kind, source, target, count)


class IdMap:
    """The rules for uids, or those for gids."""

    def __init__(self, rules: Iterable[TranslationRule] = ()) -> None:
        """Compile the rules.

        ``ValueError``, with a text for the user: two rules translate the same id.
        """
        to_host: list[tuple[_Range, str]] = []
        to_guest: list[tuple[_Range, str]] = []
        for text, kind, source, target, count in rules:
            if not count:
                continue
            squash = kind.startswith("squash")
            if kind in ("guest", "map", "squash-guest", "forbid-guest"):
                to_host.append((_Range(source, source + count, target, squash), text))
            if kind in ("host", "squash-host"):
                to_guest.append((_Range(source, source + count, target, squash), text))
            if kind == "map":
                to_guest.append((_Range(target, target + count, source, squash), text))
        self._to_host, self._to_guest = _Table(to_host), _Table(to_guest)

    def to_host(self, number: int) -> int:
        """Return the host's id for one of the guest's; EPERM where a rule forbids it."""
        found = self._to_host.find(number)
        if found < 0:
            raise failure(errno.EPERM)
        return found

    def to_guest(self, number: int) -> int:
        """Return the guest's id for one of the host's."""
        return self._to_guest.find(number)


class _Table:
    """Ranges that do not overlap."""

    def __init__(self, ranges: list[tuple[_Range, str]]) -> None:
        ranges = sorted(ranges)
        for (low, first), (high, second) in pairwise(ranges):
            if high.start < low.end:
                raise ValueError(f"{first!r} and {second!r} are about the same id: {high.start}")
        self._ranges = [each for each, _ in ranges]
        self._starts = [each.start for each in self._ranges]

    def find(self, number: int) -> int:
        index = bisect_right(self._starts, number) - 1
        if index < 0 or number >= self._ranges[index].end:
            return number
        start, _, target, squash = self._ranges[index]
        return target if squash or target < 0 else target + number - start


@dataclass(frozen=True, slots=True)
class IdTranslation:
    """The translation of uids and gids between guest and host."""

    users: IdMap
    groups: IdMap

    def requester_on_host(self, requester: Requester) -> Requester:
        """Return the requester with the host's ids; EPERM where a rule forbids one."""
        group = self.groups.to_host(requester.group) if requester.group >= 0 else -1
        return requester._replace(
            uid=self.users.to_host(requester.uid),
            gid=self.groups.to_host(requester.gid),
            group=group,
        )

    def status_for_guest(self, status: os.stat_result) -> os.stat_result:
        """Return a file's status with the guest's ids."""
        uid, gid = self.users.to_guest(status.st_uid), self.groups.to_guest(status.st_gid)
        if (uid, gid) == (status.st_uid, status.st_gid):
            return status
        numbered: Sequence[float] = status[:10]
        named = {name: getattr(status, name) for name in _NAMED}
        return os.stat_result((*numbered[:4], uid, gid, *numbered[6:]), named)


def make_translation(
    users: Sequence[TranslationRule], groups: Sequence[TranslationRule]
) -> IdTranslation | None:
    """Return the translation by the rules, None without any; ``ValueError`` as ``IdMap``."""
    return IdTranslation(IdMap(users), IdMap(groups)) if users or groups else None
