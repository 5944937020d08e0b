# SPDX-License-Identifier: Apache-2.0
"""Resource limits of the daemon's own process."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger(__name__)

#: Open files asked for when the user names no number: without file handles each inode that the
#: guest knows costs one.
DEFAULT_NOFILE = 1_000_000


def raise_nofile(wanted: int | None) -> int:
    """Let the process open ``wanted`` files (default: as many as can be had, 1 000 000 at most);
    returns the limit.

    0 leaves the limit as it is.
    ``ValueError`` with a text for the user when a number that was asked for cannot be had.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == 0:
        return soft
    target = DEFAULT_NOFILE if wanted is None else wanted
    for limits in ((target, max(target, hard)), (min(target, hard), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):
            continue
        if wanted is not None and limits[0] < wanted:
            raise ValueError(
                f"--rlimit-nofile {wanted}: only {hard} open files are allowed here; ask for less"
            )
        return limits[0]
    _log.warning("the limit of open files stays at %d", soft)
    return soft
