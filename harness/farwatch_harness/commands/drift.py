# SPDX-License-Identifier: Apache-2.0
"""Finds the patches that do not fit the newest point release of a kernel version."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import series, source_tree, versions
from farwatch_harness.util import apt, paths, progress
from farwatch_harness.util.errors import HarnessError


@dataclass(frozen=True)
class Drift:
    """How the series of a kernel version fits a release.

    release: the package's name and version.
    count: how many patches the series has.
    misfits: by the title of each patch that does not apply, the reason.
    """

    release: str
    count: int
    misfits: dict[str, str]

    def lines(self) -> list[str]:
        """Return what people read."""
        if not self.misfits:
            return [f"{self.release}: all {self.count} patches apply"]
        head = f"{self.release}: {len(self.misfits)} of {self.count} patches need work"
        return [head, *(f"  {title}: {reason}" for title, reason in self.misfits.items())]


def check_version(kernel: versions.KernelVersion) -> Drift:
    """Try the series of a kernel version on the newest release that apt knows.

    HarnessError: there is no such release, or it cannot be fetched.
    """
    package = source_tree.fetch_newest(kernel)
    patches = series.read_series(kernel.folder)
    with tempfile.TemporaryDirectory(prefix="farwatch-drift-") as name:
        tree = Path(name)
        with progress.step(f"unpacking what the series touches of {package.name}"):
            source_tree.unpack_files(
                source_tree.tarball_in(package), series.touched_files(patches), tree
            )
        misfits = {}
        for patch in patches:
            # What fits of a patch that does not apply stays, so that later ones may apply.
            try:
                series.apply_one(tree, patch)
            except HarnessError as error:
                misfits[patch.title] = str(error)
    return Drift(package.name, len(patches), misfits)


def check() -> bool:
    """Try each series on its newest release and print the result; return whether all apply."""
    if any(not kernel.suite for kernel in versions.VERSIONS):
        with progress.step("fetching apt's package lists") as step:
            apt.run_apt(["update"], paths.LOGS / "apt-update.log", step)
    found = [check_version(kernel) for kernel in versions.VERSIONS]
    for drift in found:
        print(*drift.lines(), sep="\n", flush=True)
    return not any(drift.misfits for drift in found)
