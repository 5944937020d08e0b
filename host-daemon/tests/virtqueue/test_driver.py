# SPDX-License-Identifier: Apache-2.0
"""The tests' driver accesses its rings as a driver does."""

from __future__ import annotations

import os
import signal
import time

from tests.support.driver import GuestRam

#: Neighbours that have no byte in common.
INDICES = (0x00FF, 0x0100)
SECONDS = 0.5
_TURNS = 1000


def write_forever(ram: GuestRam, addr: int) -> None:
    while True:
        for index in INDICES:
            ram.write_short(addr, index)


def test_index_is_never_seen_in_part() -> None:
    ram = GuestRam()
    addr = ram.allocate(16)
    ram.write_short(addr, INDICES[0])
    device = ram.share().cast("H")
    child = os.fork()
    if not child:
        write_forever(ram, addr)
    try:
        deadline = time.monotonic() + SECONDS
        seen: set[int] = set()
        while time.monotonic() < deadline or len(seen) < len(INDICES):
            seen |= {device[(addr - ram.BASE) // 2] for _ in range(_TURNS)}
            seen |= {ram.read_short(addr) for _ in range(_TURNS)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == set(INDICES)
    ram.close()
