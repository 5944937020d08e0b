# SPDX-License-Identifier: Apache-2.0
"""The kernel source: Debian's package, unpacked once into the cache and only read there.

FARWATCH_KERNEL_SOURCE names another source: a tarball, or an unpacked tree.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import versions
from farwatch_harness.util import apt, archive, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: Where Debian's source packages have their tarball.
TARBALLS = Path("/usr/src")
OVERRIDE = "FARWATCH_KERNEL_SOURCE"


@dataclass(frozen=True)
class KernelSource:
    """A kernel source tree that is only read.

    identity: a name that no other source has.
    in_cache: whether the tree is in the cache, and not the user's.
    """

    identity: str
    path: Path
    in_cache: bool


def find_source(version: versions.KernelVersion | None = None) -> KernelSource:
    """Return the source of a kernel version; fetch and unpack it if necessary.

    version: None is the current one. HarnessError: there is none.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        return source_from(Path(named).expanduser().resolve())
    version = version or versions.current()
    tarball = TARBALLS / f"{version.package}.tar.xz"
    identity = package_identity(version.package, tarball)
    if identity is None:
        fetched = fetch_package(version)
        return unpacked(fetched.name, tarball_in(fetched))
    return unpacked(identity, tarball)


def source_from(path: Path) -> KernelSource:
    """Return a source that the user named.

    A tarball is unpacked into the cache; a directory is read in place.
    """
    if path.is_file():
        return unpacked(f"{path.name.split('.tar')[0]}-{cache.content_key(str(path.stat()))}", path)
    if not (path / "Kbuild").is_file():
        raise HarnessError(
            f"{OVERRIDE}={path} is neither a kernel tarball nor a kernel source tree"
        )
    listing = sorted(
        f"{item} {(status := item.stat(follow_symlinks=False)).st_size} {status.st_mtime_ns}"
        for item in path.rglob("*.[chSs]")
    )
    return KernelSource(f"{path.name}-{cache.content_key(*listing)}", path, in_cache=False)


def package_identity(package: str, tarball: Path) -> str | None:
    """Return name and version of the source package; None if it is not installed."""
    if not tarball.is_file() or not shutil.which("dpkg-query"):
        return None
    query = ["dpkg-query", "--show", "--showformat=${Version}", package]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    return f"{package}_{found}" if done.returncode == 0 and found else None


def fetch_package(kernel: versions.KernelVersion) -> Path:
    """Return a directory with a tarball of this version; download the newest if there is none.

    HarnessError: apt does not know the package.
    """
    folder = paths.cache_root() / "packages"
    pattern = f"{kernel.package}_{kernel.name}.*" if kernel.upstream else f"{kernel.package}_*"
    known = sorted(folder.glob(pattern), key=lambda path: apt.numbers_in(path.name))
    return known[-1] if known else fetch_newest(kernel)


def fetch_newest(kernel: versions.KernelVersion) -> Path:
    """Return a directory with the newest tarball of this version that apt knows.

    It is downloaded if it is not in the cache. HarnessError: apt does not know the package.
    """
    if not shutil.which("apt-get"):
        raise HarnessError(
            f"no {TARBALLS / kernel.package}.tar.xz here: set {OVERRIDE} to a {kernel.name} kernel"
            " tarball or source tree"
        )
    environment = archive.lists_of(kernel.suite) if kernel.suite else None
    log = paths.LOGS / f"kernel-source-{kernel.name}.log"
    version = available_version(kernel, environment)
    if version is None and environment is None:
        with progress.step("fetching apt's package lists") as step:
            apt.run_apt(["update"], log.with_name("apt-update.log"), step)
        version = available_version(kernel, environment)
    if version is None:
        where = (
            f"in Debian's {kernel.suite}"
            if kernel.suite
            else "(Debian 12 has it in its security archive: add that archive to apt's sources)"
        )
        raise HarnessError(
            f"apt knows no source of Linux {kernel.name} in {kernel.package} {where}; or set"
            f" {OVERRIDE} to a {kernel.name} kernel tarball or source tree"
        )

    def make(target: Path) -> None:
        with progress.step(f"fetching the package {kernel.package} {version}") as step:
            if kernel.upstream:
                apt.download_upstream(kernel.package, version, target, log, step, environment)
            else:
                wanted = f"{kernel.package}={version}"
                apt.unpack([wanted], target, log, step, environment)

    # Debian's revision says nothing about the upstream tarball.
    name = version.partition("-")[0] if kernel.upstream else version
    return cache.published(paths.cache_root() / "packages" / f"{kernel.package}_{name}", make)


def tarball_in(package: Path) -> Path:
    """Return the tarball of a package that fetch_package() or fetch_newest() has returned."""
    return next(package.rglob("*.tar.xz"))


def available_version(
    kernel: versions.KernelVersion, environment: Mapping[str, str] | None
) -> str | None:
    """Return the version of the package that apt would fetch; None if it has none.

    environment: of apt; None is the machine's own apt.
    """
    if not kernel.upstream:
        return apt.candidate_version(kernel.package, environment)
    return apt.newest_source(kernel.package, f"{kernel.name}.", environment)


def unpacked(identity: str, tarball: Path) -> KernelSource:
    """Return the tarball's tree in the cache; unpacking takes about 12 s and 1.6 GB."""

    def make(target: Path) -> None:
        with progress.step(f"unpacking {tarball.name}"):
            # tar(1) with its own xz is twice as fast as tarfile.
            if shutil.which("tar") and shutil.which("xz"):
                subprocesses.run(
                    [
                        "tar",
                        "--extract",
                        f"--file={tarball}",
                        f"--directory={target}",
                        "--strip-components=1",
                    ]
                )
            else:
                unpack_slowly(tarball, target)

    place = cache.published(paths.cache_root() / "sources" / identity.replace(":", "."), make)
    return KernelSource(identity, place, in_cache=True)


def unpack_slowly(tarball: Path, target: Path) -> None:
    """Unpack with Python's own tarfile, without the top directory."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            member.name = member.name.partition("/")[2]
            if member.name:
                archive.extract(member, target, filter="tar")


def unpack_files(tarball: Path, names: Iterable[str], target: Path) -> None:
    """Unpack these files of a kernel tarball into `target`, those that it has.

    names: relative to the kernel tree.
    """
    wanted = set(names)
    with tarfile.open(tarball) as packed:
        for member in packed:
            member.name = member.name.partition("/")[2]
            if member.name in wanted:
                packed.extract(member, target, filter="tar")
