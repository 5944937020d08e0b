# SPDX-License-Identifier: Apache-2.0
"""States of a migration whose records contradict each other: a session of them, or none."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from farwatchd.migration.options import MigrationMode
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode
from farwatchd.wire.state import NONE, StateError
from tests.support.daemon_guest import lock_request
from tests.support.fuse_client import ROOT, Client
from tests.support.fuzzing import inputs, number
from tests.support.migration_side import MigrationSide

STATES = 600


def saved_records(side: MigrationSide) -> list[Any]:
    """Return the records of a session that has one of each kind."""
    client = Client(side.session)
    client.init()
    directory = client.lookup(ROOT, b"dir").nodeid
    file = client.lookup(directory, b"file").nodeid
    client.lookup(ROOT, b"link")
    opened = fuse.open_in.pack(flags=os.O_RDWR)
    fhs = [
        fuse.open_out.unpack_from(client.call(Opcode.OPEN, file, opened, fuse.open_out.size)).fh
        for _ in range(2)
    ]
    client.call(Opcode.SETLK, file, lock_request(fhs[0], 1), 0)
    flock = fuse.lk_in.pack(fh=fhs[1], owner=2, lk_type=fcntl.F_WRLCK, lk_flags=1)
    client.call(Opcode.SETLK, file, flock, 0)
    return side.records()


def changed(random: Random, records: list[Any]) -> list[Any]:
    """Return the records with some of them changed, left out, repeated or moved."""
    result = list(records)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(result))
        record = result[at]
        match random.randrange(6):
            case 0:
                del result[at]
            case 1:
                result.insert(random.randrange(len(result) + 1), record)
            case 2:
                result.insert(random.randrange(len(result)), result.pop(at))
            case _:
                name = random.choice(record._fields)
                value = getattr(record, name)
                if isinstance(value, bytes):
                    new: Any = random.choice(
                        (b"", b"..", b"\0", b"a/../..", value + b"x", value[1:])
                    )
                else:
                    new = random.choice((0, 1, 2, (value + 1) & NONE, number(random, 8)))
                result[at] = record._replace(**{name: new})
        if not result:
            return list(records)
    return result


@pytest.mark.root
@pytest.mark.parametrize("mode", list(MigrationMode))
def test_any_state_is_loaded_or_refused(tmp_path: Path, mode: MigrationMode) -> None:
    share = tmp_path / "share"
    (share / "dir").mkdir(parents=True)
    (share / "dir" / "file").write_text("content")
    (share / "link").symlink_to("dir/file")
    (tmp_path / "outside").write_text("outside")
    source, side = MigrationSide(share, mode), MigrationSide(share, mode)
    records = saved_records(source)
    side.load(records)
    before = side.idle_descriptors()
    loaded = refused = 0
    for _, random in inputs(STATES):
        try:
            side.load(changed(random, records))
            loaded += 1
        except StateError as error:
            refused += 1
            assert "\n" not in str(error)
        Client(side.session).init()
        assert Client(side.session).lookup(ROOT, b"dir").nodeid
    assert loaded and refused
    assert side.idle_descriptors() <= before
    assert (tmp_path / "outside").read_text() == "outside"
    for each in (side, source):
        each.close()
