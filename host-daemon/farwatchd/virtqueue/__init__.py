# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues over guest memory (Virtio 1.2, section 2.7).

Knows nothing of devices or file systems.

Everything that the guest writes is read once and checked.

- ``ring``: the available and the used ring, and notification
- ``chains``: descriptor chains
- ``logged_ring``: a ring that logs what it writes, for a front-end that migrates the guest
- ``dirty_log``: that log
- ``memory``: guest memory, mapped, and the translation of guest addresses
- ``errors``: ``VirtqueueError``
"""

from __future__ import annotations

from farwatchd.virtqueue.chains import Chain
from farwatchd.virtqueue.dirty_log import DirtyLog
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.logged_ring import LoggedRing
from farwatchd.virtqueue.memory import GuestMemory, Region
from farwatchd.virtqueue.ring import Ring, RingAddress, RingMemory, SplitRing, unsupported_machine

__all__ = [
    "Chain",
    "DirtyLog",
    "GuestMemory",
    "LoggedRing",
    "Region",
    "Ring",
    "RingAddress",
    "RingMemory",
    "SplitRing",
    "VirtqueueError",
    "unsupported_machine",
]
