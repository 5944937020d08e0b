# SPDX-License-Identifier: Apache-2.0
"""The options of the share, and what the guest may cache by them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from farwatchd.config import Option, choice, choices, number, option, options
from farwatchd.inode_store.options import MOST_OPEN, InodeFileHandles
from farwatchd.passthrough.id_map import IdTranslation, parse_rule
from farwatchd.passthrough.xattrmap import XattrMap, parse

#: Inodes that the guest may know, without ``--max-inodes``.
DEFAULT_MAX_INODES = 10_000_000


class Cache(Enum):
    """How much the guest may cache (``--cache``)."""

    NEVER = "never"
    AUTO = "auto"
    METADATA = "metadata"
    ALWAYS = "always"

    @property
    def seconds(self) -> float:
        """The entry timeout and attr timeout, in seconds."""
        return {Cache.NEVER: 0.0, Cache.AUTO: 1.0}.get(self, 86400.0)


def _rules(name: str, ids: str) -> Option:
    text = (
        f"{ids} of the host that differ from the guest's, by virtiofsd's rules (map:1000:5000:1"
        " makes the guest's 1000 the host's 5000); may be repeated; not with --posix-acl"
    )
    return Option(name, text, parse_rule, {"action": "append", "default": [], "metavar": "RULE"})


@dataclass(frozen=True, slots=True)
class ShareOptions:
    """The options of the share.

    ``writeback``: the guest caches writes, so it reads files that it opened to write, and finds the
    end of a file itself when it appends. ``readonly``: each modification is EROFS. ``xattr``:
    without it the reply is ENOSYS, and the guest stops asking. ``allow_direct_io``,
    ``preserve_noatime``: without them O_DIRECT and O_NOATIME are removed from the guest's flags.
    ``security_labels``: new files get the security xattrs that the request carries
    (``--security-label``).
    """

    cache: Cache = option("cache", "what the guest may cache (default: auto)", Cache.AUTO)
    writeback: bool = option(
        "writeback", "let the guest cache writes and write them back later", False
    )
    readonly: bool = option("readonly", "refuse all changes by the guest", False)
    xattr: bool = option("xattr", "support extended attributes", False)
    allow_direct_io: bool = option("allow-direct-io", "pass O_DIRECT on to the host", False)
    preserve_noatime: bool = option("preserve-noatime", "pass O_NOATIME on to the host", False)
    announce_submounts: bool = option(
        "announce-submounts",
        "show mount points in the share as submounts (default: yes)",
        True,
        negatable=True,
    )
    security_labels: bool = False
    xattrmap: XattrMap | None = option(
        "xattrmap",
        "other names on the host for extended attributes, by virtiofsd's rules"
        " (:map::user.virtiofs.: adds this prefix to all names of the guest); includes --xattr",
        None,
        parse,
        metavar="RULES",
    )
    id_translation: IdTranslation | None = options(
        _rules("translate-uid", "uids"),
        _rules("translate-gid", "gids"),
        default=None,
    )
    inode_file_handles: InodeFileHandles = option(
        "inode-file-handles",
        "reference inodes by file handle instead of an O_PATH descriptor (default: prefer, where"
        " that works)",
        InodeFileHandles.PREFER,
        choice(InodeFileHandles, fallback=InodeFileHandles.PREFER),
        metavar=choices(InodeFileHandles),
    )
    inode_descriptors: int = option(
        "inode-descriptors",
        "inodes referenced by file handle that have a descriptor while they are in use; it is"
        f" closed after a second or two (default: {MOST_OPEN}, at most an eighth of"
        " --rlimit-nofile)",
        MOST_OPEN,
        number(2, 1_000_000),
        metavar="N",
    )
    max_inodes: int = options(
        Option(
            "max-inodes",
            "inodes that the guest may know; one more is ENFILE (default: as many as fit a quarter"
            f" of the memory, at most {DEFAULT_MAX_INODES})",
            number(2, 1_000_000_000),
            {"default": None, "metavar": "N"},
        ),
        default=DEFAULT_MAX_INODES,
    )
