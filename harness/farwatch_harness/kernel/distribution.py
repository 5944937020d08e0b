# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel, unmodified: its packages, unpacked into the cache and not installed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import versions
from farwatch_harness.util import apt, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

ARCHITECTURE = "amd64"


@dataclass(frozen=True)
class DistributionKernel:
    """An unpacked kernel of the distribution.

    release: what uname -r says of it.
    image: its image, in a tree that also has its modules.
    headers: the directory that modules are built with.
    """

    release: str
    image: Path
    headers: Path

    @property
    def title(self) -> str:
        """A title for people."""
        return f"Debian's own {self.release}"


def find_kernel() -> DistributionKernel:
    """Return Debian's kernel of the same version as the kernel source; fetch it if necessary.

    HarnessError: apt does not know it.
    """
    # Boots with 9p and overlayfs as modules, which the cloud flavour does not have.
    apt.install(apt.DISTRIBUTION_KERNEL, paths.LOGS / "apt-distribution-kernel.log")
    folder = paths.cache_root() / "distribution-kernels"
    version, release = package_of(versions.current().package)
    tree = cache.published(
        folder / f"{release}_{version}".replace(":", "."),
        lambda target: unpack(release, version, target),
    )
    headers = tree / "usr" / "src" / f"linux-headers-{release}"
    # The package's own Makefile names a place in which it is not installed.
    common = next((tree / "usr" / "src").glob("linux-headers-*-common")) / "Makefile"
    makefile = f"include {common}\n"
    if (headers / "Makefile").read_text() != makefile:
        cache.write_atomically(headers / "Makefile", makefile.encode())
    return DistributionKernel(release, tree / "boot" / f"vmlinuz-{release}", headers)


def package_of(source: str) -> tuple[str, str]:
    """Return version and release of the newest kernel that apt has of the package `source`'s line.

    HarnessError: apt knows none.
    """
    line = source.rpartition("-")[2]
    ends = f"-{ARCHITECTURE}"
    names = subprocesses.run(["apt-cache", "pkgnames", f"linux-headers-{line}."]).split()
    releases = [
        release
        for name in names
        if (release := name.removeprefix("linux-headers-")).endswith(ends)
        and not any(flavour in release for flavour in ("-cloud-", "-rt-"))
    ]
    known = [
        (version, release)
        for release in releases
        if (version := apt.candidate_version(f"linux-image-{release}")) is not None
    ]
    if not known:
        raise HarnessError(
            f"apt knows no kernel {line} for {ARCHITECTURE} (Debian 12 has it in its security"
            " archive): add that archive to apt's sources, and run apt-get update"
        )
    newest = known[0]
    for candidate in known[1:]:
        argv = ["dpkg", "--compare-versions", candidate[0], "gt", newest[0]]
        if subprocess.run(argv, check=False).returncode == 0:
            newest = candidate
    return newest


def unpack(release: str, version: str, target: Path) -> None:
    """Fetch image, headers and build tools of a kernel, and unpack them into `target`."""
    base = release.removesuffix(f"-{ARCHITECTURE}")
    packages = [
        f"linux-image-{release}",
        f"linux-headers-{release}",
        f"linux-headers-{base}-common",
        f"linux-kbuild-{base}",
    ]
    log = paths.LOGS / "distribution-kernel.log"
    with progress.step(f"fetching Debian's kernel {release}, about 125 MB") as step:
        apt.unpack([f"{package}={version}" for package in packages], target, log, step)
        if not (target / "lib").exists():
            (target / "lib").symlink_to("usr/lib")
        subprocesses.run(["depmod", "--basedir", target, release])
