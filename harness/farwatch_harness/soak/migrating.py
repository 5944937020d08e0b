# SPDX-License-Identifier: Apache-2.0
"""A guest that migrates, as the stress test uses a testbed."""

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.console import Console
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.migration import MigratingGuest
from farwatch_harness.vm.testbed import LogPosition
from farwatch_harness.vm.virtiofs_daemon import Daemon


class MigratingTestbed:
    """The guest, and the host where it is; `migrating` stays the caller's.

    replaced: how often the guest has migrated.
    """

    def __init__(self, migrating: MigratingGuest) -> None:
        self.migrating = migrating
        self.shared = migrating.spec.shared
        self.mount_point = migrating.mount_point
        self.replaced = 0
        self.guest_problems: list[str] = []

    @property
    def guest(self) -> Guest:
        """The guest's agent."""
        return self.migrating.guest

    @property
    def daemon(self) -> Daemon:
        """The daemon where the guest is."""
        return self.migrating.host.daemon

    def migrate(self) -> None:
        """Migrate the guest to a new host. HarnessError: it stays where it was."""
        source = self.migrating.host
        if not self.daemon.running:
            raise HarnessError("the daemon has ended")
        self.migrating.migrate()
        self.replaced += 1
        self.guest_problems += console_problems(source.console.read_text(errors="replace"))

    def log_position(self) -> LogPosition:
        """Return the end of both logs, for a later problems(since)."""
        return LogPosition(len(self.all_guest_problems()), self.daemon.log_length, self.replaced)

    def lines_before(self, position: LogPosition) -> int:
        """Return how many lines of the present daemon's log come before a position."""
        return position.daemon_lines if position.replaced == self.replaced else 0

    def problems(self, since: LogPosition) -> list[str]:
        """Return the kernel's warnings and the daemon's tracebacks after `since`."""
        found = self.all_guest_problems()[since.problems :]
        return [f"guest kernel: {line}" for line in found] + self.daemon.tracebacks(
            self.lines_before(since)
        )

    def all_guest_problems(self) -> list[str]:
        """Return the kernel's warnings at all hosts."""
        text = self.migrating.host.console.read_text(errors="replace")
        return self.guest_problems + console_problems(text)


def console_problems(text: str) -> list[str]:
    """Return the lines of a console that report a fault."""
    return [problem.line for problem in Console().feed(text)]
