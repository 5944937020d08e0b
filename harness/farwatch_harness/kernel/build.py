# SPDX-License-Identifier: Apache-2.0
"""Builds kernels and caches each by what it is built from.

That is: the sources with the patches, the configuration, and the compiler.

There is one build tree for each source. A patched file replaces the tree's own only if its content
differs, so that a change from one prefix of the series to another compiles what differs. Everything
is compiled with W=1, and what the compiler prints for an object is stored beside that object. The
warnings of a kernel are thereby complete, however little was compiled for it.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatch_harness.kernel import series, source_tree, versions
from farwatch_harness.util import apt, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

# Lines "CC ...", "AR ..." of a full build; replaced by the real number after the first one.
USUAL_STEPS = 2200
ERROR_LINES = 12
# Fixed, so that the same sources give the same image.
BUILD_NAMES = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan 1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "farwatch",
    "KBUILD_BUILD_HOST": "farwatch",
}


#: The version of the way in which kernels are built: a new value invalidates the cache.
RECIPE = "3"
COMPILER = ".farwatch-cc"
#: Runs gcc and writes what it prints for DIR/NAME.o to DIR/.NAME.o.said as well. That file is
#: complete before the object exists.
WRAPPER = """#!/bin/sh
for word; do
    if [ "$before" = -o ]; then object=$word; fi
    before=$word
done
case $object in
*.o) ;;
*) exec gcc "$@" ;;
esac
name=${object##*/}
said=${object%"$name"}.$name.said
gcc "$@" 2> "$said"
status=$?
if [ -s "$said" ]; then cat "$said" >&2; else rm -f "$said"; fi
exit $status
"""


class Flavour(Enum):
    """A kernel configuration: NORMAL for use, or DEBUG, which detects faults and is slow."""

    NORMAL = (paths.KERNEL_CONFIG,)
    DEBUG = (paths.KERNEL_CONFIG, paths.DEBUG_CONFIG)

    def options(self) -> dict[str, str]:
        """Return the options that the current version sets on top of tinyconfig."""
        return versions.current().configured(
            {name: value for path in self.value for name, value in read_options(path).items()}
        )


@dataclass(frozen=True)
class Kernel:
    """A built kernel: its image, and a title for people."""

    image: Path
    title: str

    @property
    def warnings(self) -> str:
        """All warnings of the compiler and the linker, for every part of this kernel."""
        return (self.image.parent / "warnings").read_text(errors="replace")

    @property
    def seconds(self) -> float:
        """How long the build took when it was done, in seconds."""
        return float((self.image.parent / "seconds").read_text())


@dataclass(frozen=True)
class KernelRecipe:
    """What a kernel is built from.

    content: the whole content of the files that the patches touch; None for a removed file.
    """

    source: source_tree.KernelSource
    content: Mapping[str, bytes | None]
    flavour: Flavour
    title: str

    @property
    def compiled(self) -> list[bytes | str]:
        """What is compiled, and by which compiler: parts of a key."""
        compiler = subprocesses.run(["gcc", "--version"]).splitlines()[0]
        changed = [
            part
            for name, data in sorted(self.content.items())
            for part in (name, str(data is None), data or b"")
        ]
        return [self.source.identity, compiler, *changed]

    @property
    def key(self) -> str:
        """The digest that identifies this kernel in the cache."""
        source, compiler, *changed = self.compiled
        return cache.content_key(RECIPE, source, compiler, str(self.flavour.options()), *changed)

    @property
    def tree_name(self) -> str:
        """The name of the build tree in which this kernel is built."""
        return f"{self.source.identity}-{self.flavour.name.lower()}-{RECIPE}".replace(":", ".")


@dataclass(frozen=True)
class BuildTree:
    """A tree to build in, and the file descriptor of its lock.

    make(1) inherits the descriptor, so that the lock is held until make has ended.
    """

    path: Path
    lock: int


def recipe_of(patches: Sequence[series.Patch], flavour: Flavour = Flavour.NORMAL) -> KernelRecipe:
    """Return the recipe of the kernel with these patches.

    HarnessError: a patch does not apply.
    """
    source = source_tree.find_source()
    title = (
        f"{source.identity} with {len(patches)} patches"
        if patches
        else f"{source.identity}, no patches"
    )
    if flavour is not Flavour.NORMAL:
        title += f" ({flavour.name.lower()})"
    return KernelRecipe(source, series.patched_content(source.path, patches), flavour, title)


def cached_at(kernel: KernelRecipe) -> Path:
    """Return the directory of this kernel in the cache; it exists once the kernel is built."""
    return paths.cache_root() / "kernels" / kernel.key


def build(patches: Sequence[series.Patch], flavour: Flavour = Flavour.NORMAL) -> Kernel:
    """Return the kernel with these patches, from the cache or built now.

    HarnessError: has the compiler's errors.
    """
    apt.install(apt.KERNEL_BUILD, paths.LOGS / "apt-kernel.log")
    kernel = recipe_of(patches, flavour)

    def make(folder: Path) -> None:
        with prepared(kernel) as tree:
            began = time.monotonic()
            with progress.step(f"building the kernel: {kernel.title}") as step:
                log = compile_kernel(tree, os.cpu_count() or 1, step)
            warnings = compiler_warnings(tree.path) + other_warnings(log)
            (folder / "warnings").write_text(warnings)
            (folder / "seconds").write_text(f"{time.monotonic() - began:.1f}\n")
            for result in ("arch/x86/boot/bzImage", "System.map", ".config"):
                shutil.copyfile(tree.path / result, folder / Path(result).name.lstrip("."))
            (folder / "title").write_text(f"{kernel.title}\n")

    return Kernel(cache.published(cached_at(kernel), make) / "bzImage", kernel.title)


@contextmanager
def prepared(kernel: KernelRecipe, purpose: str = "") -> Iterator[BuildTree]:
    """Hold and yield the build tree with the sources and the configuration of this kernel.

    purpose: names another tree of this source, for objects with other options.
    """
    name = f"{kernel.tree_name}-{purpose}" if purpose else kernel.tree_name
    with cache.locked(f"build-{name}") as lock:
        tree = BuildTree(prepare_tree(name, kernel.source, kernel.content), lock)
        configure(tree, kernel.flavour.options())
        yield tree


def prepare_tree(
    name: str, source: source_tree.KernelSource, content: Mapping[str, bytes | None]
) -> Path:
    """Return the build tree `name` of this source, with exactly these patched files.

    The caller holds the lock of the tree.
    """
    tree = paths.cache_root() / "builds" / name

    def make(target: Path) -> None:
        with progress.step("making the build tree"):
            # A user's tree may have objects. A build writes to objects in place, so hard links
            # would change the user's.
            sharing = "--link" if source.in_cache else "--reflink=auto"
            subprocesses.run(["cp", "--archive", sharing, f"{source.path}/.", target])

    cache.published(tree, make)
    listing = tree / ".farwatch-patched"
    before = listing.read_text().splitlines() if listing.exists() else []
    # A file that an earlier series patched gets the content of the source again.
    state: dict[str, bytes | None] = {file: original(source.path / file) for file in before}
    cache.write_atomically(
        listing, "".join(f"{file}\n" for file in sorted({*before, *content})).encode()
    )
    series.replace_files(tree, {**state, **content})
    compiler = tree / COMPILER
    if not compiler.exists():
        cache.write_atomically(compiler, WRAPPER.encode())
        compiler.chmod(0o755)
    return tree


def original(path: Path) -> bytes | None:
    """Return the file's content; None if there is no such file."""
    return path.read_bytes() if path.is_file() else None


def configure(tree: BuildTree, wanted: dict[str, str]) -> None:
    """Configure the tree as tinyconfig with these options.

    HarnessError: names the options that the kernel refuses.
    """
    log = paths.LOGS / f"kernel-config-{tree.path.name}.log"
    base = tree.path / ".farwatch-tinyconfig"
    if not base.exists():
        list(run_make(["tinyconfig"], tree, log))
        cache.write_atomically(base, (tree.path / ".config").read_bytes())
    write_options(tree, base.read_bytes(), wanted)
    list(run_make(["olddefconfig"], tree, log))
    check_options(tree, wanted)


def write_options(tree: BuildTree, base: bytes, wanted: Mapping[str, str]) -> None:
    """Write a configuration: `base`, then these options in place of those that it has."""
    lines = "".join(f"{name}={value}\n" for name, value in wanted.items())
    cache.write_atomically(tree.path / ".config", base + lines.encode())


def check_options(tree: BuildTree, wanted: Mapping[str, str]) -> None:
    """Check that the tree's configuration has these options. HarnessError: names those it lacks."""
    got = read_options(tree.path / ".config")
    refused = sorted(name for name, value in wanted.items() if got.get(name, "n") != value)
    if refused:
        raise HarnessError(f"the kernel does not take these options: {' '.join(refused)}")


def read_options(config: Path) -> dict[str, str]:
    """Return the options that a kernel configuration sets, with their values."""
    lines = (line.strip() for line in config.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)


def run_make(words: list[str], tree: BuildTree, log: Path) -> Iterator[str]:
    """Run make in the tree and yield its output."""
    # No ccache: it does not see what the image's piggy.S includes, and once returned an image with
    # the code of another kernel. cmd_checkdoc= turns off kernel-doc, which would take minutes for
    # all files: the matrix runs it on the files that the patches touch.
    argv = ["make", f"CC={tree.path / COMPILER}", "W=1", "cmd_checkdoc=", *words]
    return subprocesses.lines_of(
        argv, log, cwd=tree.path, env={**os.environ, **BUILD_NAMES}, inherited=[tree.lock]
    )


def compile_kernel(tree: BuildTree, jobs: int, step: progress.Step) -> Path:
    """Build bzImage and show the progress; return the log's path.

    HarnessError: has the errors of the compiler.
    """
    log = paths.LOGS / f"kernel-build-{tree.path.name}.log"
    count = tree.path / ".farwatch-steps"
    total = int(count.read_text()) if count.exists() else USUAL_STEPS
    fresh = not (tree.path / "vmlinux").exists()
    done = 0
    try:
        for line in run_make([f"-j{jobs}", "bzImage"], tree, log):
            if line.startswith("  "):
                done += 1
                step.update(f"{done} of {total} steps" if fresh else f"{done} steps")
    except HarnessError as error:
        raise HarnessError(f"{error}\n{compiler_errors(log)}") from None
    if fresh:
        count.write_text(f"{done}\n")
    return log


def compiler_warnings(tree: Path) -> str:
    """Return what the compiler printed for the objects in the tree whose source still exists."""
    found = subprocesses.run(["find", ".", "-name", ".*.o.said"], cwd=tree).splitlines()
    said: list[str] = []
    for path in sorted(tree / name for name in found):
        built = path.with_name(path.name.removeprefix(".").removesuffix(".said"))
        if built.exists() and any(built.with_suffix(suffix).exists() for suffix in (".c", ".S")):
            said.append(path.read_text(errors="replace"))
    return "".join(said)


def other_warnings(log: Path) -> str:
    """Return the warnings of a build log that the linker and the build scripts printed."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if "warning: " in line.lower() and "[-W" not in line)


def compiler_errors(log: Path) -> str:
    """Return the lines of a build log that report errors."""
    lines = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if "error" in line.lower() or "***" in line
    ]
    return "\n".join(lines[:ERROR_LINES])
