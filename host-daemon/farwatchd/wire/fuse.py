# SPDX-License-Identifier: Apache-2.0
"""Wire formats of FUSE 7.42 that are served.

They are those of Linux 6.12, include/uapi/linux/fuse.h after the series.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from construct import Bytes, Int16ul, Int32sl, Int32ul, Int64sl, Int64ul, Renamed, Struct

from farwatchd.wire.codec import Codec

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 42


class Opcode(IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    FSNOTIFY = 512
    FSNOTIFY_WAIT = 513


class InitFlag(IntFlag):
    """Capabilities in INIT: ``flags``, and above bit 31 ``flags2``.

    FUSE_HAS_FSNOTIFY is in wire/fsnotify.py.
    """

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    CREATE_SUPP_GROUP = 1 << 34
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class OpenFlag(IntFlag):
    """``FOPEN_*``: what OPEN, OPENDIR and CREATE reply."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


class SetattrValid(IntFlag):
    """``FATTR_*``: which fields of SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


#: ``FUSE_GETATTR_FH``: GETATTR's and STATX' ``fh`` counts.
GETATTR_FH = 1 << 0
#: ``FUSE_ATTR_SUBMOUNT``, in ``fuse_attr.flags``.
ATTR_SUBMOUNT = 1 << 0
#: ``FUSE_OPEN_KILL_SUIDGID``, ``FUSE_WRITE_KILL_SUIDGID``, ``FUSE_SETXATTR_ACL_KILL_SGID``.
OPEN_KILL_SUIDGID = 1 << 0
#: ``FUSE_WRITE_CACHE``: from the guest's page cache, through some handle of the file.
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
SETXATTR_ACL_KILL_SGID = 1 << 0
#: ``FUSE_LK_FLOCK``: a lock is flock(2)'s.
LK_FLOCK = 1 << 0
#: ``FUSE_FSYNC_FDATASYNC``.
FSYNC_FDATASYNC = 1 << 0
#: ``FUSE_MAX_NR_SECCTX``: an extension's type up to this is the number of security contexts in it.
MAX_NR_SECCTX = 31
#: ``FUSE_EXT_GROUPS``: the type of a ``fuse_supp_groups`` extension.
EXT_GROUPS = 32
#: ``FUSE_COMPAT_SETXATTR_IN_SIZE``: SETXATTR's fixed part without SETXATTR_EXT.
COMPAT_SETXATTR_IN_SIZE = 8

IN_HEADER = Struct(
    "len" / Int32ul,
    "opcode" / Int32ul,
    "unique" / Int64ul,
    "nodeid" / Int64ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "pid" / Int32ul,
    "total_extlen" / Int16ul,
    "padding" / Int16ul,
)
OUT_HEADER = Struct("len" / Int32ul, "error" / Int32sl, "unique" / Int64ul)
ATTR = Struct(
    "ino" / Int64ul,
    "size" / Int64ul,
    "blocks" / Int64ul,
    "atime" / Int64ul,
    "mtime" / Int64ul,
    "ctime" / Int64ul,
    "atimensec" / Int32ul,
    "mtimensec" / Int32ul,
    "ctimensec" / Int32ul,
    "mode" / Int32ul,
    "nlink" / Int32ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "rdev" / Int32ul,
    "blksize" / Int32ul,
    "flags" / Int32ul,
)
SX_TIME = Struct("tv_sec" / Int64sl, "tv_nsec" / Int32ul, "__reserved" / Int32sl)
STATX = Struct(
    "mask" / Int32ul,
    "blksize" / Int32ul,
    "attributes" / Int64ul,
    "nlink" / Int32ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "mode" / Int16ul,
    "__spare0" / Bytes(2),
    "ino" / Int64ul,
    "size" / Int64ul,
    "blocks" / Int64ul,
    "attributes_mask" / Int64ul,
    "atime" / SX_TIME,
    "btime" / SX_TIME,
    "ctime" / SX_TIME,
    "mtime" / SX_TIME,
    "rdev_major" / Int32ul,
    "rdev_minor" / Int32ul,
    "dev_major" / Int32ul,
    "dev_minor" / Int32ul,
    "__spare2" / Bytes(112),
)
KSTATFS = Struct(
    "blocks" / Int64ul,
    "bfree" / Int64ul,
    "bavail" / Int64ul,
    "files" / Int64ul,
    "ffree" / Int64ul,
    "bsize" / Int32ul,
    "namelen" / Int32ul,
    "frsize" / Int32ul,
    "padding" / Int32ul,
    "spare" / Bytes(24),
)
ENTRY_OUT = Struct(
    "nodeid" / Int64ul,
    "generation" / Int64ul,
    "entry_valid" / Int64ul,
    "attr_valid" / Int64ul,
    "entry_valid_nsec" / Int32ul,
    "attr_valid_nsec" / Int32ul,
    "attr" / ATTR,
)
FILE_LOCK = Struct("start" / Int64ul, "end" / Int64ul, "type" / Int32ul, "pid" / Int32ul)
DIRENT = Struct("ino" / Int64ul, "off" / Int64ul, "namelen" / Int32ul, "type" / Int32ul)

#: Every structure by its C name.
STRUCTS: dict[str, Struct] = {
    "fuse_in_header": IN_HEADER,
    "fuse_out_header": OUT_HEADER,
    "fuse_attr": ATTR,
    "fuse_sx_time": SX_TIME,
    "fuse_statx": STATX,
    "fuse_kstatfs": KSTATFS,
    "fuse_entry_out": ENTRY_OUT,
    "fuse_dirent": DIRENT,
    "fuse_direntplus": Struct("entry_out" / ENTRY_OUT, "dirent" / DIRENT),
    "fuse_forget_in": Struct("nlookup" / Int64ul),
    "fuse_forget_one": Struct("nodeid" / Int64ul, "nlookup" / Int64ul),
    "fuse_batch_forget_in": Struct("count" / Int32ul, "dummy" / Int32ul),
    "fuse_getattr_in": Struct("getattr_flags" / Int32ul, "dummy" / Int32ul, "fh" / Int64ul),
    "fuse_attr_out": Struct(
        "attr_valid" / Int64ul, "attr_valid_nsec" / Int32ul, "dummy" / Int32ul, "attr" / ATTR
    ),
    "fuse_statx_in": Struct(
        "getattr_flags" / Int32ul,
        "reserved" / Int32ul,
        "fh" / Int64ul,
        "sx_flags" / Int32ul,
        "sx_mask" / Int32ul,
    ),
    "fuse_statx_out": Struct(
        "attr_valid" / Int64ul,
        "attr_valid_nsec" / Int32ul,
        "flags" / Int32ul,
        "spare" / Bytes(16),
        "stat" / STATX,
    ),
    "fuse_mknod_in": Struct(
        "mode" / Int32ul, "rdev" / Int32ul, "umask" / Int32ul, "padding" / Int32ul
    ),
    "fuse_mkdir_in": Struct("mode" / Int32ul, "umask" / Int32ul),
    "fuse_rename_in": Struct("newdir" / Int64ul),
    "fuse_rename2_in": Struct("newdir" / Int64ul, "flags" / Int32ul, "padding" / Int32ul),
    "fuse_link_in": Struct("oldnodeid" / Int64ul),
    "fuse_setattr_in": Struct(
        "valid" / Int32ul,
        "padding" / Int32ul,
        "fh" / Int64ul,
        "size" / Int64ul,
        "lock_owner" / Int64ul,
        "atime" / Int64ul,
        "mtime" / Int64ul,
        "ctime" / Int64ul,
        "atimensec" / Int32ul,
        "mtimensec" / Int32ul,
        "ctimensec" / Int32ul,
        "mode" / Int32ul,
        "unused4" / Int32ul,
        "uid" / Int32ul,
        "gid" / Int32ul,
        "unused5" / Int32ul,
    ),
    "fuse_open_in": Struct("flags" / Int32ul, "open_flags" / Int32ul),
    "fuse_create_in": Struct(
        "flags" / Int32ul, "mode" / Int32ul, "umask" / Int32ul, "open_flags" / Int32ul
    ),
    "fuse_open_out": Struct("fh" / Int64ul, "open_flags" / Int32ul, "backing_id" / Int32sl),
    "fuse_release_in": Struct(
        "fh" / Int64ul, "flags" / Int32ul, "release_flags" / Int32ul, "lock_owner" / Int64ul
    ),
    "fuse_flush_in": Struct(
        "fh" / Int64ul, "unused" / Int32ul, "padding" / Int32ul, "lock_owner" / Int64ul
    ),
    "fuse_read_in": Struct(
        "fh" / Int64ul,
        "offset" / Int64ul,
        "size" / Int32ul,
        "read_flags" / Int32ul,
        "lock_owner" / Int64ul,
        "flags" / Int32ul,
        "padding" / Int32ul,
    ),
    "fuse_write_in": Struct(
        "fh" / Int64ul,
        "offset" / Int64ul,
        "size" / Int32ul,
        "write_flags" / Int32ul,
        "lock_owner" / Int64ul,
        "flags" / Int32ul,
        "padding" / Int32ul,
    ),
    "fuse_write_out": Struct("size" / Int32ul, "padding" / Int32ul),
    "fuse_statfs_out": Struct("st" / KSTATFS),
    "fuse_fsync_in": Struct("fh" / Int64ul, "fsync_flags" / Int32ul, "padding" / Int32ul),
    "fuse_setxattr_in": Struct(
        "size" / Int32ul, "flags" / Int32ul, "setxattr_flags" / Int32ul, "padding" / Int32ul
    ),
    "fuse_getxattr_in": Struct("size" / Int32ul, "padding" / Int32ul),
    "fuse_getxattr_out": Struct("size" / Int32ul, "padding" / Int32ul),
    "fuse_init_in": Struct(
        "major" / Int32ul,
        "minor" / Int32ul,
        "max_readahead" / Int32ul,
        "flags" / Int32ul,
        "flags2" / Int32ul,
        "unused" / Bytes(44),
    ),
    "fuse_init_out": Struct(
        "major" / Int32ul,
        "minor" / Int32ul,
        "max_readahead" / Int32ul,
        "flags" / Int32ul,
        "max_background" / Int16ul,
        "congestion_threshold" / Int16ul,
        "max_write" / Int32ul,
        "time_gran" / Int32ul,
        "max_pages" / Int16ul,
        "map_alignment" / Int16ul,
        "flags2" / Int32ul,
        "max_stack_depth" / Int32ul,
        "unused" / Bytes(20),
        "fsnotify_mask" / Int32ul,
    ),
    "fuse_fallocate_in": Struct(
        "fh" / Int64ul,
        "offset" / Int64ul,
        "length" / Int64ul,
        "mode" / Int32ul,
        "padding" / Int32ul,
    ),
    "fuse_lseek_in": Struct(
        "fh" / Int64ul, "offset" / Int64ul, "whence" / Int32ul, "padding" / Int32ul
    ),
    "fuse_lseek_out": Struct("offset" / Int64ul),
    "fuse_copy_file_range_in": Struct(
        "fh_in" / Int64ul,
        "off_in" / Int64ul,
        "nodeid_out" / Int64ul,
        "fh_out" / Int64ul,
        "off_out" / Int64ul,
        "len" / Int64ul,
        "flags" / Int64ul,
    ),
    "fuse_file_lock": FILE_LOCK,
    "fuse_lk_in": Struct(
        "fh" / Int64ul,
        "owner" / Int64ul,
        "lk" / FILE_LOCK,
        "lk_flags" / Int32ul,
        "padding" / Int32ul,
    ),
    "fuse_lk_out": Struct("lk" / FILE_LOCK),
    "fuse_interrupt_in": Struct("unique" / Int64ul),
    "fuse_syncfs_in": Struct("padding" / Int64ul),
    "fuse_ext_header": Struct("size" / Int32ul, "type" / Int32ul),
    "fuse_secctx": Struct("size" / Int32ul, "padding" / Int32ul),
    "fuse_secctx_header": Struct("size" / Int32ul, "nr_secctx" / Int32ul),
    "fuse_supp_groups": Struct("nr_groups" / Int32ul),
}


def _flat(layout: Struct) -> Struct:
    """Return the declaration without nested structures: field ``b`` of ``a`` becomes ``a_b``."""
    fields = []
    for field in layout.subcons:
        inner = field.subcon
        if isinstance(inner, Struct):
            fields += [
                Renamed(part.subcon, newname=f"{field.name}_{part.name}")
                for part in _flat(inner).subcons
            ]
        else:
            fields.append(field)
    return Struct(*fields)


def _codec(name: str) -> Codec:
    return Codec(_flat(STRUCTS[f"fuse_{name}"]), name)


#: The fields of ``fuse_in_header``: len, opcode, unique, nodeid, uid, gid, pid, total_extlen,
#: padding. A plain tuple: it is decoded for each request.
InHeader = tuple[int, int, int, int, int, int, int, int, int]
in_header = _codec("in_header")
out_header = _codec("out_header")
entry_out = _codec("entry_out")
attr = _codec("attr")
attr_out = _codec("attr_out")
statx_in = _codec("statx_in")
statx_out = _codec("statx_out")
statfs_out = _codec("statfs_out")
dirent = _codec("dirent")
forget_in = _codec("forget_in")
forget_one = _codec("forget_one")
batch_forget_in = _codec("batch_forget_in")
getattr_in = _codec("getattr_in")
mknod_in = _codec("mknod_in")
mkdir_in = _codec("mkdir_in")
rename_in = _codec("rename_in")
rename2_in = _codec("rename2_in")
link_in = _codec("link_in")
setattr_in = _codec("setattr_in")
open_in = _codec("open_in")
create_in = _codec("create_in")
open_out = _codec("open_out")
release_in = _codec("release_in")
flush_in = _codec("flush_in")
read_in = _codec("read_in")
write_in = _codec("write_in")
write_out = _codec("write_out")
fsync_in = _codec("fsync_in")
setxattr_in = _codec("setxattr_in")
getxattr_in = _codec("getxattr_in")
getxattr_out = _codec("getxattr_out")
init_in = _codec("init_in")
init_out = _codec("init_out")
fallocate_in = _codec("fallocate_in")
lseek_in = _codec("lseek_in")
lseek_out = _codec("lseek_out")
copy_file_range_in = _codec("copy_file_range_in")
lk_in = _codec("lk_in")
lk_out = _codec("lk_out")
interrupt_in = _codec("interrupt_in")
ext_header = _codec("ext_header")
supp_groups = _codec("supp_groups")
secctx = _codec("secctx")
