# SPDX-License-Identifier: Apache-2.0
"""Builds kernels, and keeps each by what it is made of: the source, the patches, the configuration and the compiler.

There is one build tree per source. A patched file replaces the tree's own only when its content differs, so that going
from one state of the series to another compiles what has changed.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatch_harness import cache, commands, needs, paths, progress, series, tree
from farwatch_harness.errors import HarnessError

# Lines "CC ...", "AR ..." of a full build; replaced by the real number after the first one.
USUAL_STEPS = 2200
ERROR_LINES = 12
# Fixed, so that the same sources give the same image.
BUILD_NAMES = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan 1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "farwatch",
    "KBUILD_BUILD_HOST": "farwatch",
}


#: How kernels are built; another value makes those in the cache void.
RECIPE = "2"


class Flavour(Enum):
    """Which configuration: the one for use, or one that also looks for faults in the kernel and is much slower."""

    NORMAL = (paths.KERNEL_CONFIG,)
    DEBUG = (paths.KERNEL_CONFIG, paths.DEBUG_CONFIG)

    def options(self) -> dict[str, str]:
        """The options that are set on top of tinyconfig."""
        return {name: value for path in self.value for name, value in read_options(path).items()}


@dataclass(frozen=True)
class Kernel:
    """A built kernel: its image, and what it is made of in words."""

    image: Path
    title: str


@dataclass(frozen=True)
class BuildTree:
    """A tree to build in, and the descriptor of its lock: a make that outlives us still holds it."""

    path: Path
    lock: int


def build(patches: Sequence[series.Patch], flavour: Flavour = Flavour.NORMAL) -> Kernel:
    """The kernel with these patches, from the cache or built now; HarnessError gives the compiler's words."""
    needs.install(needs.KERNEL_BUILD, paths.LOGS / "apt-kernel.log")
    source = tree.find_source()
    title = f"{source.identity} with {len(patches)} patches" if patches else f"{source.identity}, no patches"
    if flavour is not Flavour.NORMAL:
        title += f" ({flavour.name.lower()})"
    compiler = commands.run(["gcc", "--version"]).splitlines()[0]
    options = flavour.options()
    key = cache.content_key(RECIPE, source.identity, compiler, str(options), *(patch.content for patch in patches))
    target = paths.cache_root() / "kernels" / key

    def make(folder: Path) -> None:
        content = series.patched_content(source.path, patches)
        name = f"{source.identity}-{flavour.name.lower()}-{RECIPE}".replace(":", ".")
        with cache.locked(f"build-{name}") as lock:
            place = BuildTree(prepare_tree(name, source, content), lock)
            configure(place, options)
            with progress.step(f"building the kernel: {title}") as step:
                compile_kernel(place, os.cpu_count() or 1, step)
            for result in ("arch/x86/boot/bzImage", "System.map", ".config"):
                shutil.copyfile(place.path / result, folder / Path(result).name.lstrip("."))
            (folder / "title").write_text(f"{title}\n")

    return Kernel(cache.published(target, make) / "bzImage", title)


def prepare_tree(name: str, source: tree.KernelSource, content: dict[str, bytes | None]) -> Path:
    """The build tree `name` of this source, with exactly these patched files. The caller holds its lock."""
    place = paths.cache_root() / "builds" / name

    def make(target: Path) -> None:
        with progress.step("making the build tree"):
            # A user's tree may hold objects, which a build writes to in place: it cannot share them.
            sharing = "--link" if source.in_cache else "--reflink=auto"
            commands.run(["cp", "--archive", sharing, f"{source.path}/.", target])

    cache.published(place, make)
    listing = place / ".farwatch-patched"
    before = listing.read_text().splitlines() if listing.exists() else []
    # What an earlier state of the series had patched goes back to what the source has.
    state: dict[str, bytes | None] = {file: original(source.path / file) for file in before}
    cache.write_atomically(listing, "".join(f"{file}\n" for file in sorted({*before, *content})).encode())
    series.replace_files(place, state | content)
    return place


def original(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def configure(place: BuildTree, wanted: dict[str, str]) -> None:
    """tinyconfig plus our options; HarnessError names the options that the kernel did not take."""
    log = paths.LOGS / f"kernel-config-{place.path.name}.log"
    base = place.path / ".farwatch-tinyconfig"
    if not base.exists():
        list(run_make(["tinyconfig"], place, log))
        cache.write_atomically(base, (place.path / ".config").read_bytes())
    lines = "".join(f"{name}={value}\n" for name, value in wanted.items())
    cache.write_atomically(place.path / ".config", base.read_bytes() + lines.encode())
    list(run_make(["olddefconfig"], place, log))
    got = read_options(place.path / ".config")
    refused = sorted(name for name, value in wanted.items() if got.get(name, "n") != value)
    if refused:
        raise HarnessError(f"the kernel does not take these options: {' '.join(refused)}")


def read_options(config: Path) -> dict[str, str]:
    """The options that a kernel configuration sets, with their values."""
    lines = (line.strip() for line in config.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)


def run_make(words: list[str], place: BuildTree, log: Path) -> Iterator[str]:
    """Runs make in the tree and yields its output."""
    # No ccache: it cannot see what the image's piggy.S includes, and once gave an image with the code of another one.
    argv = ["make", *words]
    return commands.lines_of(argv, log, cwd=place.path, env={**os.environ, **BUILD_NAMES}, inherited=[place.lock])


def compile_kernel(place: BuildTree, jobs: int, step: progress.Step) -> None:
    """Builds bzImage and shows how far it is; HarnessError with the errors of the compiler."""
    log = paths.LOGS / f"kernel-build-{place.path.name}.log"
    count = place.path / ".farwatch-steps"
    total = int(count.read_text()) if count.exists() else USUAL_STEPS
    fresh = not (place.path / "vmlinux").exists()
    done = 0
    try:
        for line in run_make([f"-j{jobs}", "bzImage"], place, log):
            if line.startswith("  "):
                done += 1
                step.update(f"{done} of {total} steps" if fresh else f"{done} steps")
    except HarnessError as error:
        raise HarnessError(f"{error}\n{compiler_errors(log)}") from None
    if fresh:
        count.write_text(f"{done}\n")


def compiler_errors(log: Path) -> str:
    """The lines of a build log that say what went wrong."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "error" in line.lower() or "***" in line]
    return "\n".join(lines[:ERROR_LINES])
