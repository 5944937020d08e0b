# SPDX-License-Identifier: Apache-2.0
"""A VM that several tests use one after the other."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from farwatch_harness.vm.testbed import Testbed, TestbedSpec, start_testbed


class SharedVm:
    """At most one running testbed, made from make_spec(name)."""

    def __init__(self, make_spec: Callable[[str], TestbedSpec]) -> None:
        self.make_spec = make_spec
        self.boots = 0
        self.stack = contextlib.ExitStack()
        self.current: Testbed | None = None

    def testbed(self) -> Testbed:
        """Return the running testbed; boot one if there is none, or if it is lost."""
        if self.current is not None and self.current.alive:
            return self.current
        self.close()
        self.boots += 1
        self.current = self.stack.enter_context(
            start_testbed(self.make_spec(f"guest-{self.boots}"))
        )
        return self.current

    def close(self) -> None:
        """Stop the testbed, if there is one."""
        self.current = None
        self.stack.close()


def log_tail(path: Path, lines: int = 40) -> str:
    """Return the last lines of a log file; "" if there is no such file."""
    return (
        "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
    )
