# SPDX-License-Identifier: Apache-2.0
"""A request handler that hands requests to a daemon which runs as a process."""

from __future__ import annotations

from farwatchd.virtio_fs.interfaces import RequestHandler
from farwatchd.virtqueue import Chain
from farwatchd.wire import fuse
from tests.support.daemon_guest import MountedGuest


class DaemonHandler(RequestHandler):
    """Hands requests to a daemon, as a session in this process would take them."""

    def __init__(self, guest: MountedGuest) -> None:
        self._guest = guest

    def handle(self, chain: Chain) -> int:
        """Send one request and put the reply where it belongs."""
        request = b"".join(chain.readable)
        header = fuse.in_header.unpack_from(request)
        room = chain.writable_size - fuse.out_header.size
        if room < 0:
            self._guest.front_end.send_no_reply(
                header.opcode, header.nodeid, request[fuse.in_header.size :]
            )
            return 0
        error, payload = self._guest.front_end.request(
            header.opcode,
            header.nodeid,
            request[fuse.in_header.size :],
            room,
            uid=header.uid,
            gid=header.gid,
        )
        reply = (
            fuse.out_header.pack_values(fuse.out_header.size + len(payload), -error, header.unique)
            + payload
        )
        position = 0
        for view in chain.writable:
            part = reply[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
        return len(reply)

    def events_available(self) -> None:
        """Do nothing."""

    def drain(self, timeout: float) -> bool:
        """Do nothing."""
        return True

    def detach_memory(self) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""
