# SPDX-License-Identifier: Apache-2.0
"""The guest's agent as a process of this machine."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from farwatch_harness.util import paths
from farwatch_harness.vm.guest_client import Guest


@contextmanager
def agent_at(ours: socket.socket, theirs: socket.socket) -> Iterator[Guest]:
    """Yield a client on `ours` of an agent on `theirs`."""
    number = theirs.fileno()
    code = f"import agent; agent.Agent({number}).serve()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=paths.GUEST_AGENT.parent, pass_fds=[number]
    ) as process:
        client = Guest(ours, lambda: "the test's guest has ended")
        client.wait_until_ready(10)
        yield client
        process.kill()


@contextmanager
def local_agent() -> Iterator[Guest]:
    """Yield a client of an agent, over a connection of their own."""
    ours, theirs = socket.socketpair()
    with ours, theirs, agent_at(ours, theirs) as client:
        yield client
