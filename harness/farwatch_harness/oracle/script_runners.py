# SPDX-License-Identifier: Apache-2.0
"""Processes that perform scripts of operations, on the host or in the guest, several at once if
several are started."""

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Protocol

from farwatch_harness.oracle import operations
from farwatch_harness.oracle.operations import DONE, FileOperation
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

#: A base directory and the script that is performed in it.
ScriptPart = tuple[PurePath, Sequence[FileOperation]]
#: Seconds for one order, and for the program to come up: in an emulated guest that reads its Python
#: over 9p.
LIMIT = 60.0
# Nothing of the environment has a say in what is performed, and no byte code is written.
COMMAND = ("-I", "-S", "-B", operations.__file__)


class ScriptRunners(Protocol):
    """Several processes that do as they are told."""

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """Each process performs parts of its own, one after the other, all processes at the same
        time.

        Returns when all is done; HarnessError when that takes too long or a process is gone.
        """


def order(parts: Sequence[ScriptPart]) -> str:
    """What a process reads."""
    return json.dumps([[str(base), list(script)] for base, script in parts]) + "\n"


class HostScriptRunners:
    """Performers on the system that this runs on."""

    def __init__(self, count: int) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(count)
        ]

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        self.start(parts)
        self.finish(len(parts))

    def start(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """As ``perform``, without waiting for the end."""
        for process, own in zip(self.processes, parts, strict=False):
            assert process.stdin is not None
            process.stdin.write(order(own))
            process.stdin.flush()

    def finish(self, count: int) -> None:
        """Waits until the first ``count`` have done what they were started for."""
        for process in self.processes[:count]:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], LIMIT)[0]:
                raise HarnessError(f"a script was not performed in {LIMIT:.0f} s")
            if process.stdout.readline().strip() != DONE:
                raise HarnessError(
                    f"a process that performs scripts ended with {process.wait(LIMIT)}"
                )

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.communicate()


class GuestScriptRunners:
    """Performers in the guest."""

    def __init__(self, guest: Guest, count: int) -> None:
        self.guest = guest
        argv = [str(Path(sys.executable).resolve()), *COMMAND]
        self.processes = [guest.spawn(*argv, stdin=True) for _ in range(count)]

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        texts = [
            (process.handle, order(own))
            for process, own in zip(self.processes, parts, strict=False)
        ]
        for said in self.guest.call("processes_ask", LIMIT, texts=texts, limit=LIMIT):
            if said != [DONE]:
                words = " / ".join(said) or f"nothing was said in {LIMIT:.0f} s"
                raise HarnessError(f"a script in the guest was not performed: {words}")

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            if not self.guest.lost:
                process.stop()
