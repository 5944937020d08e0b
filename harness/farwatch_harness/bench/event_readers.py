# SPDX-License-Identifier: Apache-2.0
"""Where the program runs that reads the benchmark's events: in the guest, or on the host itself.

The same program on the host is the reference: native inotify, without daemon and guest.
"""

import subprocess
import threading
from pathlib import Path, PurePosixPath
from typing import Protocol

from farwatch_harness.bench.operations import cpu_ns_of
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.testbed import Share, Testbed

NATIVE = "native"
START_LIMIT = 30.0

#: Prints the file that is the memory of the device that host and guest share, and enables it.
FIND_PAGE = """for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/vendor $device/device | tr '\\n' ' ')" = "0x1af4 0x1110 " ] || continue
    echo 1 > $device/enable
    echo $device/resource2
done"""


def page_options(page: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for a device whose memory is the file `page` of the host."""
    size = page.stat().st_size
    return (
        "-object",
        f"memory-backend-file,id=page,share=on,mem-path={page},size={size}",
        "-device",
        "ivshmem-plain,memdev=page",
    )


class Reader(Protocol):
    """A running program that reads events."""

    def lines(
        self, *, limit: float, count: int | None = None, until: str | None = None
    ) -> list[str]:
        """Return its output since the last call: `count` lines, or up to a line with `until`.

        Fewer, when it has ended or `limit` seconds are over.
        """

    def stop(self) -> int:
        """End the program."""


class Place(Protocol):
    """A place where programs read events."""

    @property
    def mode(self) -> str:
        """What the report calls the place: a mode of events, or "native"."""

    @property
    def page(self) -> str:
        """The path by which a program here reaches the memory that it shares with the host."""

    @property
    def host_page(self) -> Path:
        """The same for a program of the host."""

    def directory(self, name: str) -> Share:
        """Make an empty directory that the host changes and a program here watches."""

    def spawn(self, *words: object) -> Reader:
        """Start a program here."""

    def daemon_cpu_ns(self) -> int:
        """Return the CPU time of the daemon so far, in ns; 0 without a daemon."""


class GuestPlace:
    """A guest in one mode of events. Implements `Place`."""

    def __init__(self, testbed: Testbed, mode: str, host_page: Path) -> None:
        self.testbed = testbed
        self.mode = mode
        self.host_page = host_page
        self.page = testbed.guest.shell(FIND_PAGE).strip()
        if not self.page:
            raise HarnessError("the guest has no device of the memory that it shares with the host")

    def directory(self, name: str) -> Share:
        """Make a directory of the share."""
        return share_directory(self.testbed, name)

    def spawn(self, *words: object) -> Reader:
        """Start a program in the guest."""
        return self.testbed.guest.spawn(*(str(word) for word in words))

    def daemon_cpu_ns(self) -> int:
        """Return the CPU time of farwatchd."""
        return cpu_ns_of(self.testbed.daemon.process.pid)


class NativePlace:
    """The host itself, in the directory `folder`. Implements `Place`."""

    mode = NATIVE

    def __init__(self, folder: Path, host_page: Path) -> None:
        self.folder = folder
        self.host_page = host_page
        self.page = str(host_page)

    def directory(self, name: str) -> Share:
        """Make a directory beside the share; it is its own "guest's" directory."""
        directory = self.folder / f"{NATIVE}-{name}"
        directory.mkdir()
        return Share(directory, PurePosixPath(directory))

    def spawn(self, *words: object) -> Reader:
        """Start a program of the host."""
        return HostProcess([str(word) for word in words])

    def daemon_cpu_ns(self) -> int:
        """Return 0."""
        return 0


class HostProcess:
    """A running program of the host. Implements `Reader`."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def lines(
        self, *, limit: float, count: int | None = None, until: str | None = None
    ) -> list[str]:
        """Return the next lines; at the limit the program is killed."""
        found: list[str] = []
        assert self.process.stdout is not None
        killer = threading.Timer(limit, self.process.kill)
        killer.start()
        try:
            while count is None or len(found) < count:
                line = self.process.stdout.readline()
                if not line:
                    break
                found.append(line.rstrip("\n"))
                if until is not None and until in line:
                    break
        finally:
            killer.cancel()
        return found

    def stop(self) -> int:
        """Kill the program, if it runs, and return its status."""
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait()


def share_directory(testbed: Testbed, name: str) -> Share:
    """Make a directory of the share."""
    (testbed.shared / name).mkdir()
    return Share(testbed.shared / name, testbed.mount_point / name)


def started(place: Place, *words: object) -> Reader:
    """Start a program of the benchmark; return when it has added its watches."""
    process = place.spawn(*words)
    output = process.lines(limit=START_LIMIT, until="ready")
    if "ready" not in output:
        raise HarnessError(
            f"the program that reads events did not start: {' / '.join(output) or 'no output'}"
        )
    return process
