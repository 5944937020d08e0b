# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system whose server can be stopped, for tests of remote file systems."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).parents[3] / "guest-tests/servers/fuse_server.py"
LIMIT = 20.0


class HungFileSystem:
    """A FUSE file system at ``mount_point``, whose server can be stopped."""

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self.mount_point = mount_point
        self._server = subprocess.Popen(
            # Nothing is cached, so that every request asks the server.
            [sys.executable, SERVER, directory, mount_point, "never", "locks"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "mounted\n"

    def hang(self) -> None:
        """Stop the server: what waits for the file system waits on."""
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on."""
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Let the server go on, and unmount."""
        self.resume()
        subprocess.run(["umount", "-l", self.mount_point], check=True, timeout=LIMIT)
        self._server.kill()
        self._server.communicate(timeout=LIMIT)
