# SPDX-License-Identifier: Apache-2.0
"""The oracle in the stress test: random scripts from a seed, alternately on host and guest."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from random import Random

from farwatch_harness.oracle.compare import (
    Comparison,
    HostWatch,
    compare_in_the_guest,
    compare_on_the_host,
)
from farwatch_harness.oracle.file_operations import FileOperation, random_script
from farwatch_harness.oracle.script_runners import GuestScriptRunners, HostScriptRunners
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.util.progress import Step
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share

MAX_THREADS = 3
LONGEST = 12
TMPFS = PurePosixPath("/run/farwatch/tmpfs")
ThreadScripts = list[list[FileOperation]]


class Oracle:
    """Compares scripts, in directories of its own on the share; close() ends its processes.

    scripts: the number of scripts compared.
    differences: a text for each script that differs, with the script.
    uncompared: the number of scripts that differ, where events may be missing.
    """

    def __init__(
        self,
        guest: Guest,
        root: Share,
        mode: str,
        folder: Path,
        random: Random,
        disturbed: Callable[[float], bool],
    ) -> None:
        """`disturbed`: whether events since a time of the monotonic clock may be missing."""
        self.guest = guest
        self.disturbed = disturbed
        self.uncompared = 0
        self.random = random
        self.references = folder / "references"
        self.share = Share(root.host / "oracle", root.guest / "oracle")
        self.share.host.mkdir()
        self.watch = HostWatch.INOTIFY if mode == "remote" else HostWatch.FANOTIFY
        # In mode remote, the guest's own operations are reported as they reach the host: a known
        # difference.
        self.sides = (
            (self.on_the_host,) if mode == "remote" else (self.on_the_host, self.in_the_guest)
        )
        self.scripts = 0
        self.differences: list[str] = []
        self.guest.os("makedirs", str(TMPFS), exist_ok=True)
        self.host_runners = HostScriptRunners(MAX_THREADS)
        self.guest_runners = GuestScriptRunners(guest, MAX_THREADS)

    def close(self) -> None:
        """End the script runners."""
        self.host_runners.close()
        self.guest_runners.close()

    def run(self, end: float, progress: Step) -> None:
        """Compare scripts until the monotonic clock shows `end`."""
        self.references.mkdir()
        self.guest.mount("farwatch", str(TMPFS), "tmpfs")
        while time.monotonic() < end:
            progress.update(f"{self.scripts} scripts, {len(self.differences)} differ")
            self.check(self.sides[self.scripts % len(self.sides)])
        self.guest.umount(str(TMPFS))
        shutil.rmtree(self.references)

    def check(self, side: "Side") -> None:
        """Compare one more script, which depends on the seed and on its number alone."""
        self.scripts += 1
        random = Random(self.random.random())
        threads = [
            random_script(random, random.randint(1, LONGEST))
            for _ in range(random.randint(1, MAX_THREADS))
        ]
        name = f"script-{self.scripts}"
        began = time.monotonic()
        try:
            difference = side(name, threads).difference()
        except GuestLostError:
            raise
        except HarnessError as error:
            difference = str(error)
        if difference and self.disturbed(began):
            self.uncompared += 1
        elif difference:
            self.differences.append(
                f"script {self.scripts}, {side.__name__}, {threads}: {difference}"
            )
        shutil.rmtree(self.share.host / name)

    def on_the_host(self, name: str, threads: ThreadScripts) -> Comparison:
        """Perform the script on the host."""
        part = Share(self.share.host / name, self.share.guest / name)
        return compare_on_the_host(
            self.guest, part, self.references / name, threads, self.host_runners, self.watch
        )

    def in_the_guest(self, name: str, threads: ThreadScripts) -> Comparison:
        """Perform the script in the guest."""
        part = Share(self.share.host / name, self.share.guest / name)
        return compare_in_the_guest(self.guest, part, TMPFS / name, threads, self.guest_runners)


Side = Callable[[str, ThreadScripts], Comparison]
