# SPDX-License-Identifier: Apache-2.0
"""Finds memory that a kernel with kmemleak has leaked."""

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

KMEMLEAK = "/sys/kernel/debug/kmemleak"
SCAN_LIMIT = 300.0
#: An object must be 5 s old to count, and be found by two scans.
SCRIPT = f"echo scan > {KMEMLEAK} && sleep 6 && echo scan > {KMEMLEAK} && cat {KMEMLEAK}"


def fail_on_leaks(guest: Guest) -> None:
    """Scan for memory that was leaked since the guest booted.

    Without kmemleak in the kernel, do nothing. HarnessError: something has leaked; the text lists
    it.
    """
    if not guest.os("access", KMEMLEAK, 0):
        return
    found = guest.shell(SCRIPT, limit=SCAN_LIMIT).strip()
    if found:
        count = found.count("unreferenced object")
        raise HarnessError(f"the guest's kernel has leaked {count} objects:\n{found}")
