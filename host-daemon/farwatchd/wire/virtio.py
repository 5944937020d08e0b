# SPDX-License-Identifier: Apache-2.0
"""Feature bits that every virtio device may have (Virtio 1.2, 6)."""

from __future__ import annotations

from enum import IntFlag


class VirtioFeature(IntFlag):
    """``VIRTIO_F_*``: what driver and device agree on about the rings."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
