# SPDX-License-Identifier: Apache-2.0
"""A user namespace with ids of its own (``--uid-map``, ``--gid-map``), as user_namespaces(7) has
it.

Whoever is in the namespace may not say what its ids are outside: a process that stays outside does
it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_ID_END = (1 << 32) - 1
_libc = ctypes.CDLL(None, use_errno=True)


class MapError(Exception):
    """There is no such namespace. The text says why, for the user."""


class IdRange(NamedTuple):
    """``size`` ids from ``inside`` on, in the namespace, are those from ``outside`` on."""

    inside: int
    outside: int
    size: int


class IdMaps(NamedTuple):
    """The ids of a namespace. Without ranges for groups, or for users, the daemon's own one is the
    only one."""

    users: tuple[IdRange, ...]
    groups: tuple[IdRange, ...]


def parse_range(text: str) -> IdRange:
    """``:namespace id:host id:count:``, with whatever separator it begins with; ``ValueError``."""
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
    """unshare(2) with ``flags``, which have CLONE_NEWUSER, and be the root of the namespace, where
    it has one.

    For a process with one thread. ``MapError``.
    """
    uid, gid = os.geteuid(), os.getegid()
    users = maps.users or (IdRange(uid, uid, 1),)
    groups = maps.groups or (IdRange(gid, gid, 1),)
    ready, go = os.pipe()
    answer, tell = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(go)
        _map_from_outside(parent, users, groups, ready, tell)
    os.close(ready)
    os.close(tell)
    try:
        if _libc.unshare(flags) < 0:
            raise MapError(f"cannot make namespaces: {os.strerror(ctypes.get_errno())}")
        os.write(go, b"\0")
        with os.fdopen(answer, "rb", closefd=False) as stream:
            problem = stream.read().decode(errors="replace")
    finally:
        os.close(go)
        os.close(answer)
        os.waitpid(child, 0)
    if problem:
        raise MapError(problem)
    _be_root(users, groups)


def _map_from_outside(
    pid: int, users: Iterable[IdRange], groups: Iterable[IdRange], ready: int, tell: int
) -> None:
    """The other process: map the ids of ``pid`` when it says that it is ready, tell what went
    wrong, and exit."""
    try:
        if os.read(ready, 1):
            for name, ranges in (("gid", groups), ("uid", users)):
                _map(pid, name, ranges)
    except (OSError, MapError) as error:
        os.write(tell, str(error).encode())
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
    # Programs that may do it for an ordinary user, as far as /etc/subuid and /etc/subgid allow.
    words = [f"new{name}map", str(pid), *(str(number) for each in ranges for number in each)]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        # Permission denied is what a directory says where programs are looked for.
        raise MapError(f"cannot run {words[0]}: {error.strerror}; install uidmap") from error
    if done.returncode:
        raise MapError(f"{words[0]}: {done.stderr.strip() or done.returncode}")


def _be_root(users: Iterable[IdRange], groups: Iterable[IdRange]) -> None:
    try:
        if any(each.inside == 0 for each in groups):
            os.setresgid(0, 0, 0)
            os.setgroups([])
        if any(each.inside == 0 for each in users):
            os.setresuid(0, 0, 0)
    except OSError as error:
        raise MapError(f"cannot be root of the namespace: {error.strerror}") from error
