# SPDX-License-Identifier: Apache-2.0
"""The options of live migration, as virtiofsd's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from farwatchd.config import option


class MigrationMode(Enum):
    """How the destination finds inodes (``--migration-mode``)."""

    FIND_PATHS = "find-paths"
    FILE_HANDLES = "file-handles"


class OnMigrationError(Enum):
    """What the destination does if it does not find one (``--migration-on-error``)."""

    ABORT = "abort"
    GUEST_ERROR = "guest-error"


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """The options of live migration."""

    migration_mode: MigrationMode = option(
        "migration-mode",
        "how the destination of a live migration finds inodes: by their paths, or by file handle,"
        " which needs the same file system there (default: find-paths)",
        MigrationMode.FIND_PATHS,
    )
    migration_on_error: OnMigrationError = option(
        "migration-on-error",
        "what the destination does if it does not find an inode: fail, upon which the guest goes on"
        " at the source, or reply with errors where the guest uses it (default: abort)",
        OnMigrationError.ABORT,
    )
    migration_confirm_paths: bool = option(
        "migration-confirm-paths",
        "open each path at the source, to see that it is the inode",
        False,
    )
    migration_verify_handles: bool = option(
        "migration-verify-handles",
        "have the destination compare file handles, so that it takes no other file of the same"
        " path; it needs the same file system there",
        False,
    )
