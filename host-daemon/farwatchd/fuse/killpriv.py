# SPDX-License-Identifier: Apache-2.0
"""Decides when a request clears a file's set-id bits (FUSE_HANDLE_KILLPRIV_V2)."""

from __future__ import annotations

import os

from farwatchd.fuse.request import Request
from farwatchd.wire.fuse import OPEN_KILL_SUIDGID


class KillPriv:
    """The rule that INIT negotiated: whether the guest says when to clear set-id bits."""

    def __init__(self) -> None:
        self._negotiated = False

    def set_negotiated(self, negotiated: bool) -> None:
        """Record whether FUSE_HANDLE_KILLPRIV_V2 was negotiated."""
        self._negotiated = negotiated

    def must_clear_on_modify(self, request: Request) -> bool:
        """Return whether FALLOCATE or COPY_FILE_RANGE clears set-id bits.

        These requests carry no kill flag; with HANDLE_KILLPRIV_V2 negotiated, set-id bits are
        cleared unless the requester is root.
        """
        return self._negotiated and request.uid != 0

    def must_clear_on_open(self, request: Request, flags: int, open_flags: int) -> bool:
        """Return whether opening with these flags clears set-id bits.

        The client sends a kill flag if HANDLE_KILLPRIV_V2 was negotiated. Otherwise truncating
        clears them, unless the requester is root.
        """
        if open_flags & OPEN_KILL_SUIDGID:
            return True
        return not self._negotiated and bool(flags & os.O_TRUNC) and request.uid != 0
