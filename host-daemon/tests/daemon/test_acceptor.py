# SPDX-License-Identifier: Apache-2.0
"""Accepting connections, and the pause after a failure."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd import acceptor
from farwatchd.acceptor import Acceptor
from farwatchd.event_loop import Loop
from farwatchd.vhost_user.listen import listen

LIMIT = 5.0


class FailingAcceptor:
    """An acceptor that fails while ``failing``, a client that waits, and what was accepted."""

    def __init__(self, path: Path) -> None:
        self.failing = False
        self.tries = 0
        self.accepted: list[socket.socket] = []
        self.loop = Loop()
        self.listener = listen(path)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.client.connect(os.fspath(path))
        self.acceptor = Acceptor(
            self.loop, self.listener, self.accepted.append, "a tester", self.context
        )

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        self.tries += 1
        if self.failing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        yield

    def close(self) -> None:
        self.acceptor.stop()
        for sock in (self.listener, self.client, *self.accepted):
            sock.close()
        self.loop.close()


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingAcceptor]:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE", 0.01)
    with contextlib.closing(FailingAcceptor(tmp_path / "socket")) as made:
        yield made


def test_accept_that_fails_is_retried_and_logged_once(
    failing: FailingAcceptor, caplog: pytest.LogCaptureFixture
) -> None:
    failing.failing = True
    failing.acceptor.start()
    while failing.tries < 3:
        assert failing.loop.run_once(LIMIT)
    failing.failing = False
    while not failing.accepted:
        assert failing.loop.run_once(LIMIT)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    reason = os.strerror(errno.EMFILE)
    assert warnings == [f"a tester cannot be accepted, trying again every 0.01 s: {reason}"]


def test_stop_during_the_pause_lasts_until_start(failing: FailingAcceptor) -> None:
    failing.failing = True
    failing.acceptor.start()
    assert failing.loop.run_once(LIMIT)
    failing.failing = False
    failing.acceptor.stop()
    # The end of the pause is the only thing to wait for.
    assert failing.loop.run_once(LIMIT)
    assert not failing.loop.run_once(0)
    assert failing.tries == 1
    failing.acceptor.start()
    assert failing.loop.run_once(LIMIT)
    assert len(failing.accepted) == 1
