# SPDX-License-Identifier: Apache-2.0
"""A guest of a daemon that runs as a process: FUSE operations by name."""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
from typing import Any

from farwatchd.watch.event_record import EventRecord
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import FUSE_HAS_FSNOTIFY, Event, fsnotify_in, fsnotify_out
from farwatchd.wire.fuse import InitFlag, Opcode
from tests.support.daemon_process import DaemonProcess
from tests.support.driver import Buffer
from tests.support.event_records import decode_all
from tests.support.frontend import IN_HEADER, OUT_HEADER, FrontEnd

ROOT = 1
#: The number of a request that nothing waits for.
UNIQUE = 9000
#: What Linux offers, as far as this daemon knows it.
OFFERED = InitFlag((1 << 31) - 1) | InitFlag.CREATE_SUPP_GROUP | FUSE_HAS_FSNOTIFY
BUFFERS = 8
#: The number of the first request whose reply may come later; the others have larger ones.
ASKED = 1 << 40


class MountedGuest:
    """A guest that has mounted the share: FUSE operations by name."""

    def __init__(
        self, daemon: DaemonProcess, notification: bool = True, extra_flags: int = 0
    ) -> None:
        self.daemon = daemon
        self._offered = int(OFFERED) | extra_flags
        self.front_end = FrontEnd(daemon.connect(), notification)
        self.front_end.negotiate()
        if notification:
            self.front_end.post_notification_buffers(BUFFERS)
        self.init = self.mount()

    def mount(self) -> Any:
        """INIT; returns the reply."""
        offered = self._offered
        payload = wire.init_in.pack(
            major=7,
            minor=41,
            max_readahead=1 << 17,
            flags=offered & 0xFFFFFFFF,
            flags2=offered >> 32,
        )
        return wire.init_out.unpack_from(self.ask(Opcode.INIT, 0, payload, wire.init_out.size))

    @property
    def flags(self) -> int:
        """The flags that INIT agreed on."""
        return int(self.init.flags | self.init.flags2 << 32)

    def ask(self, opcode: int, nodeid: int, payload: bytes = b"", room: int = 0) -> bytes:
        """Send a request that must succeed."""
        error, reply = self.front_end.request(opcode, nodeid, payload, room)
        assert error == 0, f"{Opcode(opcode).name}: {os.strerror(error)}"
        return reply

    def fails(self, opcode: int, nodeid: int, payload: bytes = b"", room: int = 0) -> int:
        """Send a request that must fail; return its errno."""
        error, reply = self.front_end.request(opcode, nodeid, payload, room)
        assert error and not reply
        return error

    def start(self, opcode: int, nodeid: int, payload: bytes, room: int = 0) -> Buffer:
        """Send a request without waiting; return where its reply, to UNIQUE, will be."""
        size = IN_HEADER.size + len(payload)
        ram, channel = self.front_end.ram, self.front_end.requests()
        request = Buffer(ram.allocate(size), size)
        header = IN_HEADER.pack(size, opcode, UNIQUE, nodeid, 0, 0, 1, 0, 0)
        ram.write(request.addr, header + payload)
        reply = Buffer(ram.allocate(OUT_HEADER.size + room), OUT_HEADER.size + room)
        channel.queue.add([request], [reply])
        self.front_end.publish(channel)
        return reply

    def lookup(self, parent: int, name: bytes) -> Any:
        """Return the entry of a name."""
        return wire.entry_out.unpack_from(
            self.ask(Opcode.LOOKUP, parent, name + b"\0", wire.entry_out.size)
        )

    def create(self, parent: int, name: bytes) -> tuple[int, int]:
        """Make a file; returns its nodeid and handle."""
        payload = (
            wire.create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=stat.S_IFREG | 0o640)
            + name
            + b"\0"
        )
        reply = self.ask(Opcode.CREATE, parent, payload, wire.entry_out.size + wire.open_out.size)
        entry = wire.entry_out.unpack_from(reply)
        return entry.nodeid, wire.open_out.unpack_from(reply, wire.entry_out.size).fh

    def write(self, nodeid: int, fh: int, offset: int, data: bytes) -> int:
        """Write; returns bytes written."""
        payload = wire.write_in.pack(fh=fh, offset=offset, size=len(data)) + data
        return int(
            wire.write_out.unpack_from(
                self.ask(Opcode.WRITE, nodeid, payload, wire.write_out.size)
            ).size
        )

    def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes:
        """Read."""
        return self.ask(
            Opcode.READ, nodeid, wire.read_in.pack(fh=fh, offset=offset, size=size), size
        )

    def release(self, nodeid: int, fh: int) -> None:
        """Close a file."""
        self.ask(Opcode.RELEASE, nodeid, wire.release_in.pack(fh=fh))

    def names(self, nodeid: int, plus: bool = False) -> dict[bytes, int]:
        """Return a directory's entries with their nodeids (0 without ``plus``)."""
        opened = wire.open_out.unpack_from(
            self.ask(
                Opcode.OPENDIR, nodeid, wire.open_in.pack(flags=os.O_DIRECTORY), wire.open_out.size
            )
        )
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        skip = wire.entry_out.size if plus else 0
        found: dict[bytes, int] = {}
        offset = 0
        while True:
            batch = self.ask(
                opcode, nodeid, wire.read_in.pack(fh=opened.fh, offset=offset, size=4096), 4096
            )
            if not batch:
                break
            position = 0
            while position < len(batch):
                entry = wire.entry_out.unpack_from(batch, position).nodeid if plus else 0
                dirent = wire.dirent.unpack_from(batch, position + skip)
                start = position + skip + wire.dirent.size
                found[batch[start : start + dirent.namelen]] = entry
                offset = dirent.off
                position += (skip + wire.dirent.size + dirent.namelen + 7) // 8 * 8
        self.ask(Opcode.RELEASEDIR, nodeid, wire.release_in.pack(fh=opened.fh))
        return found

    def watch(self, nodeid: int, mask: Event) -> Event:
        """Set the mask of an inode; returns what is watched."""
        reply = self.ask(
            Opcode.FSNOTIFY, nodeid, fsnotify_in.pack(mask=int(mask)), fsnotify_out.size
        )
        return Event(fsnotify_out.unpack_from(reply).mask)

    def events(self, at_least: int) -> list[EventRecord]:
        """Return the records that have come, waiting for ``at_least`` records."""
        records: list[EventRecord] = []
        while len(records) < at_least:
            for payload in self.front_end.notifications():
                records += decode_all(payload)
        return records

    def leave(self) -> None:
        """Power off."""
        self.front_end.close()

    def reconnect(self, daemon: DaemonProcess) -> None:
        """Connect to another daemon, as a VMM does when the former one has ended."""
        self.front_end.reconnect(daemon.connect())


def open_file(guest: MountedGuest, nodeid: int, flags: int = os.O_RDWR) -> int:
    """Open a file; return its handle."""
    reply = guest.ask(Opcode.OPEN, nodeid, wire.open_in.pack(flags=flags), wire.open_out.size)
    return int(wire.open_out.unpack_from(reply).fh)


def lock_request(fh: int, owner: int, kind: int = fcntl.F_WRLCK) -> bytes:
    """Return the payload of SETLK, SETLKW or GETLK."""
    return wire.lk_in.pack(
        fh=fh, owner=owner, lk_start=0, lk_end=9, lk_type=kind, lk_pid=1, lk_flags=0
    )


class Asked:
    """A request whose reply may come later."""

    _numbers = itertools.count(ASKED, 2)

    def __init__(
        self, guest: MountedGuest, opcode: int, nodeid: int, payload: bytes, room: int
    ) -> None:
        front_end = guest.front_end
        self.front_end = front_end
        size = wire.in_header.size + len(payload)
        self.unique = next(self._numbers)
        head = wire.in_header.pack(len=size, opcode=opcode, unique=self.unique, nodeid=nodeid)
        request = Buffer(front_end.ram.allocate(size), size)
        front_end.ram.write(request.addr, head + payload)
        room += OUT_HEADER.size
        self.reply = Buffer(front_end.ram.allocate(room), room)
        self.channel = front_end.requests()
        self.head = self.channel.queue.add([request], [self.reply], front_end.indirect)
        front_end.publish(self.channel)

    def answer(self) -> tuple[int, bytes]:
        """Return errno and payload of the reply, which comes next."""
        self.channel.queue.want_interrupts(True)
        head, written = self.front_end.wait_used(self.channel)
        assert head == self.head
        reply = self.front_end.ram.read(self.reply.addr, written)
        length, error, unique = OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (written, self.unique)
        return -error, reply[OUT_HEADER.size :]
