# SPDX-License-Identifier: Apache-2.0
"""A user namespace with an id map of its own (``--uid-map``, ``--gid-map``).

A process in the namespace may not set the map (user_namespaces(7)), so one that stays outside does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from farwatchd.linux.libc import function, last_errno

_ID_END = (1 << 32) - 1
_unshare = function("unshare", ctypes.c_int)


class MapError(Exception):
    """The namespace cannot be made. The text says why, for the user."""


class IdRange(NamedTuple):
    """``size`` ids from ``inside`` on, in the namespace, are those from ``outside`` on."""

    inside: int
    outside: int
    size: int


class IdMaps(NamedTuple):
    """The ids of a namespace.

    Without ranges for users, or for groups, the namespace has the daemon's id only.
    """

    users: tuple[IdRange, ...]
    groups: tuple[IdRange, ...]


def parse_range(text: str) -> IdRange:
    """Parse ``:namespace id:host id:count:``, with any separator for the colon; ``ValueError``."""
    parts = text.split(text[:1]) if text else []
    numbers = parts[1:-1]
    if (
        len(parts) != 5
        or parts[0]
        or parts[4]
        or not all(part.isascii() and part.isdigit() for part in numbers)
    ):
        raise ValueError(f"{text!r} is not :namespace id:host id:count:")
    inside, outside, size = map(int, numbers)
    if size == 0 or max(inside, outside) + size > _ID_END:
        raise ValueError(f"{text!r}: ids are 0 to {_ID_END - 1}, and there must be one at least")
    return IdRange(inside, outside, size)


def unshare_mapped(flags: int, maps: IdMaps) -> None:
    """Enter new namespaces, and be the root of the user namespace if its map has one.

    ``flags`` are those of unshare(2), CLONE_NEWUSER among them. For a process with one thread.
    ``MapError``.
    """
    uid, gid = os.geteuid(), os.getegid()
    users = maps.users or (IdRange(uid, uid, 1),)
    groups = maps.groups or (IdRange(gid, gid, 1),)
    ready, go = os.pipe()
    problems, report = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(go)
        _map_from_outside(parent, users, groups, ready, report)
    os.close(ready)
    os.close(report)
    try:
        if _unshare(flags) < 0:
            raise MapError(f"cannot make namespaces: {os.strerror(last_errno())}")
        os.write(go, b"\0")
        with os.fdopen(problems, "rb", closefd=False) as stream:
            problem = stream.read().decode(errors="replace")
    finally:
        os.close(go)
        os.close(problems)
        os.waitpid(child, 0)
    if problem:
        raise MapError(problem)
    be_root(users, groups)


def _map_from_outside(
    pid: int, users: Iterable[IdRange], groups: Iterable[IdRange], ready: int, report: int
) -> None:
    """Map the ids of ``pid`` when it is ready, write what went wrong to ``report``, and exit.

    This runs in a process of its own.
    """
    try:
        if os.read(ready, 1):
            for name, ranges in (("gid", groups), ("uid", users)):
                _map(pid, name, ranges)
    except (OSError, MapError) as error:
        os.write(report, str(error).encode())
    finally:
        os._exit(0)


def _map(pid: int, name: str, ranges: Iterable[IdRange]) -> None:
    if os.geteuid() == 0:
        lines = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
        try:
            Path(f"/proc/{pid}/{name}_map").write_text(lines)
        except OSError as error:
            raise MapError(f"cannot write {name}_map: {error.strerror}") from error
        return
    # These programs may map for an ordinary user the ids that /etc/subuid and /etc/subgid allow.
    # Loaded here: few daemons need it.
    import subprocess

    words = [f"new{name}map", str(pid), *(str(number) for each in ranges for number in each)]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        # EACCES too: a directory of PATH may be unreadable.
        raise MapError(f"cannot run {words[0]}: {error.strerror}; install uidmap") from error
    if done.returncode:
        raise MapError(f"{words[0]}: {done.stderr.strip() or done.returncode}")


def be_root(users: Iterable[IdRange], groups: Iterable[IdRange]) -> None:
    """Be the root of the user namespace, if its map has one; ``MapError``."""
    try:
        if any(each.inside == 0 for each in groups):
            os.setresgid(0, 0, 0)
            os.setgroups([])
        if any(each.inside == 0 for each in users):
            os.setresuid(0, 0, 0)
    except OSError as error:
        raise MapError(f"cannot be root of the namespace: {error.strerror}") from error
