# SPDX-License-Identifier: Apache-2.0
"""Wire formats of the fsnotify opcode and notification (docs/protocol.md).

They are those of include/uapi/linux/fuse.h after the series.
"""

from __future__ import annotations

from enum import IntFlag

from construct import Int16ul, Int32ul, Int64ul, Struct

from farwatchd.wire.codec import Codec

FUSE_FSNOTIFY = 512
FUSE_FSNOTIFY_WAIT = 513
FUSE_NOTIFY_FSNOTIFY = 64
FUSE_HAS_FSNOTIFY = 1 << 56
FUSE_FSNOTIFY_OTHERS_ONLY = 1 << 57
FUSE_HAS_FSNOTIFY_WAIT = 1 << 58


class Event(IntFlag):
    """Event bits (``FUSE_FSN_*``), as in a request's mask, a reply's mask and a record's mask."""

    ACCESS = 1 << 0
    MODIFY = 1 << 1
    ATTRIB = 1 << 2
    CLOSE_WRITE = 1 << 3
    CLOSE_NOWRITE = 1 << 4
    OPEN = 1 << 5
    MOVED_FROM = 1 << 6
    MOVED_TO = 1 << 7
    CREATE = 1 << 8
    DELETE = 1 << 9
    DELETE_SELF = 1 << 10
    MOVE_SELF = 1 << 11
    OPEN_EXEC = 1 << 12
    RENAME = 1 << 13
    WATCHES_LOST = 1 << 27
    ON_CHILD = 1 << 28
    WATCH_ENDED = 1 << 29
    ISDIR = 1 << 30
    OVERFLOW = 1 << 31


class RecordFlag(IntFlag):
    """Flags of a record (``FUSE_FSN_F_*``)."""

    UNPAIRED = 1 << 0
    UNLINKED = 1 << 1


#: ``struct fuse_fsnotify_in``: payload of FUSE_FSNOTIFY, 16 bytes.
FSNOTIFY_IN = Struct("mask" / Int32ul, "flags" / Int32ul, "generation" / Int64ul)
#: ``struct fuse_fsnotify_out``: reply to FUSE_FSNOTIFY, 16 bytes.
FSNOTIFY_OUT = Struct("mask" / Int32ul, "flags" / Int32ul, "reserved" / Int64ul)
#: ``struct fuse_fsnotify_wait_in``: payload of FUSE_FSNOTIFY_WAIT, 16 bytes.
FSNOTIFY_WAIT_IN = Struct("flags" / Int32ul, "size" / Int32ul, "reserved" / Int64ul)
#: ``struct fuse_notify_fsnotify_out``: one event record without its names, 80 bytes. ``head`` is
#: its size, so that it can grow.
RECORD = Struct(
    "len" / Int32ul,
    "flags" / Int16ul,
    "head" / Int16ul,
    "nodeid" / Int64ul,
    "generation" / Int64ul,
    "mask" / Int32ul,
    "namelen" / Int16ul,
    "newnamelen" / Int16ul,
    "newdir" / Int64ul,
    "newdir_generation" / Int64ul,
    "child" / Int64ul,
    "child_generation" / Int64ul,
    "reserved0" / Int64ul,
    "reserved1" / Int64ul,
)

fsnotify_in = Codec(FSNOTIFY_IN, "fsnotify_in")
fsnotify_out = Codec(FSNOTIFY_OUT, "fsnotify_out")
fsnotify_wait_in = Codec(FSNOTIFY_WAIT_IN, "fsnotify_wait_in")
record = Codec(RECORD, "record")
