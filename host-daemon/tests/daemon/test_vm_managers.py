# SPDX-License-Identifier: Apache-2.0
"""The daemon, started with the words and in the manner of each VM manager: docs/recipes.md."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.daemon_process import COMMAND, TIMEOUT, wait_until

#: VHOST_USER_GET_FEATURES, and the size of its reply.
GET_FEATURES = struct.pack("<III", 1, 1, 0)
REPLY_SIZE = 20
IDS = "--uid-map=:0:0:1: --uid-map=:1:100000:65536: --gid-map=:0:0:1: --gid-map=:1:100000:65536:"


@dataclass(frozen=True)
class VmManager:
    """How a manager starts the daemon: SOCKET, SHARE and FD stand for what it passes."""

    words: str
    #: Standard descriptors that are closed.
    closed: tuple[int, ...] = ()
    in_share: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    #: The signal by which it ends the daemon, if it does not leave that to the daemon.
    end: signal.Signals | None = None


MANAGERS = {
    "libvirt": VmManager(
        "--fd=FD --shared-dir SHARE --cache always --sandbox namespace --xattr"
        " --thread-pool-size=4 --rlimit-nofile=4096",
        end=signal.SIGTERM,
    ),
    "libvirt, older daemon": VmManager(
        "--fd=FD -o source=SHARE,cache=none,sandbox=chroot,no_xattr,no_flock,no_posix_lock -d",
        end=signal.SIGTERM,
    ),
    "libvirt, session": VmManager(f"--fd=FD --shared-dir SHARE {IDS}", end=signal.SIGTERM),
    "Incus": VmManager("--fd=FD --cache=metadata --shared-dir=SHARE --posix-acl=auto"),
    "Incus, ids": VmManager(
        "--fd=FD --cache=never --shared-dir=SHARE --translate-uid=map:0:1000000:65536"
        " --translate-uid=forbid-guest:65536:4294901759 --translate-gid=map:0:1000000:65536"
        " --translate-gid=forbid-guest:4294967295:0"
    ),
    "Kata, Go": VmManager(
        "--syslog --cache=auto --shared-dir=SHARE --fd=FD --inode-file-handles=prefer"
        " --thread-pool-size=1 --announce-submounts",
        end=signal.SIGKILL,
    ),
    "Kata, Rust": VmManager(
        "--socket-path SOCKET --shared-dir SHARE --cache auto --thread-pool-size=1"
        " -o announce_submounts --xattr",
        end=signal.SIGKILL,
    ),
    "Kata, Rust, in between": VmManager(
        "--socket-path SOCKET --shared-dir SHARE --cache auto --sandbox none --seccomp none"
        " --inode-file-handles prefer",
        end=signal.SIGKILL,
    ),
    "Lima": VmManager("--socket-path SOCKET --shared-dir SHARE", end=signal.SIGTERM),
    "Podman machine": VmManager(
        "--sandbox none --socket-path SOCKET --shared-dir . --seccomp=none",
        closed=(0, 1),
        in_share=True,
        environment={"RUST_LOG": "ERROR"},
    ),
    "Proxmox": VmManager(
        "--fd=FD --shared-dir=SHARE --xattr --posix-acl --announce-submounts --allow-direct-io"
        " --cache=auto --syslog"
    ),
    "KubeVirt": VmManager(
        "--socket-path=SOCKET --shared-dir=SHARE --sandbox=none --cache=auto"
        " --migration-on-error=guest-error --migration-mode=find-paths"
        " --translate-uid=host:107:0:1"
    ),
    "systemd-vmspawn": VmManager(
        "--shared-dir SHARE --xattr --fd FD --no-announce-submounts --log-level=error"
        " --modcaps=-mknod",
        closed=(0,),
        end=signal.SIGTERM,
    ),
    "virtme-ng": VmManager(
        "--syslog --no-announce-submounts --posix-acl --readonly --socket-path SOCKET"
        " --shared-dir SHARE --sandbox none --cache auto",
        end=signal.SIGTERM,
    ),
    "bcvk": VmManager(
        "--socket-path SOCKET --shared-dir SHARE --cache=never --allow-mmap --sandbox=none"
        " --readonly --inode-file-handles=fallback"
    ),
    "microvm.nix": VmManager(
        "--socket-path=SOCKET --socket-group=GROUP --shared-dir=SHARE --rlimit-nofile 4096"
        " --thread-pool-size 2 --posix-acl --xattr --cache=auto --inode-file-handles=prefer"
    ),
    "cloud-hypervisor": VmManager(
        "--socket-path=SOCKET --shared-dir=SHARE --cache=never --thread-pool-size=2"
    ),
    "virtiofsd 1.14": VmManager(
        "--socket-path=SOCKET --shared-dir=SHARE --security-label=auto --posix-acl=auto"
    ),
    "virtiofsd, deprecated": VmManager("--socket SOCKET --shared-dir SHARE"),
}
#: These need root on the host, or ids of others.
ROOT = {"libvirt, older daemon", "libvirt, session"}


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.root if name in ROOT else ()) for name in MANAGERS]
)
def manager(request: pytest.FixtureRequest) -> VmManager:
    return MANAGERS[request.param]


@pytest.fixture
def started(manager: VmManager, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the daemon, with a log that nobody reads."""
    # A mapped user must be able to reach the share.
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == os.environ.get("USER") and path.name.startswith("pytest"):
            path.chmod(0o755)
    share = tmp_path / "share"
    share.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    words = manager.words.replace("SHARE", str(share)).replace("SOCKET", str(tmp_path / "socket"))
    words = words.replace("GROUP", (tmp_path / "share").group())
    passed: tuple[int, ...] = ()
    if "FD" in words:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        passed = (listener.fileno(),)
        words = words.replace("FD", str(listener.fileno()))
    close = " ".join(f"{number}>&-" for number in manager.closed)
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {close}', "sh", *COMMAND, *words.split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=passed,
        cwd=share if manager.in_share else "/",
        env={**os.environ, **manager.environment},
    )
    listener.close()
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=TIMEOUT)


def test_daemon_serves_and_ends_as_the_manager_expects(
    manager: VmManager, started: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    wait_until(lambda: path.exists() or started.poll() is not None, "the socket")
    assert started.poll() is None, started.stdout and started.stdout.read()
    if "SOCKET" in manager.words:
        pid_file = tmp_path / "socket.pid"
        wait_until(pid_file.exists, "the pid file")
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(TIMEOUT)
        front_end.connect(str(path))
        front_end.sendall(GET_FEATURES)
        assert len(front_end.recv(REPLY_SIZE)) == REPLY_SIZE
        if "SOCKET" in manager.words:
            assert pid_file.read_text() == f"{started.pid}\n"
        if manager.end is not None:
            started.send_signal(manager.end)
            status = started.wait(TIMEOUT)
            assert status == (0 if manager.end is signal.SIGTERM else -manager.end)
    assert started.wait(TIMEOUT) in (0, -signal.SIGKILL)
    if "SOCKET" in manager.words:
        wait_until(lambda: not path.exists(), "the end of the socket")
