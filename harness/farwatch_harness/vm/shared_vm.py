# SPDX-License-Identifier: Apache-2.0
"""Keeps one guest for many tests: boots it when the first asks for it, and again after it was
lost."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from farwatch_harness.vm.testbed import Testbed, TestbedSpec, start_testbed


class SharedVm:
    """Holds at most one running machine, made from make_spec(name)."""

    def __init__(self, make_spec: Callable[[str], TestbedSpec]) -> None:
        self.make_spec = make_spec
        self.boots = 0
        self.stack = contextlib.ExitStack()
        self.current: Testbed | None = None

    def testbed(self) -> Testbed:
        """The running machine; booted when there is none that is alive."""
        if self.current is not None and self.current.alive:
            return self.current
        self.close()
        self.boots += 1
        self.current = self.stack.enter_context(
            start_testbed(self.make_spec(f"guest-{self.boots}"))
        )
        return self.current

    def close(self) -> None:
        """Ends the machine if there is one."""
        self.current = None
        self.stack.close()


def log_tail(path: Path, lines: int = 40) -> str:
    """The end of a log file, for a report; empty when there is none."""
    return (
        "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
    )
