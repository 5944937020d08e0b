# SPDX-License-Identifier: Apache-2.0
"""What each FUSE request consists of, for tests that make any of them."""

from __future__ import annotations

from farwatchd.wire import fuse
from farwatchd.wire.codec import Codec
from farwatchd.wire.fsnotify import fsnotify_in
from farwatchd.wire.fuse import Opcode

#: Requests that have no reply.
NO_REPLY = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
#: What reply buffers are filled with.
FILLER = 0xA5
#: What follows the header: a structure, then names; the same shapes as in ``linux/fuse.h``.
SHAPES: dict[int, tuple[Codec | None, int]] = {
    Opcode.LOOKUP: (None, 1),
    Opcode.FORGET: (fuse.forget_in, 0),
    Opcode.GETATTR: (fuse.getattr_in, 0),
    Opcode.SETATTR: (fuse.setattr_in, 0),
    Opcode.READLINK: (None, 0),
    Opcode.SYMLINK: (None, 2),
    Opcode.MKNOD: (fuse.mknod_in, 1),
    Opcode.MKDIR: (fuse.mkdir_in, 1),
    Opcode.UNLINK: (None, 1),
    Opcode.RMDIR: (None, 1),
    Opcode.RENAME: (fuse.rename_in, 2),
    Opcode.LINK: (fuse.link_in, 1),
    Opcode.OPEN: (fuse.open_in, 0),
    Opcode.READ: (fuse.read_in, 0),
    Opcode.WRITE: (fuse.write_in, 1),
    Opcode.STATFS: (None, 0),
    Opcode.RELEASE: (fuse.release_in, 0),
    Opcode.FSYNC: (fuse.fsync_in, 0),
    Opcode.SETXATTR: (fuse.setxattr_in, 2),
    Opcode.GETXATTR: (fuse.getxattr_in, 1),
    Opcode.LISTXATTR: (fuse.getxattr_in, 0),
    Opcode.REMOVEXATTR: (None, 1),
    Opcode.FLUSH: (fuse.flush_in, 0),
    Opcode.OPENDIR: (fuse.open_in, 0),
    Opcode.READDIR: (fuse.read_in, 0),
    Opcode.RELEASEDIR: (fuse.release_in, 0),
    Opcode.FSYNCDIR: (fuse.fsync_in, 0),
    Opcode.CREATE: (fuse.create_in, 1),
    Opcode.BATCH_FORGET: (fuse.batch_forget_in, 3),
    Opcode.FALLOCATE: (fuse.fallocate_in, 0),
    Opcode.READDIRPLUS: (fuse.read_in, 0),
    Opcode.RENAME2: (fuse.rename2_in, 2),
    Opcode.LSEEK: (fuse.lseek_in, 0),
    Opcode.COPY_FILE_RANGE: (fuse.copy_file_range_in, 0),
    Opcode.SYNCFS: (None, 0),
    Opcode.TMPFILE: (fuse.create_in, 1),
    Opcode.STATX: (fuse.statx_in, 0),
    Opcode.FSNOTIFY: (fsnotify_in, 0),
}
