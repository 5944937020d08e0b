# SPDX-License-Identifier: Apache-2.0
"""What people have reported of shares and watchers, as scripts that also run natively.

`cases/lib.sh` says how a script runs; without a guest it shows what native inotify does.
"""

import contextlib
import json
import os
import shlex
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("notifications"), pytest.mark.daemon]

CASES = Path(__file__).with_name("cases")
#: Seconds for a case.
CASE_LIMIT = 180.0
#: Seconds for a script of it in the guest.
SCRIPT_LIMIT = 120.0
#: What needs a testbed of its own, or shows the same in each mode.
BY_THEMSELVES = {
    "21-tail-follows",
    "37-mounts-of-the-host",
    "37b-read-only-mount-of-the-host",
    "45-two-guests",
}
NAMES = sorted(path.stem for path in CASES.glob("[0-9]*.sh"))


class ScriptServer(socketserver.ThreadingUnixStreamServer):
    """Runs the scripts of in_guest.py in a guest."""

    daemon_threads = True

    def __init__(self, path: Path, guest: Guest) -> None:
        super().__init__(str(path), ScriptHandler)
        self.guest = guest


class ScriptHandler(socketserver.StreamRequestHandler):
    """One script."""

    def handle(self) -> None:
        assert isinstance(self.server, ScriptServer)
        script = self.rfile.read()
        done = self.server.guest.run("sh", limit=SCRIPT_LIMIT, stdin=script)
        answer = {"stdout": done.stdout, "stderr": done.stderr, "status": done.status}
        self.wfile.write(json.dumps(answer).encode())


@contextlib.contextmanager
def scripts_run_in(guest: Guest) -> Iterator[str]:
    """Serve scripts for a guest; yield the command that runs one."""
    # The path of a socket has at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="farwatch-") as folder:
        path = Path(folder, "scripts")
        with ScriptServer(path, guest) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield shlex.join([sys.executable, "-IS", str(CASES / "in_guest.py"), str(path)])
            server.shutdown()


def run_case(name: str, testbed: Testbed, **settings: str) -> None:
    """Run a case across host and guest; fail with what it printed."""
    with scripts_run_in(testbed.guest) as command:
        environment: Mapping[str, str] = {
            **os.environ,
            "SHARE_HOST": str(testbed.shared),
            "SHARE_GUEST": str(testbed.mount_point),
            "GUEST": command,
            "DAEMON_PID": str(testbed.daemon.process.pid),
            **settings,
        }
        done = subprocess.run(
            ["sh", str(CASES / f"{name}.sh")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=CASE_LIMIT,
        )
    if done.returncode:
        pytest.fail(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}", False)


@pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_THEMSELVES])
def test_guest_sees_what_a_local_watcher_sees(name: str, testbed: Testbed) -> None:
    run_case(name, testbed)


def test_tail_follows_logs(testbed: Testbed) -> None:
    run_case("21-tail-follows", testbed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("37-mounts-of-the-host", ()),
        ("37-mounts-of-the-host", ("--sandbox=chroot", "--fsnotify=remote")),
        # The host's namespace is the daemon's there.
        ("37b-read-only-mount-of-the-host", ("--sandbox=chroot",)),
    ],
)
def test_mounts_of_the_host_are_seen(
    name: str, options: tuple[str, ...], boot: Any, tmp_path: Path
) -> None:
    # A daemon in a mount namespace of its own sees new mounts only of what the host's share.
    mount = ["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(tmp_path)], check=True)
        (tmp_path / "share").mkdir()
        run_case(name, boot(shared=tmp_path / "share", daemon_options=options))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_limit_of_the_daemon_is_enospc(boot: Any) -> None:
    run_case("39-no-room-for-watches", boot(daemon_options=("--max-watches=20",)), MOST="20")


def test_two_guests_see_each_other(boot: Any, tmp_path: Path) -> None:
    first, second = boot(shared=tmp_path), boot(shared=tmp_path)
    with scripts_run_in(second.guest) as command:
        run_case("45-two-guests", first, GUEST2=command)
