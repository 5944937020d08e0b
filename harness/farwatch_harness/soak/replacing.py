# SPDX-License-Identifier: Apache-2.0
"""Replaces or kills the testbed's daemon, or migrates, again and again in the stress test."""

import threading
import time
from collections.abc import Callable
from enum import Enum
from random import Random
from types import TracebackType

from farwatch_harness.util.errors import HarnessError

#: Seconds after which the guest's watchers have the overflow of a daemon that was killed.
SETTLED = 5.0


class NextDaemon(Enum):
    """How the guest comes to the next daemon; the seconds from one to the other at least, at most.

    With all but the first watchers get an overflow.
    """

    REPLACED = (0.5, 5.0)
    KILLED = (2.0, 12.0)
    MIGRATED = (4.0, 15.0)


class Replacements:
    """Gives the guest another daemon at random intervals, from start() to stop().

    A daemon ends with the thread that has started it. So leave the block after the testbed's.

    how: what is done.
    count: how many times it was done. problems: what went wrong; then it stops.
    lock: held while testbed.daemon changes.
    """

    def __init__(self, random: Random, how: NextDaemon) -> None:
        self.how = how
        self.count = 0
        self.problems: list[str] = []
        self.lock = threading.Lock()
        self._random = random
        self._last = -SETTLED
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Replacements":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def start(self, replace: Callable[[], None]) -> None:
        """Call `replace` again and again from now on."""
        self._thread = threading.Thread(target=self._run, args=(replace,), name="replacements")
        self._thread.start()

    def stop(self) -> None:
        """Stop to do so. Returns when none is being replaced."""
        self._stopped.set()
        with self.lock:
            pass

    def killed_since(self, begin: float) -> bool:
        """Return whether watchers since `begin`, by the monotonic clock, may miss events."""
        with self.lock:
            return self.how is not NextDaemon.REPLACED and self._last > begin - SETTLED

    def _run(self, replace: Callable[[], None]) -> None:
        while not self._stopped.wait(self._random.uniform(*self.how.value)):
            with self.lock:
                if self._stopped.is_set():
                    break
                try:
                    replace()
                except HarnessError as error:
                    self.problems.append(str(error))
                    break
                self.count += 1
                self._last = time.monotonic()
        self._ended.wait()
