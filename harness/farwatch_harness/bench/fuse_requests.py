# SPDX-License-Identifier: Apache-2.0
"""The requests of the benchmark without a guest: what Linux sends for each operation, prepared for
every slot."""

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

from farwatch_harness.bench.vhost_frontend import MAX_DEPTH, Copy, FrontEnd, Request
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
#: Where the nodeid is in a request's header, and the handle in READ's, WRITE's and RELEASE's
#: arguments.
NODEID_IN_HEADER = struct.calcsize("<IIQ")
FH_IN_ARGS = 0


@dataclass(frozen=True)
class File:
    """An open file."""

    nodeid: int
    fh: int


@dataclass(frozen=True)
class Tree:
    """What the requests name: nodeids, and the handle of the file with data.

    `files`: one for each slot. `listing`: READDIRPLUS's offsets.
    """

    directory: int
    data: int
    fh: int
    files: tuple[File, ...]
    list: int
    listing: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """An operation and its requests, by slot. One run of them does `units` of what `unit` names."""

    title: str
    requests: Callable[[Tree, int], list[Request]]
    unit: str = ""
    units: int = 1


def fill(directory: Path) -> None:
    """What the requests work on."""
    (directory / "list").mkdir(parents=True)
    (directory / "data").write_bytes(b"x" * LARGE)
    for slot in range(MAX_DEPTH):
        (directory / f"here-{slot}").touch()
    for number in range(LISTED):
        (directory / "list" / f"file-{number}").touch()


def begin(front_end: FrontEnd, directory: str) -> Tree:
    """INIT, and looks up what `fill` made in `directory` of the share."""
    args = init_in.pack(major=7, minor=MINOR, max_readahead=1 << 17, flags=int(FLAGS))
    reply = front_end.ask(Request(Opcode.INIT, 0, args, init_out.size))
    if init_out.unpack_from(reply).major != 7:
        raise HarnessError("INIT: the daemon speaks another FUSE")
    top = lookup(front_end, ROOT, directory)
    data, listed = lookup(front_end, top, "data"), lookup(front_end, top, "list")
    fh = opened(front_end, Opcode.OPEN, data, os.O_RDWR)
    # The virtiofsd in C renames only what has been looked up, as a guest would have.
    nodeids = [lookup(front_end, top, f"here-{slot}") for slot in range(MAX_DEPTH)]
    files = tuple(
        File(nodeid, opened(front_end, Opcode.OPEN, nodeid, os.O_RDWR)) for nodeid in nodeids
    )
    return Tree(top, data, fh, files, listed, listing(front_end, listed))


def lookup(front_end: FrontEnd, parent: int, name: str) -> int:
    reply = front_end.ask(Request(Opcode.LOOKUP, parent, c_string(name), entry_out.size))
    return int(entry_out.unpack_from(reply).nodeid)


def opened(front_end: FrontEnd, opcode: Opcode, nodeid: int, flags: int) -> int:
    reply = front_end.ask(Request(opcode, nodeid, open_in.pack(flags=flags), open_out.size))
    return int(open_out.unpack_from(reply).fh)


def listing(front_end: FrontEnd, nodeid: int) -> tuple[int, ...]:
    """The offsets of the READDIRPLUS requests that list a directory, the last of which finds
    nothing more."""
    fh = opened(front_end, Opcode.OPENDIR, nodeid, 0)
    offsets, found = [0], 0
    while True:
        reply = front_end.ask(readdirplus(nodeid, offsets[-1], fh))
        entries = list(offsets_of(reply))
        if not entries:
            break
        found += len(entries)
        offsets.append(entries[-1])
    front_end.ask(Request(Opcode.RELEASEDIR, nodeid, release_in.pack(fh=fh)))
    if found != LISTED + 2:
        raise HarnessError(f"READDIRPLUS: {found} entries instead of {LISTED + 2}")
    return tuple(offsets)


def offsets_of(reply: bytes) -> list[int]:
    """The offsets of all entries of a READDIRPLUS reply, in a zeroed buffer."""
    offsets, position = [], 0
    while position + entry_out.size + dirent.size <= len(reply):
        entry = dirent.unpack_from(reply, position + entry_out.size)
        if not entry.namelen:
            break
        offsets.append(int(entry.off))
        position += -(-(entry_out.size + dirent.size + entry.namelen) // 8) * 8
    return offsets


def c_string(name: str) -> bytes:
    return name.encode() + b"\0"


def release(nodeid: int, opcode: Opcode = Opcode.RELEASE) -> Request:
    return Request(opcode, nodeid, release_in.pack())


def readdirplus(nodeid: int, offset: int, fh: int = 0) -> Request:
    return Request(
        Opcode.READDIRPLUS, nodeid, read_in.pack(fh=fh, offset=offset, size=SMALL), SMALL
    )


def getattr_requests(tree: Tree, _slot: int) -> list[Request]:
    return [Request(Opcode.GETATTR, tree.data, getattr_in.pack(), attr_out.size)]


def open_release(tree: Tree, _slot: int) -> list[Request]:
    fh = Copy(0, 1, FH_IN_ARGS)
    return [
        Request(
            Opcode.OPEN, tree.data, open_in.pack(flags=os.O_RDONLY), open_out.size, copies=(fh,)
        ),
        release(tree.data),
    ]


def lookup_missing(tree: Tree, slot: int) -> list[Request]:
    name = c_string(f"missing-{slot}")
    return [Request(Opcode.LOOKUP, tree.directory, name, entry_out.size, error=errno.ENOENT)]


def create_unlink(tree: Tree, slot: int) -> list[Request]:
    name = c_string(f"created-{slot}")
    args = (
        create_in.pack(flags=os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o100600, umask=0o22) + name
    )
    fh = Copy(entry_out.size, 1, FH_IN_ARGS)
    nodeids = Copy(0, 1, NODEID_IN_HEADER, header=True), Copy(0, 3, NODEID_IN_HEADER, header=True)
    room = entry_out.size + open_out.size
    return [
        Request(Opcode.CREATE, tree.directory, args, room, copies=(fh, *nodeids)),
        release(0),
        Request(Opcode.UNLINK, tree.directory, name),
        Request(Opcode.FORGET, 0, forget_in.pack(nlookup=1)),
    ]


def mkdir_rmdir(tree: Tree, slot: int) -> list[Request]:
    name = c_string(f"made-{slot}")
    nodeid = Copy(0, 2, NODEID_IN_HEADER, header=True)
    args = mkdir_in.pack(mode=0o700, umask=0o22) + name
    return [
        Request(Opcode.MKDIR, tree.directory, args, entry_out.size, copies=(nodeid,)),
        Request(Opcode.RMDIR, tree.directory, name),
        Request(Opcode.FORGET, 0, forget_in.pack(nlookup=1)),
    ]


def rename(tree: Tree, slot: int) -> list[Request]:
    """There and back again: of a file that `fill` made."""
    here, there = c_string(f"here-{slot}"), c_string(f"there-{slot}")
    to = rename_in.pack(newdir=tree.directory)
    return [
        Request(Opcode.RENAME, tree.directory, to + here + there),
        Request(Opcode.RENAME, tree.directory, to + there + here),
    ]


def read(tree: Tree, size: int) -> list[Request]:
    return [Request(Opcode.READ, tree.data, read_in.pack(fh=tree.fh, size=size), data_room=size)]


def write(tree: Tree, size: int) -> list[Request]:
    args = write_in.pack(fh=tree.fh, size=size)
    return [Request(Opcode.WRITE, tree.data, args, write_out.size, data=size)]


def write_fsync(tree: Tree, slot: int) -> list[Request]:
    file = tree.files[slot]
    return [
        Request(
            Opcode.WRITE,
            file.nodeid,
            write_in.pack(fh=file.fh, size=SMALL),
            write_out.size,
            data=SMALL,
        ),
        Request(Opcode.FSYNC, file.nodeid, fsync_in.pack(fh=file.fh)),
    ]


def list_all(tree: Tree, _slot: int) -> list[Request]:
    count = len(tree.listing)
    handles = tuple(Copy(0, step, FH_IN_ARGS) for step in range(1, count + 2))
    return [
        Request(Opcode.OPENDIR, tree.list, open_in.pack(), open_out.size, copies=handles),
        *(readdirplus(tree.list, offset) for offset in tree.listing),
        release(tree.list, Opcode.RELEASEDIR),
    ]


OPERATIONS = (
    Work("getattr", getattr_requests),
    Work("open + release", open_release),
    Work("lookup, missing", lookup_missing),
    Work("create + unlink", create_unlink),
    Work("mkdir + rmdir", mkdir_rmdir),
    Work("rename", rename, units=2),
    Work("read 4 KiB", lambda tree, _slot: read(tree, SMALL)),
    Work("write 4 KiB", lambda tree, _slot: write(tree, SMALL)),
    Work("write 4 KiB + fsync", write_fsync),
    Work("read 1 MiB", lambda tree, _slot: read(tree, LARGE), ", MiB"),
    Work("write 1 MiB", lambda tree, _slot: write(tree, LARGE), ", MiB"),
    Work(f"readdirplus of {LISTED}", list_all, ", files", LISTED),
)
