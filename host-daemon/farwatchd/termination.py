# SPDX-License-Identifier: Apache-2.0
"""Ends the process at SIGTERM and SIGINT, and logs its status at SIGUSR1.

The event loop ends in order, or by force when one of its system calls does not return.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Seconds from the signal to the end by force.
GRACE = 5.0
_LOG_LIMIT = 0.5
STATUS_SIGNAL = signal.SIGUSR1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, STATUS_SIGNAL)


def hold_status_signal() -> None:
    """Let SIGUSR1 wait until the status can be logged: it would end the process before."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (STATUS_SIGNAL,))


def block_signals() -> None:
    """Leave the signals to ``SignalThread``: call before the first thread is created."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


class SignalThread:
    """Waits for signals in a thread of its own.

    At SIGTERM and SIGINT it calls ``stop``, at SIGUSR1 ``log_status``, which may be called from any
    thread. If ``close`` does not follow within ``GRACE`` seconds of ``stop`` it ends the process.
    """

    def __init__(self, stop: Callable[[], None], log_status: Callable[[], None]) -> None:
        self._stop = stop
        self._log_status = log_status
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)

    def start(self) -> None:
        """Start the thread; ``RuntimeError`` if the system refuses a thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread.

        A thread that is left over at the interpreter's end is ended by pthread_exit(3), which loads
        a library that the sandbox hides, and aborts.
        """
        self._closed.set()
        assert self._thread.ident is not None
        # Nothing happens if the signal has come already.
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self._thread.ident, signal.SIGTERM)
        self._thread.join()

    def _wait(self) -> None:
        while signal.sigwait(_SIGNALS) == STATUS_SIGNAL:
            self._log_status()
        self._stop()
        if self._closed.wait(GRACE):
            return
        # A thread that hangs may have the log's lock.
        last_line = threading.Thread(
            target=_log.warning, args=("ended by force: the host does not finish a request",)
        )
        last_line.daemon = True
        last_line.start()
        last_line.join(_LOG_LIMIT)
        os._exit(0)
