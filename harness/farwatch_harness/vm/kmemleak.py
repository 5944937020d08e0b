# SPDX-License-Identifier: Apache-2.0
"""Asks a kernel with kmemleak for memory that nothing refers to any more."""

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

KMEMLEAK = "/sys/kernel/debug/kmemleak"
SCAN_LIMIT = 300.0
#: An object must be 5 s old to count, and be found by two scans.
SCRIPT = f"echo scan > {KMEMLEAK} && sleep 6 && echo scan > {KMEMLEAK} && cat {KMEMLEAK}"


def fail_on_leaks(guest: Guest) -> None:
    """HarnessError with what has leaked since the guest booted; a kernel without kmemleak is not
    asked."""
    if not guest.os("access", KMEMLEAK, 0):
        return
    found = guest.shell(SCRIPT, limit=SCAN_LIMIT).strip()
    if found:
        count = found.count("unreferenced object")
        raise HarnessError(f"the guest's kernel has leaked {count} objects:\n{found}")
