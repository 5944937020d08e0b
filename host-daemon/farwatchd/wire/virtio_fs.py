# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device as the driver sees it (Virtio 1.2, 5.11).

These are its feature bit and configuration space.
"""

from __future__ import annotations

from enum import IntFlag

from construct import Bytes, Int32ul, Struct

from farwatchd.wire.codec import Codec


class VirtioFsFeature(IntFlag):
    """``VIRTIO_FS_F_*`` (Virtio 1.2, 5.11.3)."""

    NOTIFICATION = 1 << 0


TAG_SIZE = 36
#: Announced size of a notification buffer: room for several records with names (docs/protocol.md).
NOTIFY_BUF_SIZE = 4096

#: ``struct virtio_fs_config``, 44 bytes; ``notify_buf_size`` counts only with NOTIFICATION.
FS_CONFIG = Struct(
    "tag" / Bytes(TAG_SIZE), "num_request_queues" / Int32ul, "notify_buf_size" / Int32ul
)

fs_config = Codec(FS_CONFIG, "fs_config")
