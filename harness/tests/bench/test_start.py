# SPDX-License-Identifier: Apache-2.0
"""The measurement of the daemon's start; no figures are tested."""

from pathlib import Path

import pytest
from farwatch_harness.bench import daemons, start
from farwatch_harness.util.errors import HarnessError


@pytest.mark.root
def test_each_start_of_the_daemon_is_measured() -> None:
    (cost,) = start.measure(daemons.farwatchd(), 2)
    assert cost.server == "farwatchd"
    assert len(cost.socket_ms) == len(cost.ready_ms) == 2
    for socket, ready in zip(cost.socket_ms, cost.ready_ms, strict=True):
        assert 0 < socket < ready
    for socket, ready in zip(cost.socket_cpu_ms, cost.ready_cpu_ms, strict=True):
        assert 0 < socket <= ready
    assert list(cost.resident) == sorted(cost.resident, reverse=True)
    assert 1_000_000 < cost.own <= sum(cost.resident)


def test_daemon_that_makes_no_socket_is_an_error() -> None:
    server = daemons.another_farwatchd(Path("/bin/false"))
    with pytest.raises(HarnessError, match="made no socket"):
        start.start_once(server, start.StartCost(server.name))
