# SPDX-License-Identifier: Apache-2.0
"""A decoder of event records that checks every rule of docs/protocol.md, "events"."""

from __future__ import annotations

import struct

from farwatchd.watch.event_record import (
    NAME_MAX,
    OVERFLOW,
    WATCHES_LOST,
    EventRecord,
    watch_ended,
)
from farwatchd.wire.fsnotify import Event, RecordFlag, record

_ALIGN = 8
_NAMED = (
    Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO | Event.RENAME | Event.ON_CHILD
)


def decode_all(payload: bytes) -> list[EventRecord]:
    """Decode the payload of one notification; ``ValueError`` names the rule that is broken."""
    records = []
    offset = 0
    while offset < len(payload):
        try:
            head = record.unpack_from(payload, offset)
        except struct.error as error:
            raise ValueError(
                f"{len(payload) - offset} bytes left, a record has at least {record.size}"
            ) from error
        if head.head % _ALIGN or head.head < record.size:
            raise ValueError(f"{head.head} bytes before the names, {record.size} are needed")
        if head.len % _ALIGN or not head.head <= head.len <= len(payload) - offset:
            raise ValueError(f"record length {head.len}, {len(payload) - offset} bytes left")
        records.append(_decode(head, payload[offset + head.head : offset + head.len]))
        offset += head.len
    return records


def _decode(head: object, names: bytes) -> EventRecord:
    fields = head._asdict()  # type: ignore[attr-defined]
    namelen, newnamelen = fields["namelen"], fields["newnamelen"]
    if (
        fields["flags"] & ~int(RecordFlag.UNPAIRED | RecordFlag.UNLINKED)
        or fields["reserved0"]
        or fields["reserved1"]
    ):
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
        unpaired=bool(fields["flags"] & RecordFlag.UNPAIRED),
        unlinked=bool(fields["flags"] & RecordFlag.UNLINKED),
        newdir=fields["newdir"],
        newdir_generation=fields["newdir_generation"],
        newname=names[namelen : namelen + newnamelen],
        child=fields["child"],
        child_generation=fields["child_generation"],
    )
    _check(decoded)
    return decoded


def _check(decoded: EventRecord) -> None:
    mask = Event(decoded.mask)
    if mask & (Event.OVERFLOW | Event.WATCHES_LOST | Event.WATCH_ENDED):
        ended = watch_ended(decoded.nodeid or 1, decoded.generation)
        if decoded not in (OVERFLOW, WATCHES_LOST, ended):
            raise ValueError("a record that is no event has other fields")
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
    if decoded.newdir_generation and not decoded.newdir:
        raise ValueError("the generation of no new directory is set")
    if decoded.child_generation and not decoded.child:
        raise ValueError("the generation of no child is set")
    if decoded.unpaired and not mask & (Event.MOVED_FROM | Event.MOVED_TO):
        raise ValueError("UNPAIRED is set for what is no move")
    if decoded.unlinked and Event.ON_CHILD not in mask:
        raise ValueError("UNLINKED is set for what is no event of a child")
