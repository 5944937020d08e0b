# SPDX-License-Identifier: Apache-2.0
"""What one version of the daemon writes and another one may find has a version of its own.

A change of what is written changes the version, or another daemon would misread it.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from farwatchd.state_dir import in_flight
from farwatchd.wire import journal, migrated_state, state
from farwatchd.wire.state_codec import encode


def examples(records: Sequence[Any]) -> list[Any]:
    """Return one of each record, whose values differ."""
    found = []
    for start, record in enumerate(records, 1):
        hints = get_type_hints(record)
        values = (
            b"text %d" % number if hints[name] is bytes else number
            for number, name in enumerate(record._fields, 100 * start)
        )
        found.append(record(*values))
    return found


def handed_over() -> bytes:
    hints, names = get_type_hints(state.State), [each.name for each in fields(state.State)]
    made = examples([hints[name].__args__[0] for name in names])
    return encode(state.State(**{name: [record] for name, record in zip(names, made, strict=True)}))


def journaled() -> bytes:
    head = journal.header.pack(
        magic=journal.MAGIC, version=journal.VERSION, boot=b"boot", generation=3, end=4
    )
    return head + journal.encode(7, examples(journal.RECORDS))


def migrated() -> bytes:
    return migrated_state.encode_migration(examples(journal.RECORDS))


def in_flight_table() -> bytes:
    with tempfile.TemporaryFile() as file:
        table = in_flight.InFlight(os.dup(file.fileno()))
        table.add(1, 2, 3)
        table.add(4, 5, 6)
        table.completing(1, 2, 7)
        table.has_run(70)
        table.within_message = True
        table.intend(8, b"first", b"second", 9)
        data = bytearray(table.view)
        os.close(table.fd)
    # The time.
    data[256:264] = bytes(8)
    return bytes(data)


#: The versions now, and the checksums of examples that each version has.
VERSIONS: dict[Callable[[], bytes], tuple[int, dict[int, int]]] = {
    handed_over: (state.VERSION, {4: 0xA3B8C8AD}),
    journaled: (journal.VERSION, {1: 0x9FEC7FC6}),
    migrated: (migrated_state.VERSION, {1: 0x2DE473BA}),
    in_flight_table: (in_flight.VERSION, {1: 0x457C7490}),
}


@pytest.mark.parametrize("written", VERSIONS)
def test_change_of_a_format_changes_its_version(written: Callable[[], bytes]) -> None:
    version, checksums = VERSIONS[written]
    found = zlib.crc32(written())
    assert checksums.get(version) == found, (
        f"version {version} is written in another way, {found:#x}: it needs another version"
    )
