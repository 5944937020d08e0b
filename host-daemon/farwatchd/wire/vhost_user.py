# SPDX-License-Identifier: Apache-2.0
"""Wire formats of vhost-user: messages of a front-end, replies.

See QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from construct import Int32ul, Int64ul, Struct

from farwatchd.wire.codec import Codec


class FrontEndRequest(IntEnum):
    """``VHOST_USER_*``: the front-end message types that a file system's back-end supports."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


#: ``VHOST_F_LOG_ALL``: the virtio feature bit by which the front-end has all writes into guest
#: memory logged. It keeps this bit for itself, too.
VHOST_F_LOG_ALL = 1 << 26
#: ``VHOST_USER_F_PROTOCOL_FEATURES``: the virtio feature bit that vhost-user keeps for itself.
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30


class ProtocolFeature(IntFlag):
    """Bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    DEVICE_STATE = 1 << 19


class HeaderFlag(IntFlag):
    """Bits of a message header's ``flags``; the lowest two hold the protocol's version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


VERSION = 1
VERSION_MASK = 3
#: SET_VRING_KICK, CALL and ERR: bits of the payload that name the ring, and the bit that says that
#: no descriptor comes.
VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
#: ``VHOST_VRING_F_LOG`` of SET_VRING_ADDR: writes to the used ring are logged.
VRING_LOG = 1
#: Regions that fit one SET_MEM_TABLE.
MAX_TABLE_REGIONS = 8
#: Bytes of configuration space that GET_CONFIG can address.
MAX_CONFIG_SIZE = 256

#: Every message begins with this; ``size`` counts the payload alone.
HEADER = Struct("request" / Int32ul, "flags" / Int32ul, "size" / Int32ul)
#: Payload of the messages that carry one number.
NUMBER = Struct("value" / Int64ul)
#: ``vhost_vring_state``: SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE.
VRING_STATE = Struct("index" / Int32ul, "num" / Int32ul)
#: ``vhost_vring_addr``: where a ring's parts are, as addresses of the front-end.
VRING_ADDR = Struct(
    "index" / Int32ul,
    "flags" / Int32ul,
    "descriptor" / Int64ul,
    "used" / Int64ul,
    "available" / Int64ul,
    "log" / Int64ul,
)
#: SET_LOG_BASE: where the log is in its file.
LOG_BASE = Struct("size" / Int64ul, "offset" / Int64ul)
#: Start of SET_MEM_TABLE's payload, followed by ``regions`` regions.
MEMORY_TABLE = Struct("regions" / Int32ul, "padding" / Int32ul)
#: One memory region.
MEMORY_REGION = Struct(
    "guest_addr" / Int64ul, "size" / Int64ul, "user_addr" / Int64ul, "mmap_offset" / Int64ul
)
#: ADD_MEM_REG and REM_MEM_REG.
SINGLE_REGION = Struct("padding" / Int64ul, *MEMORY_REGION.subcons)
#: SET_DEVICE_STATE_FD.
DEVICE_STATE = Struct("direction" / Int32ul, "phase" / Int32ul)
#: ``VHOST_TRANSFER_STATE_PHASE_STOPPED``: the device is stopped, and so are its rings.
PHASE_STOPPED = 0
#: Start of GET_CONFIG's and SET_CONFIG's payload, followed by ``size`` bytes.
CONFIG = Struct("offset" / Int32ul, "size" / Int32ul, "flags" / Int32ul)

header = Codec(HEADER, "header")
number = Codec(NUMBER, "number")
vring_state = Codec(VRING_STATE, "vring_state")
vring_addr = Codec(VRING_ADDR, "vring_addr")
log_base = Codec(LOG_BASE, "log_base")
memory_table = Codec(MEMORY_TABLE, "memory_table")
memory_region = Codec(MEMORY_REGION, "memory_region")
single_region = Codec(SINGLE_REGION, "single_region")
device_state = Codec(DEVICE_STATE, "device_state")
config = Codec(CONFIG, "config")

#: The largest payload of any message understood here.
MAX_PAYLOAD = max(
    memory_table.size + MAX_TABLE_REGIONS * memory_region.size, config.size + MAX_CONFIG_SIZE
)
