# SPDX-License-Identifier: Apache-2.0
"""The requests of the benchmark without a guest, prepared for every slot.

They are the requests that Linux sends for each operation.
"""

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from farwatchd.wire.fuse import (
    InitFlag,
    Opcode,
    attr_out,
    create_in,
    dirent,
    entry_out,
    forget_in,
    fsync_in,
    getattr_in,
    init_in,
    init_out,
    mkdir_in,
    open_in,
    open_out,
    read_in,
    release_in,
    rename_in,
    write_in,
    write_out,
)

from farwatch_harness.bench.vhost_frontend import (
    MAX_DEPTH,
    Copy,
    PreparedRequest,
    SyntheticFrontEnd,
)
from farwatch_harness.util.errors import HarnessError

ROOT = 1
LISTED = 1000
LARGE = 1 << 20
SMALL = 4096
MINOR = 38
FLAGS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
)
#: The offset of the nodeid in a request's header, and of the file handle in the arguments of READ,
#: WRITE and RELEASE.
NODEID_IN_HEADER = struct.calcsize("<IIQ")
FH_IN_ARGS = 0


@dataclass(frozen=True)
class OpenedFile:
    """An open file."""

    nodeid: int
    fh: int


@dataclass(frozen=True)
class RequestTargets:
    """The nodeids and file handles that requests name.

    fh: the handle of the file with data.
    files: one for each slot.
    listing: the offsets of the READDIRPLUS requests that list the directory `list`.
    """

    directory: int
    data: int
    fh: int
    files: tuple[OpenedFile, ...]
    list: int
    listing: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """An operation and its requests, by slot; one run performs `units` of what `unit` names."""

    title: str
    requests: Callable[[RequestTargets, int], list[PreparedRequest]]
    unit: str = ""
    units: int = 1


def fill(directory: Path) -> None:
    """Create the files that the requests use."""
    (directory / "list").mkdir(parents=True)
    (directory / "data").write_bytes(b"x" * LARGE)
    for slot in range(MAX_DEPTH):
        (directory / f"here-{slot}").touch()
    for number in range(LISTED):
        (directory / "list" / f"file-{number}").touch()


def begin(front_end: SyntheticFrontEnd, directory: str) -> RequestTargets:
    """Send INIT, and look up the files that `fill` made in `directory` of the share."""
    args = init_in.pack(major=7, minor=MINOR, max_readahead=1 << 17, flags=int(FLAGS))
    reply = front_end.ask(PreparedRequest(Opcode.INIT, 0, args, init_out.size))
    if init_out.unpack_from(reply).major != 7:
        raise HarnessError("INIT: the daemon has another major version of FUSE")
    top = lookup(front_end, ROOT, directory)
    data, listed = lookup(front_end, top, "data"), lookup(front_end, top, "list")
    fh = opened(front_end, Opcode.OPEN, data, os.O_RDWR)
    # virtiofsd in C renames only inodes that were looked up. A guest would look them up, too.
    nodeids = [lookup(front_end, top, f"here-{slot}") for slot in range(MAX_DEPTH)]
    files = tuple(
        OpenedFile(nodeid, opened(front_end, Opcode.OPEN, nodeid, os.O_RDWR)) for nodeid in nodeids
    )
    return RequestTargets(top, data, fh, files, listed, listing(front_end, listed))


def lookup(front_end: SyntheticFrontEnd, parent: int, name: str) -> int:
    """Send LOOKUP; return the nodeid."""
    reply = front_end.ask(PreparedRequest(Opcode.LOOKUP, parent, c_string(name), entry_out.size))
    return int(entry_out.unpack_from(reply).nodeid)


def opened(front_end: SyntheticFrontEnd, opcode: Opcode, nodeid: int, flags: int) -> int:
    """Send OPEN or OPENDIR; return the file handle."""
    reply = front_end.ask(PreparedRequest(opcode, nodeid, open_in.pack(flags=flags), open_out.size))
    return int(open_out.unpack_from(reply).fh)


def listing(front_end: SyntheticFrontEnd, nodeid: int) -> tuple[int, ...]:
    """Return the offsets of the READDIRPLUS requests that list a directory.

    The reply to the last one has no entry.
    """
    fh = opened(front_end, Opcode.OPENDIR, nodeid, 0)
    offsets, found = [0], 0
    while True:
        reply = front_end.ask(readdirplus(nodeid, offsets[-1], fh))
        entries = list(offsets_of(reply))
        if not entries:
            break
        found += len(entries)
        offsets.append(entries[-1])
    front_end.ask(PreparedRequest(Opcode.RELEASEDIR, nodeid, release_in.pack(fh=fh)))
    if found != LISTED + 2:
        raise HarnessError(f"READDIRPLUS: {found} entries instead of {LISTED + 2}")
    return tuple(offsets)


def offsets_of(reply: bytes) -> list[int]:
    """Return the offsets of all entries of a READDIRPLUS reply, in a zeroed buffer."""
    offsets, position = [], 0
    while position + entry_out.size + dirent.size <= len(reply):
        entry = dirent.unpack_from(reply, position + entry_out.size)
        if not entry.namelen:
            break
        offsets.append(int(entry.off))
        position += -(-(entry_out.size + dirent.size + entry.namelen) // 8) * 8
    return offsets


def c_string(name: str) -> bytes:
    """Return the name as the kernel sends it."""
    return name.encode() + b"\0"


def release(nodeid: int, opcode: Opcode = Opcode.RELEASE) -> PreparedRequest:
    """Return a RELEASE or RELEASEDIR request."""
    return PreparedRequest(opcode, nodeid, release_in.pack())


def readdirplus(nodeid: int, offset: int, fh: int = 0) -> PreparedRequest:
    """Return a READDIRPLUS request."""
    return PreparedRequest(
        Opcode.READDIRPLUS, nodeid, read_in.pack(fh=fh, offset=offset, size=SMALL), SMALL
    )


def getattr_requests(targets: RequestTargets, _slot: int) -> list[PreparedRequest]:
    """Return the request of a getattr."""
    return [PreparedRequest(Opcode.GETATTR, targets.data, getattr_in.pack(), attr_out.size)]


def open_release(targets: RequestTargets, _slot: int) -> list[PreparedRequest]:
    """Return the requests that open and release the file with data."""
    fh = Copy(0, 1, FH_IN_ARGS)
    return [
        PreparedRequest(
            Opcode.OPEN, targets.data, open_in.pack(flags=os.O_RDONLY), open_out.size, copies=(fh,)
        ),
        release(targets.data),
    ]


def lookup_missing(targets: RequestTargets, slot: int) -> list[PreparedRequest]:
    """Return the lookup of a name that does not exist."""
    name = c_string(f"missing-{slot}")
    return [
        PreparedRequest(Opcode.LOOKUP, targets.directory, name, entry_out.size, error=errno.ENOENT)
    ]


def create_unlink(targets: RequestTargets, slot: int) -> list[PreparedRequest]:
    """Return the requests that create, release, unlink and forget a file."""
    name = c_string(f"created-{slot}")
    args = (
        create_in.pack(flags=os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o100600, umask=0o22) + name
    )
    fh = Copy(entry_out.size, 1, FH_IN_ARGS)
    nodeids = Copy(0, 1, NODEID_IN_HEADER, header=True), Copy(0, 3, NODEID_IN_HEADER, header=True)
    room = entry_out.size + open_out.size
    return [
        PreparedRequest(Opcode.CREATE, targets.directory, args, room, copies=(fh, *nodeids)),
        release(0),
        PreparedRequest(Opcode.UNLINK, targets.directory, name),
        PreparedRequest(Opcode.FORGET, 0, forget_in.pack(nlookup=1)),
    ]


def mkdir_rmdir(targets: RequestTargets, slot: int) -> list[PreparedRequest]:
    """Return the requests that create, remove and forget a directory."""
    name = c_string(f"made-{slot}")
    nodeid = Copy(0, 2, NODEID_IN_HEADER, header=True)
    args = mkdir_in.pack(mode=0o700, umask=0o22) + name
    return [
        PreparedRequest(Opcode.MKDIR, targets.directory, args, entry_out.size, copies=(nodeid,)),
        PreparedRequest(Opcode.RMDIR, targets.directory, name),
        PreparedRequest(Opcode.FORGET, 0, forget_in.pack(nlookup=1)),
    ]


def rename(targets: RequestTargets, slot: int) -> list[PreparedRequest]:
    """Return the requests that rename a file of `fill` and rename it back."""
    here, there = c_string(f"here-{slot}"), c_string(f"there-{slot}")
    to = rename_in.pack(newdir=targets.directory)
    return [
        PreparedRequest(Opcode.RENAME, targets.directory, to + here + there),
        PreparedRequest(Opcode.RENAME, targets.directory, to + there + here),
    ]


def read(targets: RequestTargets, size: int) -> list[PreparedRequest]:
    """Return the request that reads `size` bytes."""
    return [
        PreparedRequest(
            Opcode.READ, targets.data, read_in.pack(fh=targets.fh, size=size), data_room=size
        )
    ]


def write(targets: RequestTargets, size: int) -> list[PreparedRequest]:
    """Return the request that writes `size` bytes."""
    args = write_in.pack(fh=targets.fh, size=size)
    return [PreparedRequest(Opcode.WRITE, targets.data, args, write_out.size, data=size)]


def write_fsync(targets: RequestTargets, slot: int) -> list[PreparedRequest]:
    """Return the requests that write to the slot's file and sync it."""
    file = targets.files[slot]
    return [
        PreparedRequest(
            Opcode.WRITE,
            file.nodeid,
            write_in.pack(fh=file.fh, size=SMALL),
            write_out.size,
            data=SMALL,
        ),
        PreparedRequest(Opcode.FSYNC, file.nodeid, fsync_in.pack(fh=file.fh)),
    ]


def list_all(targets: RequestTargets, _slot: int) -> list[PreparedRequest]:
    """Return the requests that list the directory."""
    count = len(targets.listing)
    handles = tuple(Copy(0, step, FH_IN_ARGS) for step in range(1, count + 2))
    return [
        PreparedRequest(
            Opcode.OPENDIR, targets.list, open_in.pack(), open_out.size, copies=handles
        ),
        *(readdirplus(targets.list, offset) for offset in targets.listing),
        release(targets.list, Opcode.RELEASEDIR),
    ]


OPERATIONS = (
    Work("getattr", getattr_requests),
    Work("open + release", open_release),
    Work("lookup, missing", lookup_missing),
    Work("create + unlink", create_unlink),
    Work("mkdir + rmdir", mkdir_rmdir),
    Work("rename", rename, units=2),
    Work("read 4 KiB", lambda targets, _slot: read(targets, SMALL)),
    Work("write 4 KiB", lambda targets, _slot: write(targets, SMALL)),
    Work("write 4 KiB + fsync", write_fsync),
    Work("read 1 MiB", lambda targets, _slot: read(targets, LARGE), ", MiB"),
    Work("write 1 MiB", lambda targets, _slot: write(targets, LARGE), ", MiB"),
    Work(f"readdirplus of {LISTED}", list_all, ", files", LISTED),
)
