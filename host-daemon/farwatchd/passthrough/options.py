# SPDX-License-Identifier: Apache-2.0
"""What the user can choose about the passthrough file system, and what follows from it for the
guest's caches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag

from farwatchd.passthrough.id_map import Owners
from farwatchd.passthrough.inode_table import MAX_INODES
from farwatchd.passthrough.xattrmap import XattrMap


class Open(IntFlag):
    """``FOPEN_*`` of ``linux/fuse.h``: what the guest may do with an open file's cached
    contents."""

    NONE = 0
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


class Cache(Enum):
    """How much the guest may cache (``--cache``)."""

    NEVER = "never"
    AUTO = "auto"
    METADATA = "metadata"
    ALWAYS = "always"

    @property
    def seconds(self) -> float:
        """How long names and attributes hold in the guest."""
        return {Cache.NEVER: 0.0, Cache.AUTO: 1.0}.get(self, 86400.0)

    @property
    def file_flags(self) -> Open:
        """The flags of an open file."""
        match self:
            case Cache.NEVER | Cache.METADATA:
                return Open.DIRECT_IO
            case Cache.AUTO:
                return Open.NONE
            case Cache.ALWAYS:
                return Open.KEEP_CACHE

    @property
    def directory_flags(self) -> Open:
        """The flags of an open directory."""
        match self:
            case Cache.NEVER | Cache.AUTO:
                return Open.NONE
            case Cache.METADATA | Cache.ALWAYS:
                return Open.CACHE_DIR | Open.KEEP_CACHE


@dataclass(frozen=True, slots=True)
class Options:
    """The choices.

    ``writeback``: the guest caches writes, so it reads what it opened to write, and appends by
    itself.
    ``readonly``: each modification is EROFS. ``xattr``: off is ENOSYS, which makes the guest stop
    asking.
    ``allow_direct_io``, ``preserve_noatime``: off strips O_DIRECT and O_NOATIME.
    ``announce_submounts``: mark
    directories that are mount points or on another file system than the one they are in.
    ``security_label``: the guest
    may give new inodes a label; off refuses the request. ``xattrmap``: other names on the host for
    attributes.
    ``owners``: other owners on the host.
    """

    cache: Cache = Cache.AUTO
    writeback: bool = False
    readonly: bool = False
    xattr: bool = False
    allow_direct_io: bool = False
    preserve_noatime: bool = False
    announce_submounts: bool = True
    security_label: bool = False
    xattrmap: XattrMap | None = None
    owners: Owners | None = None
    max_inodes: int = MAX_INODES
