# SPDX-License-Identifier: Apache-2.0
"""What options choose of the inode store, without the store: the socket is there before it."""

from __future__ import annotations

from enum import Enum

#: Descriptors of inodes by handle that stay open, at most.
MOST_OPEN = 4096


class InodeFileHandles(Enum):
    """Whether inodes are referenced by file handle (``--inode-file-handles``).

    PREFER: where that works.
    """

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"
