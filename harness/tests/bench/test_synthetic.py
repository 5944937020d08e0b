# SPDX-License-Identifier: Apache-2.0
"""The benchmark without a guest measures, and notices wrong replies; no figures are tested."""

import dataclasses
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.bench import bench_report, daemons, synthetic, vhost_frontend
from farwatch_harness.bench import fuse_requests as requests
from farwatch_harness.bench.synthetic import Contestant
from farwatch_harness.bench.vhost_frontend import PreparedRequest, SyntheticFrontEnd
from farwatch_harness.util.errors import HarnessError
from farwatchd.wire.fuse import Opcode, attr_out

SERVERS = daemons.farwatchd()


@pytest.fixture
def contestant(tmp_path: Path) -> Iterator[Contestant]:
    with synthetic.contestant(SERVERS[0], tmp_path) as served:
        yield served


def test_every_operation_is_served_and_leaves_nothing_behind(
    contestant: Contestant, tmp_path: Path
) -> None:
    for work in requests.OPERATIONS:
        for depth in (1, 3):
            slots = [work.requests(contestant.targets, slot) for slot in range(depth)]
            with contestant.front_end.prepared(slots) as program:
                done = contestant.front_end.drive(program, 0.01)
            assert done.runs >= depth, work.title
            assert done.requests == done.runs * len(slots[0]), work.title
            assert done.wall_ns >= 10_000_000 and done.cpu_ns > 0
    (directory,) = tmp_path.iterdir()
    wanted = {"data", "list"} | {f"here-{slot}" for slot in range(vhost_frontend.MAX_DEPTH)}
    assert {entry.name for entry in directory.iterdir()} == wanted


def test_getattr_reply_has_the_attributes_of_the_file(
    contestant: Contestant, tmp_path: Path
) -> None:
    (directory,) = tmp_path.iterdir()
    inode = (directory / "data").stat()
    (getattr_request,) = requests.getattr_requests(contestant.targets, 0)
    reply = attr_out.unpack_from(contestant.front_end.ask(getattr_request))
    assert (reply.attr_ino, reply.attr_size) == (inode.st_ino, requests.LARGE)


def test_unexpected_error_ends_the_measurement(contestant: Contestant) -> None:
    (missing,) = requests.lookup_missing(contestant.targets, 0)
    with pytest.raises(
        HarnessError, match=f"LOOKUP: another error than expected: {os.strerror(errno.ENOENT)}"
    ):
        contestant.front_end.ask(dataclasses.replace(missing, error=0))
    with pytest.raises(HarnessError, match="GETATTR: another error than expected: "):
        contestant.front_end.ask(PreparedRequest(Opcode.GETATTR, 12345, bytes(16), 104))


def test_too_many_concurrent_requests_are_refused(contestant: Contestant) -> None:
    slots = [requests.getattr_requests(contestant.targets, 0)] * (vhost_frontend.MAX_DEPTH + 1)
    with pytest.raises(HarnessError, match="1 to 64"), contestant.front_end.prepared(slots):
        pytest.fail("prepared")


def test_daemon_that_disconnects_is_an_error() -> None:
    here, there = socket.socketpair()
    there.close()
    with pytest.raises(HarnessError, match="does not answer"):
        SyntheticFrontEnd(here, vhost_frontend.compiled())


def test_rounds_become_tables() -> None:
    served = synthetic.measure(SERVERS, rounds=2, seconds=0.002, depths=(2,))
    assert len(served) == len(requests.OPERATIONS)
    assert all(len(each.rate.rounds) == len(each.front_end_us) == 2 for each in served)
    rates = [each.rate for each in served]
    others = [
        dataclasses.replace(rate, server="other", cpu_us=(2 * rate.cpu_us[0],) * 2)
        for rate in rates
    ]
    assert bench_report.synthetic_rates_table(rates + others).row_count == len(rates)
    assert bench_report.per_core(dataclasses.replace(rates[0], cpu_us=(10.0, 20.0))) == [1e5, 5e4]
    assert bench_report.most_ratio([1.0, 3.0], [6.0, 2.0]) == 0.5
    assert "at most" in bench_report.front_end_line(served)


def test_another_farwatchd_is_measured_beside_this_one() -> None:
    program = Path(sys.executable).with_name("farwatchd")
    servers = [*SERVERS, daemons.another_farwatchd(program)]
    served = synthetic.measure(servers, rounds=1, seconds=0.002, depths=(1,))
    table = bench_report.synthetic_rates_table([each.rate for each in served])
    assert [column.header for column in table.columns][-1] == "ours / another"
    assert table.row_count == len(requests.OPERATIONS)
