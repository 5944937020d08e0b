# SPDX-License-Identifier: Apache-2.0
"""When opening or changing a file takes its set-id bits away (FUSE_HANDLE_KILLPRIV_V2)."""

from __future__ import annotations

import os

from farwatchd.fuse.request import Request
from farwatchd.wire.fuse import OPEN_KILL_SUIDGID


class SetIdBits:
    """The rule that was agreed in INIT: whether the guest says so itself."""

    def __init__(self) -> None:
        self._agreed = False

    def agree(self, agreed: bool) -> None:
        """The guest says when they have to go."""
        self._agreed = agreed

    def go_by_change(self, request: Request) -> bool:
        """Whether a change takes them away of which the guest cannot say so, though it agreed: for
        all but root."""
        return self._agreed and request.uid != 0

    def go(self, request: Request, flags: int, open_flags: int) -> bool:
        """Whether opening with these flags takes them away; without agreement: truncating, for all
        but root."""
        if open_flags & OPEN_KILL_SUIDGID:
            return True
        return not self._agreed and bool(flags & os.O_TRUNC) and request.uid != 0
