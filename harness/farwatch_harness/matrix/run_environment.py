# SPDX-License-Identifier: Apache-2.0
"""Describes the environment of a run by name, for people who read its results elsewhere."""

import os
import platform
import subprocess
from pathlib import Path

from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.vm.environment import Environment


def guest_environment(environment: Environment) -> dict[str, str]:
    """Return what guests run on."""
    return {
        "accelerator": environment.accelerator.value,
        "qemu": f"{environment.qemu.version}, {environment.qemu.origin}",
    }


def host_environment(source: KernelSource) -> dict[str, str]:
    """Return what is known before the first guest boots."""
    return {
        "kernel": source.identity,
        "farwatch": checkout(),
        "host": cpus_and_memory(),
        "system": system(),
        "compiler": subprocesses.run(["gcc", "--version"]).splitlines()[0],
        "sparse": subprocesses.run(["sparse", "--version"]).strip(),
        "python": platform.python_version(),
    }


def checkout() -> str:
    """Return the commit that is checked out, with ", changed" when files differ from it."""
    words = ["git", "describe", "--always", "--dirty=, changed", "--abbrev=12"]
    done = subprocess.run(words, cwd=paths.CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a git checkout"


def cpus_and_memory() -> str:
    """Return the host's CPUs and memory in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB"


def system() -> str:
    """Return the distribution and its kernel."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, Linux {platform.release()}"
