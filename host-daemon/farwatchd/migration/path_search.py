# SPDX-License-Identifier: Apache-2.0
"""Finds inodes in the whole share whose paths the kernel does not know.

The host's kernel has forgotten the name of a file that was opened by its handle, if nobody has used
the name for long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from farwatchd.state_dir.places import PlaceIdentity, Places


def find_paths(
    places: Places, root_fd: int, wanted: Mapping[int, PlaceIdentity]
) -> dict[int, bytes]:
    """Return the paths of inodes, by the keys of ``wanted``, as far as they are found."""
    by_number: dict[int, list[int]] = {}
    for key, identity in wanted.items():
        by_number.setdefault(identity.ino, []).append(key)
    found: dict[int, bytes] = {}
    _search(places, root_fd, b"", wanted, by_number, found)
    return found


def _search(
    places: Places,
    directory: int,
    path: bytes,
    wanted: Mapping[int, PlaceIdentity],
    by_number: Mapping[int, list[int]],
    found: dict[int, bytes],
) -> None:
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
    for name in below:
        if len(found) == len(wanted):
            return
        with contextlib.suppress(OSError):
            fd = os.open(
                name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            try:
                _search(places, fd, path + name + b"/", wanted, by_number, found)
            finally:
                os.close(fd)


def _is(places: Places, directory: int, name: bytes, identity: PlaceIdentity) -> bool:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return places.identity(fd) == identity
    finally:
        os.close(fd)
