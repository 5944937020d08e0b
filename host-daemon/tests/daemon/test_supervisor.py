# SPDX-License-Identifier: Apache-2.0
"""The daemon in its PID namespace, and the process outside that stands for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon_guest import MountedGuest
from tests.support.daemon_process import DaemonProcess, running, status, wait_until


@pytest.mark.root
def test_daemon_is_the_first_process_of_its_namespace(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        assert status(daemon.pid)["NSpid"].split() == [str(daemon.pid), "1"]
        assert daemon.pid != daemon.process.pid
        # What it starts is in the namespace, too: nothing of the host can be named.
        own = Path(f"/proc/{daemon.pid}/ns/pid_for_children").stat().st_ino
        assert own == Path(f"/proc/{daemon.pid}/ns/pid").stat().st_ino


@pytest.mark.root
def test_supervisor_has_nothing_of_the_daemon(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        fds = Path(f"/proc/{daemon.process.pid}/fd")
        targets = {int(fd.name): str(fd.readlink()) for fd in fds.iterdir()}
        # Without the host's root above it.
        assert {targets.pop(number) for number in range(3)} <= {os.devnull, "/null"}
        assert sorted(target.partition(":")[0] for target in targets.values()) == [
            "pipe",
            "pipe",
            "pipe",
            "socket",
        ]
        kept = status(daemon.process.pid)
        assert kept["CapPrm"] == kept["CapEff"] == "0" * 16
        assert kept["NoNewPrivs"] == "1"


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """Have SIGHUP end the processes that are started: under nohup(1) they would ignore it."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_daemon_ends_with_its_supervisor(number: signal.Signals, tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        guest = MountedGuest(daemon)
        serving = daemon.pid
        daemon.process.send_signal(number)
        assert daemon.process.wait(10) == -number
        wait_until(lambda: not Path(f"/proc/{serving}").exists(), "the end of the daemon")
        wait_until(lambda: not (tmp_path / "socket").exists(), "the end of the socket")
        guest.front_end.close()


def test_supervisor_ends_as_the_daemon_does(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        assert not (tmp_path / "socket").exists()


def starting(directory: Path) -> DaemonProcess:
    """Return a daemon that has its socket, and loads the rest."""
    where = [f"--socket-path={directory}/socket", f"--shared-dir={directory}"]
    daemon = DaemonProcess(directory / "socket", where)
    daemon.wait_for("Waiting for vhost-user socket connection")
    return daemon


def test_signal_during_the_start_ends_the_daemon(tmp_path: Path) -> None:
    daemon = starting(tmp_path)
    daemon.process.terminate()
    # It may have begun to handle the signal.
    assert daemon.wait() in (0, -signal.SIGTERM)
    wait_until(lambda: not (tmp_path / "socket").exists(), "the end of the socket")


def test_signal_before_the_daemon_serves_is_held_until_it_ends_in_order(tmp_path: Path) -> None:
    daemon = starting(tmp_path)
    wait_until(lambda: daemon.pid != daemon.process.pid, "the daemon's own process")
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert not (tmp_path / "socket").exists()
