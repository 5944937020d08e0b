# SPDX-License-Identifier: Apache-2.0
"""`make kernel-deb`: Debian packages of a kernel with the series, for guests with a disk image.

The configuration is that of Debian's cloud kernel, which boots in virtual machines and has modules
for what they use. The kernel's own target bindeb-pkg makes the packages.
"""

import lzma
import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import build, distribution, series, versions
from farwatch_harness.util import apt, archive, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: Where the package linux-config-VERSION has the configuration of the cloud kernel.
CONFIGURATION = f"config.{distribution.ARCHITECTURE}_none_cloud-{distribution.ARCHITECTURE}.xz"
#: What differs from Debian's configuration. Debug information, from which BTF is made, would double
#: the time of the build, and needs several times the space.
OPTIONS = {
    "CONFIG_LOCALVERSION": '"-farwatch"',
    "CONFIG_DEBUG_INFO_NONE": "y",
    # What events need, whatever Debian chooses.
    "CONFIG_FUSE_FS": "y",
    "CONFIG_VIRTIO_FS": "y",
    "CONFIG_FSNOTIFY_REMOTE": "y",
}
#: The version of the way in which the packages are made: a new value invalidates the cache.
RECIPE = "1"
#: Lines "CC ...", "LD ..." of a build.
USUAL_STEPS = 9000
ENVIRONMENT = {
    **build.BUILD_NAMES,
    "KDEB_CHANGELOG_DIST": "unstable",
    # xz takes minutes for a package that is installed once.
    "KDEB_COMPRESS": "zstd",
}


@dataclass(frozen=True)
class KernelPackages:
    """The packages of a kernel: its image with its modules, and what modules are built with."""

    image: Path
    headers: Path


def packages_in(folder: Path) -> KernelPackages:
    """Return the packages in `folder`. HarnessError: there are others, or none."""
    found = sorted(folder.glob("*.deb"))
    # Beside these, bindeb-pkg makes a linux-libc-dev that would replace Debian's.
    images = [path for path in found if path.name.startswith("linux-image-")]
    headers = [path for path in found if path.name.startswith("linux-headers-")]
    if len(images) != 1 or len(headers) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise HarnessError(f"bindeb-pkg did not make an image and headers, but: {names}")
    return KernelPackages(images[0], headers[0])


def build_packages(patches: Sequence[series.Patch]) -> KernelPackages:
    """Return the packages of the kernel with these patches.

    They come from the cache or are built now. HarnessError: Debian has no cloud configuration of
    this version, or the build fails.
    """
    apt.install((*apt.KERNEL_BUILD, *apt.KERNEL_PACKAGE), paths.LOGS / "apt-kernel-deb.log")
    kernel = build.recipe_of(patches)
    base = cloud_configuration(versions.current())
    key = cache.content_key(RECIPE, base, str(OPTIONS), str(ENVIRONMENT), *kernel.compiled)

    def make(folder: Path) -> None:
        with (
            prepared(kernel, base) as tree,
            progress.step(f"building packages: {kernel.title}") as step,
        ):
            made = compile_packages(tree, step)
            for package in (made.image, made.headers):
                package.rename(folder / package.name)

    return packages_in(cache.published(paths.cache_root() / "kernel-packages" / key, make))


def cloud_configuration(version: versions.KernelVersion) -> bytes:
    """Return the configuration of Debian's cloud kernel of this version.

    HarnessError: apt knows none.
    """
    package = f"linux-config-{version.name}"
    environment = archive.lists_of(version.suite) if version.suite else None
    known = apt.candidate_version(package, environment)
    if known is None:
        raise HarnessError(
            f"apt knows no {package}, which has the configuration of Debian's cloud kernel"
            " (Debian 12 has it in its security archive: add that archive to apt's sources)"
        )

    def make(target: Path) -> None:
        with progress.step(f"fetching the package {package} {known}") as step:
            log = paths.LOGS / f"{package}.log"
            apt.unpack([f"{package}={known}"], target, log, step, environment)

    name = f"{package}_{known}".replace(":", ".")
    folder = cache.published(paths.cache_root() / "packages" / name, make)
    return lzma.decompress((folder / "usr" / "src" / package / CONFIGURATION).read_bytes())


@contextmanager
def prepared(kernel: build.KernelRecipe, base: bytes) -> Iterator[build.BuildTree]:
    """Hold and yield a build tree with the sources of this kernel and its configuration.

    base: Debian's configuration. HarnessError: the kernel refuses an option of ours.
    """
    name = f"{kernel.source.identity}-packages-{RECIPE}".replace(":", ".")
    with cache.locked(f"build-{name}") as lock:
        # bindeb-pkg puts the packages beside the tree.
        path = build.prepare_tree(f"{name}/linux", kernel.source, kernel.content)
        tree = build.BuildTree(path, lock)
        build.write_options(tree, base, OPTIONS)
        list(run_make(["olddefconfig"], tree, paths.LOGS / "kernel-deb-config.log"))
        build.check_options(tree, OPTIONS)
        yield tree


def run_make(words: list[str], tree: build.BuildTree, log: Path) -> Iterator[str]:
    """Run make in the tree and yield its output."""
    environment = {**os.environ, **ENVIRONMENT}
    argv = ["make", *words]
    return subprocesses.lines_of(argv, log, cwd=tree.path, env=environment, inherited=[tree.lock])


def compile_packages(tree: build.BuildTree, step: progress.Step) -> KernelPackages:
    """Build the packages beside the tree, and show the progress.

    HarnessError: has the errors of the compiler.
    """
    log = paths.LOGS / "kernel-deb.log"
    beside = tree.path.parent
    for stale in beside.glob("*.deb"):
        stale.unlink()
    version = f"KDEB_PKGVERSION={versions.release_of(tree.path)}-{project_version()}"
    done = 0
    try:
        for line in run_make([f"-j{os.cpu_count() or 1}", version, "bindeb-pkg"], tree, log):
            if line.startswith("  "):
                done += 1
                step.update(f"{done} of about {USUAL_STEPS} steps")
    except HarnessError as error:
        raise HarnessError(f"{error}\n{build.compiler_errors(log)}") from None
    return packages_in(beside)


def project_version() -> str:
    """Return the version of this project."""
    with (paths.CHECKOUT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])
