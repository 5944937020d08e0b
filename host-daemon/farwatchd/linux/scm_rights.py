# SPDX-License-Identifier: Apache-2.0
"""Receive descriptors with data on a UNIX socket (SCM_RIGHTS, unix(7))."""

from __future__ import annotations

import array
import socket

_FD_SIZE = array.array("i").itemsize


def receive(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int], int]:
    """Return at most ``size`` bytes, the descriptors that came with them, and recvmsg(2)'s flags.

    The caller owns the descriptors, of which there are at most ``max_fds``. MSG_CTRUNC in the
    flags: more were sent, or none is free. They are closed on execve(2): ``socket.recv_fds`` passes
    its flags to no system call.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        size, socket.CMSG_LEN(max_fds * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % _FD_SIZE])
    return data, list(fds), flags
