# SPDX-License-Identifier: Apache-2.0
"""Starting and minding a daemon, with small programs in its place."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.virtiofs_daemon import Daemon

LISTENS = """
import signal, sys, threading
print("INFO farwatchd: listening on /s", file=sys.stderr, flush=True)
print("WARNING farwatchd: odd", file=sys.stderr, flush=True)
print("Traceback (most recent call last):\\n  at x\\nValueError: y", file=sys.stderr, flush=True)
print("END", file=sys.stderr, flush=True)
signal.pause()
"""


def program(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_daemon_is_ready_when_it_listens_and_its_log_is_read(tmp_path: Path) -> None:
    daemon = Daemon.start(program(LISTENS), tmp_path / "log")
    try:
        daemon.wait_for_line("END", 10)
        assert daemon.running
        assert daemon.warnings() == ["WARNING farwatchd: odd"]
        (traceback,) = daemon.tracebacks()
        assert "ValueError: y" in traceback
        assert daemon.tracebacks(daemon.log_length) == []
        assert daemon.resident_bytes() > 0
    finally:
        daemon.stop()
    assert not daemon.running
    assert "listening on" in (tmp_path / "log").read_text()


def test_daemon_that_ends_immediately_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="the daemon ended: no such directory"):
        Daemon.start(program("import sys; sys.exit('no such directory')"), tmp_path / "log")


def test_missing_daemon_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="cannot be started"):
        Daemon.start([str(tmp_path / "nothing")], tmp_path / "log")


def test_daemon_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farwatch_harness.vm.virtiofs_daemon.STOP_LIMIT", 0.2)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + LISTENS
    daemon = Daemon.start(program(code), tmp_path / "log")
    assert daemon.stop() == -9


SCRIPT = """
import signal, sys
from pathlib import Path
from farwatch_harness.vm.virtiofs_daemon import Daemon
daemon = Daemon.start([sys.executable, "-I", "-S", "-c", sys.argv[1]], Path(sys.argv[2]))
daemon.wait_for_line("END", 10)
print(daemon.process.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_ends_with_a_script_that_is_killed(tmp_path: Path, signum: int) -> None:
    words = [sys.executable, "-c", SCRIPT, LISTENS, str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        daemon = os.pidfd_open(int(script.stdout.readline()))
        try:
            script.send_signal(signum)
            assert script.wait(10) == -signum
            ended, _, _ = select.select([daemon], [], [], 10)
            assert ended, "the daemon still ran 10 s after its script was killed"
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
            os.close(daemon)
