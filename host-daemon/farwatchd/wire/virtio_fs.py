# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device as the driver sees it: feature bits and configuration space (Virtio 1.2,
5.11 and 6)."""

from __future__ import annotations

from enum import IntFlag

from construct import Bytes, Int32ul, Struct

from farwatchd.wire.codec import Codec


class Feature(IntFlag):
    """Device feature bits that are offered, with the one that vhost-user keeps for itself."""

    FS_NOTIFICATION = 1 << 0
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VHOST_USER_PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


TAG_SIZE = 36
#: Announced size of a notification buffer: room for several records with names (docs/protocol.md).
NOTIFY_BUF_SIZE = 4096

#: ``struct virtio_fs_config``, 44 bytes; ``notify_buf_size`` counts only with FS_NOTIFICATION.
FS_CONFIG = Struct(
    "tag" / Bytes(TAG_SIZE), "num_request_queues" / Int32ul, "notify_buf_size" / Int32ul
)

fs_config = Codec(FS_CONFIG, "fs_config")
