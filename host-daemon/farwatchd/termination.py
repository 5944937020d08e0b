# SPDX-License-Identifier: Apache-2.0
"""The end of the process at SIGTERM and SIGINT: in order, or by force where a system call of the
event loop does not return."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Seconds from the signal to the end by force.
GRACE = 5.0
_LOG_LIMIT = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def block_signals() -> None:
    """Leave SIGTERM and SIGINT to ``end_on_signals``: call before the first thread is created."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def end_on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` in another thread at a signal; end the process if it still runs ``GRACE``
    seconds later."""
    threading.Thread(target=_wait, args=(stop,), name="signals", daemon=True).start()


def _wait(stop: Callable[[], None]) -> None:
    signal.sigwait(_SIGNALS)
    stop()
    time.sleep(GRACE)
    # A thread that hangs may have the log's lock.
    last_line = threading.Thread(
        target=_log.warning, args=("ended by force: the host does not finish a request",)
    )
    last_line.daemon = True
    last_line.start()
    last_line.join(_LOG_LIMIT)
    os._exit(0)
