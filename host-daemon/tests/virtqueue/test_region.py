# SPDX-License-Identifier: Apache-2.0
"""Memory regions as they are mapped: for as long as they are used, and in no core dump."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.virtqueue import Region

SIZE = 1 << 16
NAME = "region of a guest"


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def mappings() -> list[set[str]]:
    """Return the flags (``VmFlags``, proc(5)) of each mapping of the region."""
    found: list[set[str]] = []
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            ours = NAME in line
        elif ours and first == "VmFlags:":
            found.append(set(rest))
    return found


def test_guest_memory_is_in_no_core_dump(fd: int) -> None:
    region = Region.map(fd, 0, 0x1000, SIZE, 0x7000_0000)
    (flags,) = mappings()
    assert "dd" in flags
    region.view[:3] = b"abc"
    assert os.pread(fd, 3, 0) == b"abc"


def test_mapping_ends_with_its_last_view(fd: int) -> None:
    region = Region.map(fd, 0, 0x1000, SIZE, 0x7000_0000)
    view = region.view[:10]
    del region
    assert len(mappings()) == 1
    del view
    assert mappings() == []


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, SIZE + 4096), (1 << 63, 4096)])
def test_region_that_cannot_be_mapped_says_so(fd: int, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"memory region of {size:#x} bytes"):
        Region.map(fd, offset, 0x1000, size, 0x7000_0000)
    assert mappings() == []
