# SPDX-License-Identifier: Apache-2.0
"""A task owns its descriptors until it has run or is dropped."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.passthrough.tasks import on_files
from tests.support.passthrough_share import open_descriptors


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_finished_task_closes_its_descriptors(fd: int) -> None:
    gc.collect()
    before = open_descriptors()
    task = on_files(lambda first, second: int(first != second), fd, fd)
    assert open_descriptors() == before + 2
    assert task() == 1
    assert open_descriptors() == before


def test_dropped_task_closes_its_descriptors(fd: int) -> None:
    gc.collect()
    before = open_descriptors()
    task = on_files(lambda held: held, fd)
    assert open_descriptors() == before + 1
    del task
    gc.collect()
    assert open_descriptors() == before
