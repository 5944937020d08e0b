# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel, unmodified: its packages, unpacked into the cache and not installed."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import versions
from farwatch_harness.util import apt, archive, cache, paths, progress, subprocesses
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
    """Return Debian's kernel of the current version; fetch it if necessary.

    HarnessError: apt does not know it.
    """
    kernel = versions.current()
    # Boots with 9p and overlayfs as modules, which the cloud flavour does not have.
    apt.install(apt.DISTRIBUTION_KERNEL, paths.LOGS / "apt-distribution-kernel.log")
    folder = paths.cache_root() / "distribution-kernels"
    environment = archive.lists_of(kernel.suite) if kernel.suite else None
    version, release = package_of(kernel.name, environment)
    tree = cache.published(
        folder / f"{release}_{version}".replace(":", "."),
        lambda target: unpack(release, version, target, environment),
    )
    headers = tree / "usr" / "src" / f"linux-headers-{release}"
    # The package's own Makefile names a place in which it is not installed.
    common = next((tree / "usr" / "src").glob("linux-headers-*-common")) / "Makefile"
    makefile = f"include {common}\n"
    if (headers / "Makefile").read_text() != makefile:
        cache.write_atomically(headers / "Makefile", makefile.encode())
    return DistributionKernel(release, tree / "boot" / f"vmlinuz-{release}", headers)


def package_of(line: str, environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return version and release of the newest kernel that apt has of a line such as "6.12".

    environment: of apt; None is the machine's own apt. HarnessError: apt knows none.
    """
    ends = f"-{ARCHITECTURE}"
    argv = ["apt-cache", "pkgnames", f"linux-headers-{line}."]
    names = subprocesses.run(argv, env=environment).split()
    releases = [
        release
        for name in names
        if (release := name.removeprefix("linux-headers-")).endswith(ends)
        and not any(flavour in release for flavour in ("-cloud-", "-rt-"))
    ]
    known = [
        (version, release)
        for release in releases
        if (version := apt.candidate_version(f"linux-image-{release}", environment)) is not None
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


def parts_of_headers(
    release: str, version: str, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Return the packages that the headers of a kernel depend on: common headers, build tools.

    environment: as for package_of().
    """
    argv = ["apt-cache", "show", f"linux-headers-{release}={version}"]
    described = subprocesses.run(argv, env=environment)
    (depends,) = re.findall(r"^Depends: (.*)$", described, re.MULTILINE)
    # The build tools have the name of the release, or of the line as in Debian 12.
    return re.findall(r"linux-headers-\S+-common|linux-kbuild-[^\s,]+", depends)


def unpack(
    release: str, version: str, target: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Fetch image, headers and build tools of a kernel, and unpack them into `target`.

    environment: as for package_of().
    """
    packages = [
        f"linux-image-{release}",
        f"linux-headers-{release}",
        *parts_of_headers(release, version, environment),
    ]
    log = paths.LOGS / "distribution-kernel.log"
    with progress.step(f"fetching Debian's kernel {release}, about 125 MB") as step:
        apt.unpack([f"{package}={version}" for package in packages], target, log, step, environment)
        if not (target / "lib").exists():
            (target / "lib").symlink_to("usr/lib")
        subprocesses.run(["depmod", "--basedir", target, release])
