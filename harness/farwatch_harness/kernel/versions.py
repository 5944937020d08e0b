# SPDX-License-Identifier: Apache-2.0
"""The kernel versions that have a series: their sources, and their exceptions of configuration.

FARWATCH_KERNEL names the version of this process; the command line's --kernel sets the variable.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

VARIABLE = "FARWATCH_KERNEL"
ASSIGNMENT = re.compile(
    r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)", re.MULTILINE
)


@dataclass(frozen=True)
class KernelVersion:
    """A kernel version that has a series.

    name: the first two numbers of the tree's version, as "6.12".
    package: the Debian package with the source.
    suite: the suite of Debian's archive that has the package; empty if the machine's apt lists it.
    upstream: whether `package` is a source package, of which the newest upstream tarball of this
        version is used, without Debian's changes.
    options: where the configuration differs from kernel.config and debug.config. None leaves an
        option to the kernel's own default.
    root_cache: the cache mode of 9p for the guest's root. readahead caches pages of the host's
        files, which halves the time to start a program.
    """

    name: str
    package: str
    suite: str = ""
    upstream: bool = False
    options: Mapping[str, str | None] = field(default_factory=dict)
    root_cache: str = "readahead"

    @property
    def folder(self) -> Path:
        """The directory of the series."""
        return paths.CHECKOUT / "patches" / f"linux-{self.name}"

    @property
    def module_folder(self) -> Path:
        """The directory of the module's series, which is on top of the series."""
        return paths.MODULE_PATCHES / f"linux-{self.name}"

    @property
    def has_module(self) -> bool:
        """Whether there is a module for this version."""
        return (self.module_folder / "series").is_file()

    def configured(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return these options with the exceptions of this version."""
        merged = {**options, **self.options}
        return {name: value for name, value in merged.items() if value is not None}


#: The version that commands use unless another one is named.
DEFAULT = KernelVersion("6.12", "linux-source-6.12")
VERSIONS = (
    DEFAULT,
    # x86 has full and lazy preemption only, and sysctl is always in /proc.
    KernelVersion(
        "7.3",
        "linux-source-7.3",
        "trixie-backports",
        options={"CONFIG_PREEMPT_VOLUNTARY": None, "CONFIG_PROC_SYSCTL": None},
    ),
    # Debian has replaced its own package of this long-term version, and has the tarball still.
    KernelVersion("6.18", "linux", "trixie-backports", upstream=True),
    # Permission events of fanotify need the security framework. 9p has no cache mode readahead, and
    # with "loose" a guest would not see that the host's files change.
    KernelVersion("6.1", "linux-source-6.1", options={"CONFIG_SECURITY": "y"}, root_cache="none"),
)


def named(name: str) -> KernelVersion:
    """Return the version with this name. HarnessError: it has no series."""
    for version in VERSIONS:
        if version.name == name:
            return version
    raise HarnessError(f"there is no series for Linux {name}: choose {names()}")


def chosen() -> KernelVersion | None:
    """Return the version that FARWATCH_KERNEL names; None if it names none.

    HarnessError: that version has no series.
    """
    name = os.environ.get(VARIABLE)
    return named(name) if name else None


def current() -> KernelVersion:
    """Return the version of this process. HarnessError: FARWATCH_KERNEL names no version."""
    return chosen() or DEFAULT


def names() -> str:
    """Return the names of all versions, for people."""
    return ", ".join(version.name for version in VERSIONS)


def with_module() -> list[KernelVersion]:
    """Return the versions for which there is a module."""
    return [version for version in VERSIONS if version.has_module]


def for_headers(headers: Path) -> KernelVersion:
    """Return the version whose module is for the kernel with these headers.

    HarnessError: there is no such module, or `headers` are not those of a kernel.
    """
    try:
        release = (headers / "include" / "config" / "kernel.release").read_text().strip()
    except OSError:
        raise HarnessError(
            f"{headers} has no headers of a kernel; give a directory such as"
            " /usr/src/linux-headers-RELEASE"
        ) from None
    name = ".".join(release.split(".")[:2])
    known = with_module()
    for version in known:
        if version.name == name:
            return version
    raise HarnessError(
        f"{headers} is of Linux {release}, and there are modules for"
        f" {', '.join(version.name for version in known)}"
    )


def release_of(tree: Path) -> str:
    """Return the version of a kernel source tree, as "6.12.117" or "7.3.0-rc1".

    HarnessError: `tree` is not a kernel source tree.
    """
    try:
        text = (tree / "Makefile").read_text(errors="replace")
    except OSError:
        text = ""
    found: dict[str, str] = dict(ASSIGNMENT.findall(text))
    if not (found.get("VERSION") and found.get("PATCHLEVEL")):
        raise HarnessError(f"{tree} is not a kernel source tree; give one with KERNEL=DIR")
    numbers = (found["VERSION"], found["PATCHLEVEL"], found.get("SUBLEVEL") or "0")
    return ".".join(numbers) + found.get("EXTRAVERSION", "")


def for_tree(tree: Path) -> KernelVersion:
    """Return the version whose series is for this kernel source tree.

    FARWATCH_KERNEL chooses another one.
    HarnessError: there is no such series, or `tree` is not a kernel source tree.
    """
    release = release_of(tree)
    if version := chosen():
        return version
    name = ".".join(release.split(".")[:2])
    for version in VERSIONS:
        if version.name == name:
            return version
    raise HarnessError(
        f"{tree} is Linux {release}, and there are series for {names()}; to try one of these, set"
        f" {VARIABLE}={DEFAULT.name}"
    )
