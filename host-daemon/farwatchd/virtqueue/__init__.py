# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues over guest memory (Virtio 1.2, section 2.7); knows nothing of devices or file
systems.

Everything the guest writes is checked here, and nothing is believed that was read more than once.
"""

from farwatchd.virtqueue.chains import Chain
from farwatchd.virtqueue.errors import VirtqueueError
from farwatchd.virtqueue.memory import GuestMemory, Region
from farwatchd.virtqueue.ring import RingAddress, RingMemory, SplitRing

__all__ = [
    "Chain",
    "GuestMemory",
    "Region",
    "RingAddress",
    "RingMemory",
    "SplitRing",
    "VirtqueueError",
]
