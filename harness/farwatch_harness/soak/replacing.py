# SPDX-License-Identifier: Apache-2.0
"""Replaces or kills the testbed's daemon again and again while the stress test runs."""

import threading
import time
from random import Random
from types import TracebackType

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.testbed import Testbed

#: Seconds between two replacements, and between a start and a kill.
SHORTEST, LONGEST = 0.5, 5.0
SHORTEST_LIFE, LONGEST_LIFE = 2.0, 12.0
#: Seconds after which the guest's watchers have the overflow of a daemon that was killed.
SETTLED = 5.0


class Replacements:
    """Replaces the daemon at random intervals, or kills and restarts it, from start() to stop().

    A daemon ends with the thread that has started it. So leave the block after the testbed's.

    count: how many times a daemon was replaced. problems: what went wrong; then it stops.
    lock: held while testbed.daemon changes.
    """

    def __init__(self, random: Random, *, kill: bool = False) -> None:
        self.kill = kill
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

    def start(self, testbed: Testbed) -> None:
        """Replace the daemon of `testbed` from now on."""
        self._thread = threading.Thread(target=self._run, args=(testbed,), name="replacements")
        self._thread.start()

    def stop(self) -> None:
        """Stop to replace the daemon. Returns when none is being replaced."""
        self._stopped.set()
        with self.lock:
            pass

    def killed_since(self, begin: float) -> bool:
        """Return whether watchers since `begin`, by the monotonic clock, may miss events."""
        with self.lock:
            return self.kill and self._last > begin - SETTLED

    def _run(self, testbed: Testbed) -> None:
        pauses = (SHORTEST_LIFE, LONGEST_LIFE) if self.kill else (SHORTEST, LONGEST)
        while not self._stopped.wait(self._random.uniform(*pauses)):
            with self.lock:
                if self._stopped.is_set():
                    break
                try:
                    if self.kill:
                        testbed.kill_daemon()
                    else:
                        testbed.replace_daemon()
                except HarnessError as error:
                    self.problems.append(str(error))
                    break
                self.count += 1
                self._last = time.monotonic()
        self._ended.wait()
