# SPDX-License-Identifier: Apache-2.0
"""The kernel source: Debian's package, unpacked once into the cache and only read there.

FARWATCH_KERNEL_SOURCE names another source: a tarball, or an unpacked tree.
"""

import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import versions
from farwatch_harness.util import apt, cache, paths, progress, subprocesses
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


def find_source() -> KernelSource:
    """Return the source of the current version; fetch and unpack it if necessary.

    HarnessError: there is none.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        return source_from(Path(named).expanduser().resolve())
    version = versions.current()
    tarball = TARBALLS / f"{version.package}.tar.xz"
    identity = package_identity(version.package, tarball)
    if identity is None:
        fetched = fetch_package(version)
        return unpacked(fetched.name, fetched / tarball.relative_to("/"))
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
    """Return the directory with the source package's files; download them if necessary."""
    package = kernel.package
    if not shutil.which("apt-get"):
        raise HarnessError(
            f"no {TARBALLS / package}.tar.xz here: set {OVERRIDE} to a {kernel.name} kernel tarball"
            " or source tree"
        )
    folder = paths.cache_root() / "packages"
    known = sorted(folder.glob(f"{package}_*"))
    if known:
        return known[-1]

    log = paths.LOGS / "kernel-source.log"
    version = apt.candidate_version(package)
    if version is None:
        with progress.step("fetching apt's package lists") as step:
            apt.run_apt(["update"], log.with_name("apt-update.log"), step)
        version = apt.candidate_version(package)
    if version is None:
        raise HarnessError(
            f"apt knows no {package} (Debian 12 has it in its security archive): add that archive"
            f" to apt's sources, or set {OVERRIDE} to a {kernel.name} kernel tarball or source tree"
        )

    def make(target: Path) -> None:
        with progress.step(f"fetching the package {package} {version}") as step:
            apt.unpack([f"{package}={version}"], target, log, step)

    return cache.published(folder / f"{package}_{version}", make)


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
