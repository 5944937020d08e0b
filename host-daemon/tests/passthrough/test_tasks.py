# SPDX-License-Identifier: Apache-2.0
"""A task owns its descriptors until it has run or is dropped."""

from __future__ import annotations

import errno
import gc
import os
import resource
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


def test_task_that_cannot_be_made_leaves_no_descriptor(fd: int) -> None:
    gc.collect()
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free number is the only one left.
    free = os.dup(fd)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files in system") as raised:
            on_files(lambda *held: held, fd, fd)
        # The exception is still there, and with it the frames that it came through.
        assert os.dup(fd) == free
        os.close(free)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.ENFILE
    assert open_descriptors() == before
