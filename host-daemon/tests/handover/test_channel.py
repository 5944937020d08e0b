# SPDX-License-Identifier: Apache-2.0
"""Messages with descriptors between a daemon and its successor."""

from __future__ import annotations

import os
import socket

from farwatchd.handover.channel import HandoverChannel, Kind

LIMIT = 10.0


def test_received_descriptors_are_closed_on_execve() -> None:
    ours, theirs = map(HandoverChannel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    ours.send(Kind.READY, b"", [0, 1])
    message = theirs.expect(Kind.READY, LIMIT)
    assert [os.get_inheritable(fd) for fd in message.fds] == [False, False]
    for fd in message.fds:
        os.close(fd)
    ours.close()
    theirs.close()
