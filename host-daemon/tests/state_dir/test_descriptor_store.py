# SPDX-License-Identifier: Apache-2.0
"""The process that has the VMM's descriptors while no daemon runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.state_dir.descriptor_store import connect

MESSAGES = [str(number).encode() for number in range(5)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def process_at(directory: int) -> int:
    """Return the id of the process, which has answered a daemon before."""
    another = connect(directory)
    with socket.socket(fileno=os.dup(another._channel.fileno())) as sock:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    another.take()
    another._channel.close()
    pid = int(struct.unpack("=iII", credentials)[0])
    assert pid != os.getpid()
    return pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process from running, as another one may on a busy machine."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_next_daemon_gets_what_was_kept_last(directory: int) -> None:
    ours, theirs = socket.socketpair()
    former = connect(directory)
    assert former.take().data == b""
    with stopped(process_at(directory)):
        for data in MESSAGES:
            former.keep(data, [ours.fileno()])
        # As if it were killed.
        former._channel.close()
        following = connect(directory)
    taken = following.take()
    assert taken.data == MESSAGES[-1] and taken.ended_ns
    assert os.fstat(taken.fds[0]).st_ino == os.fstat(ours.fileno()).st_ino
    for fd in taken.fds:
        os.close(fd)
    following._channel.close()
    ours.close()
    theirs.close()
