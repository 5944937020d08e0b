# SPDX-License-Identifier: Apache-2.0
"""Event records of the adversary: true ones, senseless ones, and ones that break the protocol."""

from random import Random

from farwatchd.watch.event_record import OVERFLOW, WATCHES_LOST, EventRecord, watch_ended
from farwatchd.wire.fsnotify import Event

from farwatch_harness.adversary.filesystem import Known, ServerNode

#: The largest payload of a notification, in bytes, as farwatchd's.
ROOM = 4000
NAMES = (b"f", b"e", b"d", b"new", b"f0", b"d0", b"q0", b"x" * 255)
SELF_EVENTS = (
    Event.ATTRIB,
    Event.MODIFY,
    Event.ACCESS,
    Event.OPEN,
    Event.CLOSE_WRITE,
    Event.MOVE_SELF,
)
ENTRY_EVENTS = (Event.CREATE, Event.DELETE, Event.MOVED_FROM, Event.MOVED_TO)
#: The kinds of records after which neither side can know what is watched.
UNCERTAIN = ("delete-self", "mutant", "watch-ended")
CHILD_EVENTS = (Event.ATTRIB, Event.MODIFY, Event.OPEN, Event.CLOSE_WRITE)


def payload(kind: str, count: int, known: Known, random: Random) -> bytes:
    """Return up to `count` records of that kind, as many as one notification can have."""
    found = b""
    for _ in range(count):
        one = record(kind, known, random)
        if len(found) + len(one) > ROOM:
            break
        found += one
    return found


def record(kind: str, known: Known, random: Random) -> bytes:
    """Return one record, about a watched inode if there is one."""
    node = some_node(known, random, kind in ("delete-self", "mutant"))
    if kind == "overflow":
        return OVERFLOW.encode()
    if kind == "garbage":
        return random.randbytes(8 * random.randint(1, 40))
    if kind == "mutant":
        data = bytearray(event(node, random).encode())
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.choice((0, 1, 0xFF, random.randrange(256)))
        return bytes(data)
    if kind == "watch-ended":
        return watch_ended(node.nodeid, node.generation).encode()
    if kind == "watches-lost":
        return WATCHES_LOST.encode()
    if kind == "delete-self":
        return EventRecord(node.nodeid, node.generation, Event.DELETE_SELF).encode()
    if kind == "rename":
        other = some_node(known, random)
        names = random.choice(NAMES), random.choice(NAMES)
        return EventRecord(
            node.nodeid,
            node.generation,
            Event.RENAME,
            names[0],
            newdir=other.nodeid or 1,
            newname=names[1],
        ).encode()
    return event(node, random).encode()


def event(node: ServerNode, random: Random) -> EventRecord:
    """Return a valid record."""
    if not node.is_directory or random.random() < 0.3:
        return EventRecord(node.nodeid, node.generation, random.choice(SELF_EVENTS))
    name = random.choice(NAMES)
    if random.random() < 0.5:
        return EventRecord(node.nodeid, node.generation, random.choice(ENTRY_EVENTS), name)
    child = random.choice((0, *(each.nodeid for each in node.entries.values())))
    return EventRecord(
        node.nodeid,
        node.generation,
        random.choice(CHILD_EVENTS) | Event.ON_CHILD,
        name,
        child=child,
    )


def probe(node: ServerNode) -> bytes:
    """Return the record that each watcher of the inode's attributes must read."""
    return EventRecord(node.nodeid, node.generation, Event.ATTRIB).encode()


def some_node(known: Known, random: Random, may_go: bool = False) -> ServerNode:
    """Return an inode, mostly a watched one; with `may_go` none of the quiet ones."""
    nodes = [node for node in known.nodes.values() if not (may_go and node.quiet)]
    masks = {nodeid: belief.mask for nodeid, belief in known.beliefs.items()}
    watched = [node for node in nodes if masks.get(node.nodeid)]
    return random.choice(watched if watched and random.random() < 0.8 else nodes)
