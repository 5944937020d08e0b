# SPDX-License-Identifier: Apache-2.0
"""The socket that is there before the options are read."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from farwatchd import early_socket

TIMEOUT = 60
#: Says whether the socket is there when the rest of the command is loaded.
LOOKING = """
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "farwatchd.command":
            print(os.path.exists(sys.argv[1]))
sys.meta_path.insert(0, Finder())
from farwatchd.cli import main
sys.exit(main(["--socket-path", *sys.argv[1:]]))
"""


def in_thread(act: Callable[[], None]) -> None:
    """Call a function in a thread of its own, whose signal mask it may change."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    for problem in problems:
        raise problem


def test_socket_is_there_before_the_options_are_read_and_gone_after_an_error(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKING, str(tmp_path / "socket"), "--no-such-option"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True\n", 2), done.stderr
    assert "--no-such-option" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["--socket-path={}"], ["--socket-path", "{}"], ["--socket-path=/none", "--socket-path={}"]],
)
def test_socket_can_be_taken_once_and_only_its_owner_may_connect(
    words: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    def act() -> None:
        early = early_socket.make([word.format(path) for word in words])
        assert early is not None
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116
        assert early.take(f"{path}.other") is None
        descriptor = early.take(path)
        assert descriptor is not None
        assert early.take(path) is None
        early.discard()
        with socket.socket(fileno=descriptor), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    in_thread(act)


def test_relative_path_is_made_where_the_listener_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def act() -> None:
        early = early_socket.make(["--socket-path=socket"])
        assert early is not None
        descriptor = early.take(str(Path("socket").absolute()))
        assert descriptor is not None
        os.close(descriptor)
        early.discard()

    in_thread(act)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--fd=3"],
        ["--socket-path={}", "--version"],
        ["--socket-path={}", "--check=/srv"],
        ["--socket-path={}", "--check", "/srv"],
        ["--socket-path={}", "--replace"],
        ["--socket-path={}", "--socket-group=kvm"],
        ["--socket-path={}", "--daemonize"],
        ["--socket-path="],
        ["--socket-path"],
        ["--socket-path={}/no/such/directory"],
        ["--socket-path={}" + "x" * 108],
    ],
)
def test_what_needs_a_decision_is_left_to_the_listener(words: list[str], tmp_path: Path) -> None:
    def act() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert early_socket.make([word.format(tmp_path / "socket") for word in words]) is None
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

    in_thread(act)
    assert list(tmp_path.iterdir()) == []


def test_socket_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def act() -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            assert early_socket.make([f"--socket-path={path}"]) is None
            assert path.exists()

    in_thread(act)


def test_signals_wait_until_the_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    def act() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        early = early_socket.make([f"--socket-path={tmp_path}/socket"])
        assert early is not None
        held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert held >= {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
        early.discard()
        # SIGINT was blocked before; SIGUSR1 waits for the status.
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == (
            before | {signal.SIGINT, signal.SIGUSR1}
        )

    in_thread(act)
    assert list(tmp_path.iterdir()) == []
