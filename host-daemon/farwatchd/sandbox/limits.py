# SPDX-License-Identifier: Apache-2.0
"""Resource limits of the daemon's own process."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

_log = logging.getLogger(__name__)

#: The default limit of open files: without file handles each inode that the guest knows takes one.
DEFAULT_NOFILE = 1_000_000


def raise_nofile(wanted: int | None) -> int:
    """Raise the limit of open files to ``wanted``, and return the limit.

    None: as many as the system allows, at most 1 000 000. 0: the limit stays unchanged.
    ``ValueError``, with a text for the user: ``wanted`` is not allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == 0:
        return soft
    target = DEFAULT_NOFILE if wanted is None else wanted
    for limits in ((target, max(target, hard)), (min(target, hard), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):
            continue
        if wanted is not None and limits[0] < wanted:
            raise ValueError(
                f"--rlimit-nofile {wanted}: only {hard} open files are allowed here; ask for less"
            )
        return limits[0]
    _log.warning("the limit of open files stays at %d", soft)
    return soft


CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """Return how many CPUs the process may use, by its affinity and the quotas of its cgroups.

    The quota of a container can be less than one CPU. Only version 2 of cgroups is asked.
    """
    cpus = float(len(os.sched_getaffinity(0)))
    for group in _own_cgroups(cgroups, own):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                cpus = min(cpus, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return cpus


def usable_memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the bytes of memory that the process may use: the machine's, or its cgroups' limit."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _own_cgroups(cgroups, own):
        try:
            memory = min(memory, int((group / "memory.max").read_text()))
        except (OSError, ValueError):
            continue
    return memory


def _own_cgroups(cgroups: Path, own: Path) -> list[Path]:
    """Return the directories of the process's cgroup and of those above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if path is None:
        return []
    group = Path(path.lstrip("/"))
    return [cgroups / each for each in (group, *group.parents)]
