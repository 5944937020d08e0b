# SPDX-License-Identifier: Apache-2.0
"""Event records of FUSE_NOTIFY_FSNOTIFY (docs/protocol.md, "events"): encode, and decode with every
rule checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from farwatchd.wire.fsnotify import Event, RecordFlag, record

NAME_MAX = 255
_ALIGN = 8
_NAMED = (
    Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO | Event.RENAME | Event.ON_CHILD
)

#: Bytes of the longest record: both names at their limit.
RECORD_MAX = (record.size + 2 * NAME_MAX + _ALIGN - 1) // _ALIGN * _ALIGN


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event as the guest is told it; the fields are those of the protocol's record."""

    nodeid: int
    generation: int
    mask: Event
    name: bytes = b""
    half: bool = False
    newdir: int = 0
    newdir_generation: int = 0
    newname: bytes = b""
    child: int = 0
    child_generation: int = 0

    def encode(self) -> bytes:
        """Return the record's bytes, a multiple of 8, at most RECORD_MAX; ``ValueError`` on a name
        over 255 bytes."""
        if len(self.name) > NAME_MAX or len(self.newname) > NAME_MAX:
            raise ValueError(
                f"name of {max(len(self.name), len(self.newname))} bytes, the record holds"
                f" {NAME_MAX}"
            )
        names = self.name + self.newname
        names += bytes(-len(names) % _ALIGN)
        head = record.pack_values(
            record.size + len(names),
            int(RecordFlag.HALF) if self.half else 0,
            self.nodeid,
            self.generation,
            int(self.mask),
            len(self.name),
            len(self.newname),
            self.newdir,
            self.newdir_generation,
            self.child,
            self.child_generation,
            0,
            0,
        )
        return head + names


#: Told to every watcher: events were lost here.
OVERFLOW = EventRecord(0, 0, Event.OVERFLOW)


def decode_all(payload: bytes) -> list[EventRecord]:
    """Decode the payload of one notification; ``ValueError`` says which rule a record breaks."""
    records = []
    offset = 0
    while offset < len(payload):
        try:
            head = record.unpack_from(payload, offset)
        except struct.error as error:
            raise ValueError(
                f"{len(payload) - offset} bytes left, a record has at least {record.size}"
            ) from error
        if head.len % _ALIGN or not record.size <= head.len <= len(payload) - offset:
            raise ValueError(f"record length {head.len}, {len(payload) - offset} bytes left")
        records.append(_decode(head, payload[offset + record.size : offset + head.len]))
        offset += head.len
    return records


def _decode(head: object, names: bytes) -> EventRecord:
    fields = head._asdict()  # type: ignore[attr-defined]
    namelen, newnamelen = fields["namelen"], fields["newnamelen"]
    if fields["flags"] & ~int(RecordFlag.HALF) or fields["reserved0"] or fields["reserved1"]:
        raise ValueError("reserved bits are set")
    if len(names) != (namelen + newnamelen + _ALIGN - 1) // _ALIGN * _ALIGN or any(
        names[namelen + newnamelen :]
    ):
        raise ValueError("names and padding do not fill the record")
    decoded = EventRecord(
        nodeid=fields["nodeid"],
        generation=fields["generation"],
        mask=Event(fields["mask"]),
        name=names[:namelen],
        half=bool(fields["flags"]),
        newdir=fields["newdir"],
        newdir_generation=fields["newdir_generation"],
        newname=names[namelen : namelen + newnamelen],
        child=fields["child"],
        child_generation=fields["child_generation"],
    )
    _check(decoded)
    return decoded


def _check(decoded: EventRecord) -> None:
    mask = decoded.mask
    if Event.OVERFLOW in mask:
        if decoded != OVERFLOW:
            raise ValueError("an overflow record says something else too")
        return
    for name, wanted in (
        (decoded.name, bool(mask & _NAMED)),
        (decoded.newname, Event.RENAME in mask),
    ):
        if bool(name) != wanted:
            raise ValueError(f"{'no name' if wanted else 'a name'} with {mask!r}")
        if len(name) > NAME_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise ValueError(f"bad name {name!r}")
    if bool(decoded.newdir) != (Event.RENAME in mask):
        raise ValueError("a new directory belongs to a rename, and only to a rename")
    if decoded.half and not mask & (Event.MOVED_FROM | Event.MOVED_TO):
        raise ValueError("half of something that is no move")
