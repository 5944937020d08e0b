# SPDX-License-Identifier: Apache-2.0
"""The daemon's numbers: for Prometheus on a socket, and in the log at SIGUSR1."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.fuse.metrics import BOUNDS_NS, SAMPLED, Durations, RequestMetrics
from farwatchd.status import DaemonStatus, Gauge
from farwatchd.wire import fuse as wire
from farwatchd.wire.fsnotify import Event
from farwatchd.wire.fuse import Opcode
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import TIMEOUT, DaemonProcess, running
from tests.support.sandboxes import SANDBOXES

#: A line of the text format, version 0.0.4.
LINE = re.compile(
    r'(?P<name>[a-z_]+)(?P<labels>\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? (?P<value>[-+.e\d]+)'
)


@pytest.fixture(params=SANDBOXES)
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DaemonProcess]:
    (tmp_path / "shared").mkdir()
    with running(
        tmp_path / "socket",
        tmp_path / "shared",
        f"--sandbox={request.param}",
        f"--metrics-socket={tmp_path}/metrics",
        "--tag=data",
    ) as process:
        yield process


def ask(path: Path, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") -> str:
    """Return the body that the metrics' socket answers with."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(path))
        client.sendall(request)
        while part := client.recv(1 << 16):
            answer += part
    header, _, body = answer.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: %d" % len(body) in header
    return body.decode()


def metrics(text: str) -> dict[str, float]:
    """Return the values by name and labels, from text whose every line is right."""
    found = {}
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP farwatchd_\w+ .+|TYPE farwatchd_\w+ \w+)", line), line
            continue
        match = LINE.fullmatch(line)
        assert match, line
        found[match["name"] + (match["labels"] or "")] = float(match["value"])
    return found


def test_metrics_count_what_a_guest_does(daemon: DaemonProcess, tmp_path: Path) -> None:
    guest = MountedGuest(daemon)
    before = metrics(ask(tmp_path / "metrics"))
    (tmp_path / "shared" / "file").touch()
    guest.watch(ROOT, Event.CREATE)
    for _ in range(SAMPLED):
        nodeid = guest.lookup(ROOT, b"file").nodeid
    assert guest.fails(Opcode.LOOKUP, ROOT, b"..\0", wire.entry_out.size)
    opened = wire.open_out.unpack_from(
        guest.ask(Opcode.OPEN, nodeid, wire.open_in.pack(flags=os.O_RDONLY), wire.open_out.size)
    )
    (tmp_path / "shared" / "new").touch()
    assert [record.name for record in guest.events(1)] == [b"new"]
    after = metrics(ask(tmp_path / "metrics"))
    changed = {name: after[name] - before.get(name, 0) for name in after}
    assert changed['farwatchd_requests_total{opcode="LOOKUP"}'] == SAMPLED + 1
    assert changed['farwatchd_request_errors_total{opcode="LOOKUP"}'] == 1
    assert changed['farwatchd_requests_total{opcode="OPEN"}'] == 1
    assert changed['farwatchd_request_duration_seconds_count{opcode="LOOKUP"}'] == 1
    assert 0 < changed['farwatchd_request_duration_seconds_sum{opcode="LOOKUP"}'] < TIMEOUT
    assert after['farwatchd_request_duration_seconds_bucket{opcode="LOOKUP",le="+Inf"}'] == 1
    assert changed["farwatchd_inodes"] == changed["farwatchd_open_files"] == 1
    assert changed["farwatchd_watches"] == changed["farwatchd_events_queued_total"] == 1
    assert changed["farwatchd_events_dropped_total"] == 0
    assert after[f'farwatchd_info{{share="{tmp_path}/shared",tag="data"}}'] == 1
    guest.release(nodeid, opened.fh)
    assert metrics(ask(tmp_path / "metrics"))["farwatchd_open_files"] == 0
    guest.leave()


@pytest.mark.root
def test_metrics_count_the_daemons_descriptors(daemon: DaemonProcess, tmp_path: Path) -> None:
    counted = metrics(ask(tmp_path / "metrics"))["farwatchd_descriptors"]
    # The connection of the client that asked is one.
    assert counted == daemon.descriptors() + 1


def test_metrics_are_for_the_daemons_user_alone_and_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with running(tmp_path / "socket", tmp_path, f"--metrics-socket={path}") as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ask(path)
        assert daemon.end() == 0
        assert list(tmp_path.iterdir()) == []


def test_client_that_sends_nothing_or_leaves_does_not_stop_the_others(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = tmp_path / "metrics"
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as leaving:
        silent.connect(str(path))
        leaving.connect(str(path))
        leaving.close()
        assert metrics(ask(path))
        silent.settimeout(TIMEOUT)
        assert silent.recv(100).startswith(b"HTTP/1.0 200 OK")
    for _ in range(3):
        assert metrics(ask(path, b"x"))


def test_signal_logs_the_status_in_two_lines(daemon: DaemonProcess) -> None:
    guest = MountedGuest(daemon)
    assert guest.fails(Opcode.LOOKUP, ROOT, b"..\0", wire.entry_out.size)
    for _ in range(2):
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.wait_for("status: requests: LOOKUP 1 (1 errors), INIT 1")
        daemon.wait_for("status: inodes 1, open_files 0, locks 0")
    assert daemon.log.count("status: ") <= 4
    guest.leave()


def test_signal_before_the_start_is_over_does_not_end_the_daemon(tmp_path: Path) -> None:
    where = [f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}"]
    daemon = DaemonProcess(tmp_path / "socket", where)
    daemon.wait_for("Waiting for vhost-user socket connection")
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.wait_for("status: ")
    assert daemon.end() == 0


def test_label_values_are_escaped_and_histograms_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = RequestMetrics({})
    reads = requests.durations.setdefault(Opcode.READ, Durations())
    for ns in (1, 999, 1_000, 1_001, 10**12):
        reads.add(ns)
    status = DaemonStatus(
        'a"b\\c\nd', None, requests, Durations(), (Gauge("inodes", "x", lambda: 3),)
    )
    monkeypatch.chdir("/proc/self/fd")
    text = status.text()
    assert 'farwatchd_info{share="a\\"b\\\\c\\nd",tag=""} 1' in text.splitlines()
    family = 'farwatchd_request_duration_seconds_bucket{opcode="READ",le="'
    counts = [int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(family)]
    assert counts == [3, 4, *[4] * (len(BOUNDS_NS) - 2), 5]
