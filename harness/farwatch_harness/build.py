# SPDX-License-Identifier: Apache-2.0
"""Builds kernels, and keeps each by what it is made of: the source, the patches, the configuration and the compiler.

There is one build tree per source. A patched file replaces the tree's own only when its content differs, so that going
from one state of the series to another compiles what has changed.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness import cache, commands, needs, paths, progress, series, tree
from farwatch_harness.errors import HarnessError

# Lines "CC ...", "AR ..." of a full build; replaced by the real number after the first one.
USUAL_STEPS = 2200
ERROR_LINES = 12
# Fixed, so that the same sources give the same image and ccache can help.
BUILD_NAMES = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan 1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "farwatch",
    "KBUILD_BUILD_HOST": "farwatch",
}


@dataclass(frozen=True)
class Kernel:
    """A built kernel: its image, and what it is made of in words."""

    image: Path
    title: str


def build(patches: Sequence[series.Patch], config: Path = paths.KERNEL_CONFIG, jobs: int | None = None) -> Kernel:
    """The kernel with these patches, from the cache or built now; HarnessError gives the compiler's words."""
    needs.install(needs.KERNEL_BUILD, paths.LOGS / "apt-kernel.log")
    source = tree.find_source()
    title = f"{source.identity} with {len(patches)} patches" if patches else f"{source.identity}, no patches"
    compiler = commands.run(["gcc", "--version"]).splitlines()[0]
    key = cache.content_key(source.identity, compiler, config.read_bytes(), *(patch.content() for patch in patches))
    target = paths.cache_root() / "kernels" / key

    def make(folder: Path) -> None:
        content = series.patched_content(source.path, patches)
        with cache.locked(f"build-{source.identity}"):
            place = prepare_tree(source, content)
            configure(place, config)
            with progress.step(f"building the kernel: {title}") as step:
                compile_kernel(place, jobs or os.cpu_count() or 1, step)
            for name in ("arch/x86/boot/bzImage", "System.map", ".config"):
                shutil.copyfile(place / name, folder / Path(name).name.lstrip("."))
            (folder / "title").write_text(f"{title}\n")

    return Kernel(cache.published(target, make) / "bzImage", title)


def prepare_tree(source: tree.KernelSource, content: dict[str, bytes | None]) -> Path:
    """The build tree of this source, with exactly these patched files. The caller holds its lock."""
    place = paths.cache_root() / "builds" / source.identity.replace(":", ".")

    def make(target: Path) -> None:
        with progress.step("making the build tree"):
            # A user's tree may hold objects, which a build writes to in place: it cannot share them.
            sharing = "--link" if source.in_cache else "--reflink=auto"
            commands.run(["cp", "--archive", sharing, f"{source.path}/.", target])

    cache.published(place, make)
    listing = place / ".farwatch-patched"
    before = listing.read_text().splitlines() if listing.exists() else []
    # What an earlier state of the series had patched goes back to what the source has.
    state: dict[str, bytes | None] = {name: original(source.path / name) for name in before}
    cache.write_atomically(listing, "".join(f"{name}\n" for name in sorted({*before, *content})).encode())
    series.replace_files(place, state | content)
    return place


def original(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def configure(place: Path, config: Path) -> None:
    """tinyconfig plus our options; HarnessError names the options that the kernel did not take."""
    log = paths.LOGS / "kernel-config.log"
    base = place / ".farwatch-tinyconfig"
    if not base.exists():
        run_make(["tinyconfig"], place, log)
        cache.write_atomically(base, (place / ".config").read_bytes())
    wanted = read_options(config)
    lines = "".join(f"{name}={value}\n" for name, value in wanted.items())
    cache.write_atomically(place / ".config", base.read_bytes() + lines.encode())
    run_make(["olddefconfig"], place, log)
    got = read_options(place / ".config")
    refused = sorted(name for name, value in wanted.items() if got.get(name, "n") != value)
    if refused:
        raise HarnessError(f"the kernel does not take these options of {config}: {' '.join(refused)}")


def read_options(config: Path) -> dict[str, str]:
    """The options that a kernel configuration sets, with their values."""
    lines = (line.strip() for line in config.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)


def make_command() -> tuple[list[str], dict[str, str]]:
    """make's first words and its environment, with ccache where it is installed."""
    environment = {**os.environ, **BUILD_NAMES}
    if not shutil.which("ccache"):
        return ["make"], environment
    environment["CCACHE_DIR"] = str(paths.cache_root() / "ccache")
    environment["CCACHE_MAXSIZE"] = "2G"
    return ["make", "CC=ccache gcc"], environment


def run_make(targets: list[str], place: Path, log: Path) -> None:
    argv, environment = make_command()
    for _line in commands.lines_of([*argv, *targets], log, cwd=place, env=environment):
        pass


def compile_kernel(place: Path, jobs: int, step: progress.Step) -> None:
    """Builds bzImage and shows how far it is; HarnessError with the errors of the compiler."""
    log = paths.LOGS / "kernel-build.log"
    count = place / ".farwatch-steps"
    total = int(count.read_text()) if count.exists() else USUAL_STEPS
    fresh = not (place / "vmlinux").exists()
    done = 0
    argv, environment = make_command()
    try:
        for line in commands.lines_of([*argv, f"-j{jobs}", "bzImage"], log, cwd=place, env=environment):
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
