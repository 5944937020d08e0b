# SPDX-License-Identifier: Apache-2.0
"""Event records of FUSE_NOTIFY_FSNOTIFY (docs/protocol.md, "events")."""

from __future__ import annotations

from typing import NamedTuple

from farwatchd.wire.fsnotify import Event, RecordFlag, record

NAME_MAX = 255
_ALIGN = 8
_UNPAIRED, _UNLINKED = int(RecordFlag.UNPAIRED), int(RecordFlag.UNLINKED)

#: Bytes of the longest record: both names at their limit.
RECORD_MAX = (record.size + 2 * NAME_MAX + _ALIGN - 1) // _ALIGN * _ALIGN


class EventRecord(NamedTuple):
    """One record. The fields are the protocol's, ``unpaired`` and ``unlinked`` its flags.

    ``mask`` has bits of ``Event``.
    """

    nodeid: int
    generation: int
    mask: int
    name: bytes = b""
    unpaired: bool = False
    newdir: int = 0
    newdir_generation: int = 0
    newname: bytes = b""
    child: int = 0
    child_generation: int = 0
    unlinked: bool = False

    def encode(self) -> bytes:
        """Return the record's bytes: a multiple of 8, at most RECORD_MAX.

        Raises ``ValueError`` for a name of more than 255 bytes.
        """
        if len(self.name) > NAME_MAX or len(self.newname) > NAME_MAX:
            raise ValueError(
                f"name of {max(len(self.name), len(self.newname))} bytes, the record holds"
                f" {NAME_MAX}"
            )
        names = self.name + self.newname
        names += bytes(-len(names) % _ALIGN)
        head = record.pack_values(
            record.size + len(names),
            _UNPAIRED * self.unpaired | _UNLINKED * self.unlinked,
            record.size,
            self.nodeid,
            self.generation,
            self.mask,
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


#: Events were lost at this position.
OVERFLOW = EventRecord(0, 0, Event.OVERFLOW)
#: No event: nothing is watched any more, the client asks again for what it wants.
WATCHES_LOST = EventRecord(0, 0, Event.WATCHES_LOST)


def watch_ended(nodeid: int, generation: int) -> EventRecord:
    """Return the record, no event, that says that this object is not watched any more.

    The client asks again when a name leads it to the object the next time.
    """
    return EventRecord(nodeid, generation, Event.WATCH_ENDED)
