# SPDX-License-Identifier: Apache-2.0
"""The command ``farwatchd``: makes the socket, then loads and runs the rest (``command.py``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from farwatchd import (
    early_socket,
    standard_descriptors,  # noqa: F401 - before any module that opens a file
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status.

    0: ended; 1: cannot serve, one line says why; 2: wrong usage.
    """
    words = sys.argv[1:] if arguments is None else arguments
    early = early_socket.make(words)
    try:
        # Most of the time until requests can be served. A VMM can connect meanwhile.
        from farwatchd.command import run

        return run(words, early)
    finally:
        if early is not None:
            early.discard()
