# SPDX-License-Identifier: Apache-2.0
"""A small FUSE file system in memory that checks its client. No I/O here.

It serves well-formed requests, and records each rule that the client breaks: a request for a
forgotten nodeid, or one after DESTROY. It records by nodeid which watches the client has requested.
"""

import errno
import stat
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from farwatchd.wire import fsnotify as wire
from farwatchd.wire import fuse
from farwatchd.wire.fuse import InitFlag, Opcode

from farwatch_harness.adversary.script import FILLED, MANY

ROOT = 1
#: The most remembered requests about one nodeid.
HISTORY = 60
#: The initial directories and files. For the client, "sub" is a file system of its own.
DIRECTORIES = ("d0", "d1", "d0/e", "sub", "sub/d", "many", "quiet")
FILES = (
    "f0",
    "f1",
    "f2",
    "d0/f",
    "d1/f",
    "d0/e/f",
    "sub/f",
    "sub/d/f",
    "quiet/q0",
    "quiet/q1",
    "quiet/q2",
)
SUBMOUNTS = ("sub",)
QUIET = "quiet"
DIRECTORY_SIZE = 4096
#: Requests that name no node.
NODELESS = frozenset(
    {Opcode.INIT, Opcode.DESTROY, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.FSNOTIFY_WAIT}
)


@dataclass
class ServerNode:
    """One inode. `lookups` is the client's lookup count."""

    nodeid: int
    generation: int
    mode: int
    entries: dict[bytes, "ServerNode"] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    links: int = 1
    lookups: int = 0
    submount: bool = False
    changed: int = 0
    #: Neither a script nor a record of the server deletes it: its watches must stay.
    quiet: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether the inode is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass
class Belief:
    """What the server believes to be watched of one inode.

    certain: False if the client cannot know it, because its last request had no plain reply.
    generations: those that the inode had while it was watched, until it is forgotten.
    """

    mask: int
    certain: bool = True
    generations: set[int] = field(default_factory=set)


@dataclass
class Known:
    """What a server knows at one moment of its inodes and of what is watched.

    ended: a WAIT request got an error, which ends the reports.
    device: the number of its mount, for a server that mounts itself.
    """

    nodes: dict[int, ServerNode] = field(default_factory=dict)
    beliefs: dict[int, Belief] = field(default_factory=dict)
    initialized: bool = False
    negotiated: int = 0
    ended: bool = False
    device: int | None = None

    def path(self, nodeid: int) -> str:
        """Return the path of an inode, if its names are known."""
        found = [(self.nodes.get(ROOT), "/")]
        while found:
            node, path = found.pop()
            if node is not None and node.nodeid == nodeid:
                return path
            if node is not None:
                names = node.entries.items()
                found += [(child, f"{path}{name.decode()}/") for name, child in names]
        return "no name"


class Tree(Known):
    """The file system, and what its client holds of it.

    init_flags: are offered in INIT.
    entry_valid: seconds for which names and attributes may be cached.
    """

    def __init__(self, init_flags: int, watchable: int, entry_valid: int = 0) -> None:
        super().__init__()
        self.init_flags = init_flags
        self.watchable = watchable
        self.entry_valid = entry_valid
        self.max_background = 0
        self.last_nodeid = ROOT
        self.free: list[tuple[int, int]] = []
        self.reuse = False
        self.violations: list[str] = []
        #: What has come and been sent about each nodeid, for the text of a finding.
        self.history: defaultdict[int, deque[str]] = defaultdict(partial(deque, maxlen=HISTORY))
        self.root = ServerNode(ROOT, 0, stat.S_IFDIR | 0o777, links=2)
        self.build()

    def build(self) -> None:
        """Make the initial tree; forget what the client holds."""
        self.nodes = {ROOT: self.root}
        self.root.entries.clear()
        self.root.lookups = 0
        self.free.clear()
        for name in DIRECTORIES:
            self.make(name, stat.S_IFDIR | 0o777)
        for name in [*FILES, *(f"many/{number}" for number in range(MANY))]:
            self.make(name, stat.S_IFREG | 0o666)
        for name in SUBMOUNTS:
            self.find(name).submount = True
        for name in FILLED:
            self.find(name).data = bytearray(b"content")

    def make(self, path: str, mode: int) -> ServerNode:
        """Make one inode, whose parent exists."""
        *parents, name = path.encode().split(b"/")
        directory = self.root
        for part in parents:
            directory = directory.entries[part]
        node = self.add(directory, name, mode)
        node.quiet = path.startswith(QUIET)
        return node

    def find(self, path: str) -> ServerNode:
        """Return the inode at `path`. KeyError: there is none."""
        node = self.root
        for part in path.encode().split(b"/") if path else ():
            node = node.entries[part]
        return node

    def add(self, directory: ServerNode, name: bytes, mode: int) -> ServerNode:
        """Add a new inode to a directory."""
        nodeid, generation = self.number()
        node = ServerNode(nodeid, generation, mode, links=2 if stat.S_ISDIR(mode) else 1)
        self.nodes[nodeid] = node
        directory.entries[name] = node
        directory.changed += 1
        return node

    def number(self) -> tuple[int, int]:
        """Return a nodeid and its generation; with `reuse` a forgotten nodeid."""
        if self.reuse and self.free:
            nodeid, generation = self.free.pop(0)
            return nodeid, generation + 1
        self.last_nodeid += 1
        return self.last_nodeid, 0

    def known(self) -> Known:
        """Return a copy of what the server knows now."""
        beliefs = {nodeid: replace(belief) for nodeid, belief in self.beliefs.items()}
        return Known(dict(self.nodes), beliefs, self.initialized, self.negotiated, self.ended)

    # Changes without an event.

    def remove_silently(self, path: str) -> None:
        """Delete `path`, if it exists, as a process of the host would."""
        *parents, name = path.encode().split(b"/")
        directory = self.root
        for part in parents:
            if part not in directory.entries:
                return
            directory = directory.entries[part]
        node = directory.entries.pop(name, None)
        if node is not None:
            self.unlinked(node)

    def replace_silently(self, path: str) -> None:
        """Replace the inode at `path` by one with the same nodeid and the next generation."""
        try:
            node = self.find(path)
        except KeyError:
            return
        node.generation += 1
        node.data = bytearray()
        node.changed += 1

    def restore(self) -> None:
        """Make what is missing of the initial tree."""
        for name in DIRECTORIES:
            self.restore_one(name, stat.S_IFDIR | 0o777)
        for name in FILES:
            self.restore_one(name, stat.S_IFREG | 0o666)

    def restore_one(self, path: str, mode: int) -> None:
        """Make one file, if it is missing."""
        try:
            node = self.find(path)
        except KeyError:
            node = self.make(path, mode)
            node.submount = path in SUBMOUNTS

    # Requests.

    def handle(self, opcode: int, nodeid: int, args: bytes) -> bytes | None:
        """Return the reply's payload; None for a request without a reply.

        OSError: the request fails.
        """
        if opcode == Opcode.INIT:
            return self.init(args)
        name = Opcode(opcode).name if opcode in Opcode.__members__.values() else str(opcode)
        if not self.initialized:
            self.violate(f"{name} for node {nodeid} while there is no session")
        if opcode == Opcode.FORGET:
            self.forget(nodeid, fuse.forget_in.unpack_from(args).nlookup)
            return None
        if opcode == Opcode.BATCH_FORGET:
            self.batch_forget(args)
            return None
        if opcode == Opcode.DESTROY:
            self.destroy()
            return b""
        node = self.nodes.get(nodeid)
        if opcode not in NODELESS and node is None:
            self.violate(f"{name} for node {nodeid}, which was forgotten")
            raise OSError(errno.ESTALE, "unknown node")
        handler = HANDLERS.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, name)
        return handler(self, node, args)

    def note(self, nodeid: int, text: str) -> None:
        """Remember something about a nodeid."""
        node = self.nodes.get(nodeid)
        lookups = node.lookups if node else "no node"
        self.history[nodeid].append(f"{text} (lookups: {lookups})")

    def violate(self, text: str) -> None:
        """Record a broken rule."""
        if len(self.violations) < 20:
            self.violations.append(text)

    def init(self, args: bytes) -> bytes:
        """Begin a session."""
        asked = fuse.init_in.unpack_from(args[: fuse.init_in.size].ljust(fuse.init_in.size, b"\0"))
        self.forget_session()
        self.initialized = True
        offered = int(asked.flags) | (int(asked.flags2) << 32)
        self.negotiated = flags = offered & (self.init_flags | InitFlag.INIT_EXT)
        return fuse.init_out.pack(
            major=fuse.KERNEL_VERSION,
            minor=min(asked.minor, fuse.KERNEL_MINOR_VERSION),
            max_readahead=asked.max_readahead,
            flags=flags & 0xFFFFFFFF,
            flags2=flags >> 32,
            max_background=self.max_background,
            congestion_threshold=self.max_background,
            max_write=1 << 16,
            time_gran=1,
            max_pages=16,
            fsnotify_mask=self.watchable if flags & wire.FUSE_HAS_FSNOTIFY else 0,
        )

    def forget_session(self) -> None:
        """Forget everything that the client holds."""
        self.beliefs.clear()
        for node in list(self.nodes.values()):
            node.lookups = 0
            if not node.links and node is not self.root:
                del self.nodes[node.nodeid]
        self.initialized = self.ended = False

    def destroy(self) -> None:
        """End the session."""
        self.forget_session()

    def forget(self, nodeid: int, count: int) -> None:
        """Lower the lookup count."""
        self.note(nodeid, f"FORGET {count}")
        node = self.nodes.get(nodeid)
        if node is None or node is self.root:
            if node is None:
                self.violate(f"FORGET for node {nodeid}, which was forgotten")
            return
        node.lookups -= count
        if node.lookups < 0:
            self.violate(
                f"FORGET of {count} lookups for node {nodeid}, {-node.lookups} more than there were"
            )
            node.lookups = 0
        if not node.lookups:
            self.beliefs.pop(nodeid, None)
            if not node.links:
                del self.nodes[nodeid]
                self.free.append((nodeid, node.generation))

    def batch_forget(self, args: bytes) -> None:
        """Lower several lookup counts."""
        count = fuse.batch_forget_in.unpack_from(args).count
        for number in range(count):
            one = fuse.forget_one.unpack_from(
                args, fuse.batch_forget_in.size + number * fuse.forget_one.size
            )
            self.forget(one.nodeid, one.nlookup)

    def watch(self, node: ServerNode, mask: int) -> None:
        """Record that the client requests these events."""
        belief = self.beliefs.setdefault(node.nodeid, Belief(0))
        belief.mask, belief.certain = mask, True
        if mask:
            belief.generations.add(node.generation)

    def lose_watches(self) -> None:
        """Forget everything that is watched, but not which generations were."""
        for belief in self.beliefs.values():
            belief.mask, belief.certain = 0, True

    def doubt(self, nodeid: int) -> None:
        """Record that the client got no plain reply: neither side can know what is watched."""
        node = self.nodes.get(nodeid)
        if node is not None:
            self.beliefs.setdefault(nodeid, Belief(0)).certain = False

    # Replies.

    def attributes(self, node: ServerNode) -> dict[str, Any]:
        """Return the fields of the attributes."""
        size = DIRECTORY_SIZE if node.is_directory else len(node.data)
        now = 1_700_000_000 + node.changed
        return {
            "attr_ino": node.nodeid,
            "attr_size": size,
            "attr_blocks": size // 512,
            "attr_atime": now,
            "attr_mtime": now,
            "attr_ctime": now,
            "attr_mode": node.mode,
            "attr_nlink": node.links,
            "attr_blksize": 4096,
            "attr_flags": fuse.ATTR_SUBMOUNT if node.submount else 0,
        }

    def entry(self, node: ServerNode) -> bytes:
        """Return a reply that counts as a lookup."""
        node.lookups += 1
        self.note(node.nodeid, "entry")
        return fuse.entry_out.pack(
            nodeid=node.nodeid,
            generation=node.generation,
            entry_valid=self.entry_valid,
            attr_valid=self.entry_valid,
            **self.attributes(node),
        )

    def attr(self, node: ServerNode) -> bytes:
        """Return a reply with attributes."""
        return fuse.attr_out.pack(attr_valid=self.entry_valid, **self.attributes(node))

    def lookup(self, node: ServerNode, args: bytes) -> bytes:
        """Serve LOOKUP."""
        return self.entry(self.child(node, args.split(b"\0")[0]))

    def child(self, node: ServerNode, name: bytes) -> ServerNode:
        """Return an entry of a directory."""
        try:
            return node.entries[name]
        except KeyError:
            raise OSError(errno.ENOENT, "no such name") from None

    def getattr(self, node: ServerNode, _args: bytes) -> bytes:
        """Serve GETATTR."""
        return self.attr(node)

    def setattr(self, node: ServerNode, args: bytes) -> bytes:
        """Serve SETATTR."""
        asked = fuse.setattr_in.unpack_from(args)
        if asked.valid & fuse.SetattrValid.SIZE and not node.is_directory:
            size = min(int(asked.size), 1 << 16)
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        if asked.valid & fuse.SetattrValid.MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(asked.mode)
        node.changed += 1
        return self.attr(node)

    def open(self, _node: ServerNode, _args: bytes) -> bytes:
        """Serve OPEN and OPENDIR."""
        return fuse.open_out.pack(fh=1)

    def read(self, node: ServerNode, args: bytes) -> bytes:
        """Serve READ."""
        asked = fuse.read_in.unpack_from(args)
        return bytes(node.data[asked.offset : asked.offset + asked.size])

    def write(self, node: ServerNode, args: bytes) -> bytes:
        """Serve WRITE."""
        asked = fuse.write_in.unpack_from(args)
        data = args[fuse.write_in.size : fuse.write_in.size + asked.size]
        end = asked.offset + len(data)
        if end > 1 << 16:
            raise OSError(errno.EFBIG, "files stay small here")
        node.data.extend(bytes(max(0, end - len(node.data))))
        node.data[asked.offset : end] = data
        node.changed += 1
        return fuse.write_out.pack(size=len(data))

    def readdir(self, node: ServerNode, args: bytes) -> bytes:
        """Serve READDIR."""
        asked = fuse.read_in.unpack_from(args)
        found = b""
        for position, (name, child) in enumerate(
            list(node.entries.items())[asked.offset :], asked.offset + 1
        ):
            one = fuse.dirent.pack(
                ino=child.nodeid,
                off=position,
                namelen=len(name),
                type=stat.S_IFMT(child.mode) >> 12,
            )
            one += name + bytes(-len(name) % 8)
            if len(found) + len(one) > asked.size:
                break
            found += one
        return found

    def mknod(self, node: ServerNode, args: bytes) -> bytes:
        """Serve MKNOD."""
        asked = fuse.mknod_in.unpack_from(args)
        return self.entry(self.make_new(node, args[fuse.mknod_in.size :], asked.mode))

    def mkdir(self, node: ServerNode, args: bytes) -> bytes:
        """Serve MKDIR."""
        asked = fuse.mkdir_in.unpack_from(args)
        return self.entry(
            self.make_new(node, args[fuse.mkdir_in.size :], stat.S_IFDIR | asked.mode)
        )

    def create(self, node: ServerNode, args: bytes) -> bytes:
        """Serve CREATE."""
        asked = fuse.create_in.unpack_from(args)
        made = self.make_new(node, args[fuse.create_in.size :], asked.mode)
        return self.entry(made) + fuse.open_out.pack(fh=1)

    def make_new(self, directory: ServerNode, rest: bytes, mode: int) -> ServerNode:
        """Add a new inode, whose name is the first string of `rest`."""
        name = rest.split(b"\0")[0]
        if not directory.is_directory or not directory.links:
            raise OSError(errno.ENOENT, "the directory is deleted")
        if name in directory.entries:
            raise OSError(errno.EEXIST, "the name is taken")
        if len(directory.entries) > 4 * MANY:
            raise OSError(errno.ENOSPC, "directories stay small here")
        return self.add(directory, name, mode)

    def unlink(self, node: ServerNode, args: bytes) -> bytes:
        """Serve UNLINK and RMDIR."""
        name = args.split(b"\0")[0]
        child = self.child(node, name)
        if child.submount:
            raise OSError(errno.EBUSY, "a file system of its own")
        if child.is_directory and child.entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        del node.entries[name]
        node.changed += 1
        self.unlinked(child)
        return b""

    def unlinked(self, node: ServerNode) -> None:
        """Handle an inode without a name: it is freed with the client's last lookup."""
        node.links = 0
        for child in node.entries.values():
            self.unlinked(child)
        node.entries.clear()
        if not node.lookups:
            self.beliefs.pop(node.nodeid, None)
            if self.nodes.pop(node.nodeid, None) is not None:
                self.free.append((node.nodeid, node.generation))

    def rename(self, node: ServerNode, args: bytes) -> bytes:
        """Serve RENAME."""
        return self.move(node, fuse.rename_in.unpack_from(args).newdir, args[fuse.rename_in.size :])

    def rename2(self, node: ServerNode, args: bytes) -> bytes:
        """Serve RENAME2."""
        return self.move(
            node, fuse.rename2_in.unpack_from(args).newdir, args[fuse.rename2_in.size :]
        )

    def move(self, node: ServerNode, newdir: int, names: bytes) -> bytes:
        """Move an entry; `names` has the old and the new name."""
        old, new = names.split(b"\0")[:2]
        target = self.nodes.get(newdir)
        if target is None or not target.links:
            raise OSError(errno.ENOENT, "no such directory")
        child = self.child(node, old)
        replaced = target.entries.get(new)
        if child.submount or (replaced is not None and (replaced.submount or replaced.entries)):
            raise OSError(errno.EBUSY, "not here")
        if child is target or self.below(child, target):
            raise OSError(errno.EINVAL, "a directory does not go below itself")
        del node.entries[old]
        target.entries[new] = child
        node.changed += 1
        target.changed += 1
        if replaced is not None and replaced is not child:
            self.unlinked(replaced)
        return b""

    def below(self, top: ServerNode, node: ServerNode) -> bool:
        """Return whether `node` is below `top`."""
        return any(child is node or self.below(child, node) for child in top.entries.values())

    def statfs(self, _node: ServerNode, _args: bytes) -> bytes:
        """Serve STATFS."""
        return fuse.statfs_out.pack(
            st_bsize=4096, st_namelen=255, st_frsize=4096, st_blocks=1000, st_bfree=500
        )

    def nothing(self, _node: ServerNode, _args: bytes) -> bytes:
        """Serve a request without an effect."""
        return b""

    def fsnotify(self, node: ServerNode, args: bytes) -> bytes:
        """Serve FSNOTIFY."""
        asked = wire.fsnotify_in.unpack_from(args)
        if asked.flags:
            self.violate(f"FSNOTIFY for node {node.nodeid} with the flags {asked.flags:#x}")
        if asked.generation != node.generation:
            raise OSError(errno.ESTALE, "another generation")
        self.watch(node, asked.mask)
        return wire.fsnotify_out.pack(mask=asked.mask)


Handler = Callable[[Tree, Any, bytes], bytes]
HANDLERS: dict[int, Handler] = {
    Opcode.LOOKUP: Tree.lookup,
    Opcode.GETATTR: Tree.getattr,
    Opcode.SETATTR: Tree.setattr,
    Opcode.OPEN: Tree.open,
    Opcode.OPENDIR: Tree.open,
    Opcode.READ: Tree.read,
    Opcode.WRITE: Tree.write,
    Opcode.READDIR: Tree.readdir,
    Opcode.MKNOD: Tree.mknod,
    Opcode.MKDIR: Tree.mkdir,
    Opcode.CREATE: Tree.create,
    Opcode.UNLINK: Tree.unlink,
    Opcode.RMDIR: Tree.unlink,
    Opcode.RENAME: Tree.rename,
    Opcode.RENAME2: Tree.rename2,
    Opcode.STATFS: Tree.statfs,
    Opcode.FLUSH: Tree.nothing,
    Opcode.RELEASE: Tree.nothing,
    Opcode.RELEASEDIR: Tree.nothing,
    Opcode.FSYNC: Tree.nothing,
    Opcode.FSYNCDIR: Tree.nothing,
    Opcode.FSNOTIFY: Tree.fsnotify,
}
