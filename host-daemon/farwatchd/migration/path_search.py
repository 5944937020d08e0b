# SPDX-License-Identifier: Apache-2.0
"""Finds inodes in the whole share whose paths the kernel does not know.

The host's kernel has forgotten the name of a file that was opened by its handle, if nobody has used
the name for long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from farwatchd.state_dir.places import PlaceIdentity, Places

_BELOW = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Directory(NamedTuple):
    """A directory, its path with a slash at the end, and the directories left to search in it."""

    fd: int
    path: bytes
    below: list[bytes]


def find_paths(
    places: Places, root_fd: int, wanted: Mapping[int, PlaceIdentity]
) -> dict[int, bytes]:
    """Return the paths of inodes, by the keys of ``wanted``, as far as they are found."""
    by_number: dict[int, list[int]] = {}
    for key, identity in wanted.items():
        by_number.setdefault(identity.ino, []).append(key)
    found: dict[int, bytes] = {}

    def scan(directory: int, path: bytes) -> list[bytes]:
        """Look for the inodes in a directory; return the names of those below it."""
        below: list[bytes] = []
        # A directory that cannot be read has nothing that can be found.
        with contextlib.suppress(OSError):
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        for key in by_number.get(entry.inode(), ()):
                            if key not in found and _is(places, directory, name, wanted[key]):
                                found[key] = path + name
                        if entry.is_dir(follow_symlinks=False):
                            below.append(name)
            finally:
                os.close(fd)
        return below

    # The directories from the root to the present one. The guest can make them deeper than calls
    # can be nested.
    way = [_Directory(root_fd, b"", scan(root_fd, b""))]
    try:
        while way and len(found) < len(wanted):
            if not way[-1].below:
                _close(way)
                continue
            name = way[-1].below.pop()
            with contextlib.suppress(OSError):
                fd = os.open(name, _BELOW, dir_fd=way[-1].fd)
                path = way[-1].path + name + b"/"
                way.append(_Directory(fd, path, []))
                way[-1].below.extend(scan(fd, path))
    finally:
        while way:
            _close(way)
    return found


def _close(way: list[_Directory]) -> None:
    """Leave the last directory; the first one is the caller's."""
    last = way.pop()
    if way:
        os.close(last.fd)


def _is(places: Places, directory: int, name: bytes, identity: PlaceIdentity) -> bool:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return places.identity(fd) == identity
    finally:
        os.close(fd)
