# SPDX-License-Identifier: Apache-2.0
"""The replies to READDIR and READDIRPLUS: as many entries as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from farwatchd.fuse import encode
from farwatchd.fuse.filesystem import DirEntry
from farwatchd.fuse.request import invalid
from farwatchd.wire.fuse import dirent, entry_out

_DIRENT_SIZE = dirent.size
_PADDING = [bytes(length) for length in range(8)]


def fill(entries: Iterable[DirEntry], room: int, lookup: Callable[[bytes], bytes] | None) -> bytes:
    """Encode entries up to ``room`` bytes, with ``lookup``, which gives ``fuse_entry_out``, as
    ``fuse_direntplus``.

    Each entry that ``lookup`` gives is in the reply, as the client owes a FORGET for it: an error
    later on ends the reply early and comes back on the next read. EINVAL when not even the first
    entry fits.
    """
    parts: list[bytes] = []
    left = room
    fixed = _DIRENT_SIZE if lookup is None else entry_out.size + _DIRENT_SIZE
    try:
        for name, ino, kind, offset in entries:
            length = fixed + len(name)
            padding = -length % 8
            left -= length + padding
            if left < 0:
                if not parts:
                    raise invalid(f"no room for an entry in {room} bytes")
                break
            if lookup is not None:
                parts.append(_looked_up(name, lookup))
            parts += (dirent.pack_values(ino, offset, len(name), kind), name, _PADDING[padding])
    except OSError:
        if not parts:
            raise
    return b"".join(parts)


def _looked_up(name: bytes, lookup: Callable[[bytes], bytes]) -> bytes:
    """The entry's inode; none for '.' and '..', which are not looked up, and for one that cannot be
    looked up."""
    if name == b"." or name == b"..":
        return encode.NO_ENTRY
    try:
        return lookup(name)
    except OSError:
        return encode.NO_ENTRY
