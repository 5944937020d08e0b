# SPDX-License-Identifier: Apache-2.0
"""The reports to the service manager (sd_notify(3)), and the form of log lines for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from farwatchd.service_manager import ServiceManager
from farwatchd.wire import fuse as wire
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import COMMAND, TIMEOUT, DaemonProcess, running
from tests.support.sandboxes import SANDBOXES


class ManagerSocket:
    """A service manager: the socket of the environment's NOTIFY_SOCKET."""

    def __init__(self, path: Path, abstract: bool = False) -> None:
        self.name = f"@farwatch-test-{os.getpid()}" if abstract else str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + self.name[1:] if abstract else self.name)
        self._sock.settimeout(TIMEOUT)
        # Who sends: systemd ignores all but the process that it has started.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.senders: set[int] = set()

    def receive(self) -> list[str]:
        """Return the fields of the next message."""
        data, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(12))
        for _, _, credentials in ancillary:
            self.senders.add(int.from_bytes(credentials[:4], "little"))
        return data.decode().splitlines()

    def close(self) -> None:
        self._sock.close()


def start(
    manager: ManagerSocket, tmp_path: Path, *options: str, **environment: str
) -> DaemonProcess:
    (tmp_path / "shared").mkdir(exist_ok=True)
    where = [f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}/shared"]
    return DaemonProcess(
        tmp_path / "socket",
        [*where, *options],
        environment={"NOTIFY_SOCKET": manager.name, **environment},
    )


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_process_that_was_started_reports_start_vmm_and_end(
    sandbox: str, abstract: bool, tmp_path: Path
) -> None:
    manager = ManagerSocket(tmp_path / "notify", abstract)
    daemon = start(manager, tmp_path, f"--sandbox={sandbox}")
    try:
        first = manager.receive()
        assert first[0] == "READY=1"
        assert first[1].startswith("STATUS=waiting for a VMM on ")
        front_end = daemon.connect()
        assert manager.receive() == ["STATUS=serving a VMM"]
        front_end.close()
        assert manager.receive() == ["STOPPING=1", "STATUS=ending"]
        assert daemon.wait() == 0
        assert manager.senders == {daemon.process.pid}
    finally:
        daemon.process.kill()
        manager.close()


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_watchdog_is_fed_while_the_loop_turns(sandbox: str, tmp_path: Path) -> None:
    manager = ManagerSocket(tmp_path / "notify")
    daemon = start(manager, tmp_path, f"--sandbox={sandbox}", WATCHDOG_USEC="200000")
    try:
        assert manager.receive()[0] == "READY=1"
        began = time.monotonic()
        for _ in range(3):
            assert manager.receive() == ["WATCHDOG=1"]
        assert 0.15 < time.monotonic() - began < TIMEOUT
        assert daemon.end() == 0
    finally:
        daemon.process.kill()
        manager.close()


def test_watchdog_of_another_process_is_left_alone() -> None:
    environment = {"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    assert ServiceManager.from_environment(environment).watchdog is None
    assert environment == {}


def test_missing_manager_is_one_warning(tmp_path: Path) -> None:
    manager = ManagerSocket(tmp_path / "notify")
    manager.name = str(tmp_path / "gone")
    daemon = start(manager, tmp_path)
    daemon.wait_for("listening on")
    assert daemon.end() == 0
    assert daemon.log.count("cannot report to the service manager") == 1
    manager.close()


def journal(tmp_path: Path, *options: str) -> list[str]:
    """Return the lines of a daemon whose standard error output is the journal's."""
    reader, writer = os.pipe()
    stream = os.fstat(writer)
    (tmp_path / "shared").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [
            *COMMAND,
            f"--socket-path={tmp_path}/socket",
            f"--shared-dir={tmp_path}/shared",
            *options,
        ],
        stderr=writer,
        env={**os.environ, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"},
    )
    os.close(writer)
    log = b""
    while b"listening on" not in log:
        part = os.read(reader, 1 << 16)
        assert part, log
        log += part
    daemon.send_signal(signal.SIGTERM)
    while part := os.read(reader, 1 << 16):
        log += part
    os.close(reader)
    assert daemon.wait(TIMEOUT) == 0
    return log.decode().splitlines()


def test_journal_gets_priorities_and_not_its_own_time_twice(tmp_path: Path) -> None:
    lines = journal(tmp_path, "--log-level=debug")
    assert {line[:3] for line in lines} == {"<6>", "<7>"}
    assert not any("INFO" in line or "DEBUG" in line for line in lines)
    assert any(line.startswith("<6>farwatchd.daemon: ") for line in lines)


@pytest.mark.parametrize("options", [(), ("--tag=data",)])
def test_each_line_names_tag_and_share(options: tuple[str, ...], tmp_path: Path) -> None:
    share = f"{tmp_path}/shared"
    lines = journal(tmp_path, *options)
    expected = f"[data {share}] " if options else f"[{share}] "
    assert lines and all(expected in line for line in lines)


def test_name_of_the_share_cannot_forge_log_lines(tmp_path: Path) -> None:
    (tmp_path / "a\n%s<0>b").mkdir()
    lines = journal(tmp_path, f"--shared-dir={tmp_path}/a\n%s<0>b")
    assert lines and all(line.startswith("<6>") and "a\\n%s<0>b] " in line for line in lines)


def test_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with running(tmp_path / "socket", tmp_path / "shared", "--log-level=debug") as daemon:
        guest = MountedGuest(daemon)
        # Each is a line in the log; together more than a pipe holds.
        for _ in range(2000):
            assert guest.fails(Opcode.LOOKUP, ROOT, b"..\0", wire.entry_out.size)
        daemon.wait_for("LOOKUP of node 1")
        guest.fails(Opcode.LOOKUP, ROOT, b"..\0", wire.entry_out.size)
        daemon.wait_for("messages were left out: the log was not read")
        guest.leave()
