# SPDX-License-Identifier: Apache-2.0
"""timerfd(2): a descriptor that is readable at a given time."""

from __future__ import annotations

import os
import struct
import time

from farwatchd.linux.libc import NANOSECONDS, check, function

_TFD_TIMER_ABSTIME = 1
#: ``struct itimerspec``: the interval, and the first expiration, in seconds and nanoseconds.
_ITIMERSPEC = struct.Struct("@llll")

_timerfd_create = function("timerfd_create")
_timerfd_settime = function("timerfd_settime")


class TimerFd:
    """A timer of CLOCK_MONOTONIC. It owns its descriptor, and is not set at first."""

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = check(_timerfd_create(time.CLOCK_MONOTONIC, flags), "timerfd_create")

    def fileno(self) -> int:
        """Return the descriptor: readable from the time that was set on, until another is set."""
        return self._fd

    def set(self, when_ns: int | None) -> None:
        """Set the time, by ``time.monotonic_ns``; None: never."""
        value = _ITIMERSPEC.pack(0, 0, *divmod(when_ns or 0, NANOSECONDS))
        check(_timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, value, None), "timerfd_settime")

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
