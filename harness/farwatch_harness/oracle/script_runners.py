# SPDX-License-Identifier: Apache-2.0
"""Script runners: processes that perform scripts of operations, on the host or in the guest.

Several of them run concurrently.
"""

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Protocol

from farwatch_harness.oracle import file_operations
from farwatch_harness.oracle.file_operations import DONE, FileOperation
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest

#: A base directory and the script that is performed in it.
ScriptPart = tuple[PurePath, Sequence[FileOperation]]
#: Seconds for one request and for the program's start: an emulated guest reads Python over 9p.
LIMIT = 60.0
# Isolated from the environment, and without writing byte code.
COMMAND = ("-I", "-S", "-B", file_operations.__file__)


class ScriptRunners(Protocol):
    """Several processes that perform scripts."""

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """Have each process perform its parts, one after the other; all processes run concurrently.

        Return when all have finished. HarnessError: it took too long, or a process has ended.
        """


def request_line(parts: Sequence[ScriptPart]) -> str:
    """Return the line of input that has a process perform these parts."""
    return json.dumps([[str(base), list(script)] for base, script in parts]) + "\n"


class HostScriptRunners:
    """Script runners on the system on which this process runs.

    outside: the directory outside of the share that their scripts use, on its file system.
    """

    def __init__(self, count: int, outside: Path | None = None) -> None:
        argv = [sys.executable, *COMMAND, *([] if outside is None else [str(outside)])]
        self.processes = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """Have each process perform its parts; return when all have finished."""
        self.start(parts)
        self.finish(len(parts))

    def start(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """Do as `perform`, but do not wait for the end."""
        for process, own in zip(self.processes, parts, strict=False):
            assert process.stdin is not None
            process.stdin.write(request_line(own))
            process.stdin.flush()

    def finish(self, count: int) -> None:
        """Wait until the first `count` processes have performed what they were started with."""
        for process in self.processes[:count]:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], LIMIT)[0]:
                raise HarnessError(f"a script was not performed in {LIMIT:.0f} s")
            if process.stdout.readline().strip() != DONE:
                raise HarnessError(
                    f"a process that performs scripts ended with {process.wait(LIMIT)}"
                )

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.communicate()


class GuestScriptRunners:
    """Script runners in the guest."""

    def __init__(self, guest: Guest, count: int) -> None:
        self.guest = guest
        argv = [str(Path(sys.executable).resolve()), *COMMAND]
        self.processes = [guest.spawn(*argv, stdin=True) for _ in range(count)]

    def perform(self, parts: Sequence[Sequence[ScriptPart]]) -> None:
        """Have each process perform its parts; return when all have finished."""
        texts = [
            (process.handle, request_line(own))
            for process, own in zip(self.processes, parts, strict=False)
        ]
        for output in self.guest.call("processes_ask", LIMIT, texts=texts, limit=LIMIT):
            if output != [DONE]:
                words = " / ".join(output) or f"no answer in {LIMIT:.0f} s"
                raise HarnessError(f"a script in the guest was not performed: {words}")

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            if not self.guest.lost:
                process.stop()
