# SPDX-License-Identifier: Apache-2.0
"""The CPUs and the memory that a container leaves to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from farwatchd import options
from farwatchd.options import parse
from farwatchd.sandbox.limits import usable_cpus, usable_memory

NEEDED = ("--socket-path=/run/s", "--shared-dir=/srv")


@pytest.fixture
def cgroups(tmp_path: Path) -> tuple[Path, Path]:
    """Return a tree of cgroups, and the file that names that of the process."""
    (tmp_path / "fs" / "pod" / "container").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/pod/container\n")
    return tmp_path / "fs", own


def test_quota_of_any_cgroup_above_limits_the_cpus(cgroups: tuple[Path, Path]) -> None:
    root, own = cgroups
    every = len(os.sched_getaffinity(0))
    assert usable_cpus(root, own) == every
    (root / "pod" / "container" / "cpu.max").write_text("max 100000\n")
    assert usable_cpus(root, own) == every
    (root / "pod" / "cpu.max").write_text("50000 100000\n")
    assert usable_cpus(root, own) == 0.5
    assert usable_cpus(root, root / "none") == every


def test_limit_of_any_cgroup_above_limits_the_memory(cgroups: tuple[Path, Path]) -> None:
    root, own = cgroups
    everything = usable_memory(root, own)
    assert everything > 1 << 20
    (root / "pod" / "container" / "memory.max").write_text("max\n")
    assert usable_memory(root, own) == everything
    (root / "pod" / "memory.max").write_text("1048576\n")
    assert usable_memory(root, own) == 1 << 20


@pytest.mark.parametrize(
    ("memory", "expected"), [(1 << 20, 65536), (1 << 30, 419430), (1 << 40, 10_000_000)]
)
def test_inodes_are_limited_by_the_memory(
    memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "usable_memory", lambda: memory)
    assert parse(NEEDED).share.max_inodes == expected


def test_memory_option_limits_what_the_guest_can_make_the_daemon_remember() -> None:
    config = parse([*NEEDED, "--max-memory=64M"])
    used = (
        config.share.max_inodes * options.INODE_BYTES
        + config.watch.max_watches * options.WATCH_BYTES
        + config.watch.event_queue * options.EVENT_BYTES
    )
    assert 60 << 20 < used <= 64 << 20
    # What is given by itself holds.
    config = parse([*NEEDED, "--max-memory=64M", "--max-inodes=7", "--max-watches=8"])
    assert (config.share.max_inodes, config.watch.max_watches) == (7, 8)
    # A large limit raises none of the others.
    config = parse([*NEEDED, "--max-memory=1T"])
    assert (config.watch.max_watches, config.watch.event_queue) == (1_000_000, 16384)


@pytest.mark.parametrize("text", ["", "64MiB", "-1", "1048575", "M"])
def test_memory_that_is_no_size_or_too_little_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*NEEDED, f"--max-memory={text}"])
    assert "--max-memory" in capsys.readouterr().err
