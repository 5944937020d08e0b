# SPDX-License-Identifier: Apache-2.0
"""Checks that fs/notify and fs/fuse compile and link with each combination of their options.

The kernel itself is not linked each time. It is enough to compare symbols: what an object of the
two directories uses must be defined by one that the same combination has, and must be exported if
the user is a module.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import build
from farwatch_harness.matrix.check_outcome import CheckOutcome
from farwatch_harness.matrix.compiler_warnings import new_warnings
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.result_cache import ToolOutput, cached
from farwatch_harness.matrix.static_checks import compared
from farwatch_harness.util import paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: Part of the cache's key: change it when what is compiled, or how it is judged, changes.
RECIPE = "2"
WATCHERS = ("CONFIG_INOTIFY_USER", "CONFIG_FANOTIFY", "CONFIG_DNOTIFY")
# FUSE_FS and VIRTIO_FS, which needs it.
DRIVERS = (("n", "n"), ("y", "n"), ("y", "y"), ("y", "m"), ("m", "n"), ("m", "m"))
DIRECTORIES = ("fs/notify", "fs/fuse")
# What make has put into a directory's part of the kernel, and its modules.
LISTINGS = ("built-in.a", "modules.order")
# One of the many files that report events through the headers.
REPORTER = "fs/namei.o"
EXPORT = re.compile(r"EXPORT_\w*SYMBOL\w*\s*\((\w+)")
EXPORTING_MACRO = re.compile(r"^#define (\w+)\(.*EXPORT_\w*SYMBOL", re.MULTILINE)
# What marks an exported symbol in an object. In Linux 6.1 that is its entry in the kernel's table.
EXPORTED = re.compile(r"__(?:export_symbol|ksymtab)_(.+)")


@dataclass(frozen=True)
class Unit:
    """What is linked in one go: the kernel's part of the two directories, or a module.

    defined, used and exported are names of symbols; `used` has those that are not defined here.
    """

    name: str
    module: bool
    defined: frozenset[str]
    used: frozenset[str]
    exported: frozenset[str]


def combinations() -> list[dict[str, str]]:
    """Return combinations of the options, those that share most objects next to each other.

    Each set of watchers occurs, and each set of drivers, both with fsnotify and without it. The
    drivers do not ask for anything else of fs/notify.
    """
    watchers = list(itertools.product("ny", repeat=len(WATCHERS)))
    none, some = watchers[0], watchers[1:]
    pairs = [(none, drivers) for drivers in DRIVERS]
    pairs += zip(some, itertools.cycle(DRIVERS))
    found = [
        {
            **dict(zip(WATCHERS, chosen, strict=True)),
            # Selected by the three.
            "CONFIG_FSNOTIFY": "y" if "y" in chosen else "n",
            # It selects fsnotify, too.
            "CONFIG_AUDIT": "n",
            "CONFIG_FANOTIFY_ACCESS_PERMISSIONS": chosen[1],
            "CONFIG_FUSE_FS": fuse,
            "CONFIG_CUSE": fuse,
            "CONFIG_VIRTIO_FS": virtio_fs,
            "CONFIG_MODULES": "y" if "m" in (fuse, virtio_fs) else "n",
        }
        for chosen, (fuse, virtio_fs) in pairs
    ]
    return sorted(
        found, key=lambda options: (options["CONFIG_MODULES"], options["CONFIG_FSNOTIFY"])
    )


def title(options: Mapping[str, str]) -> str:
    """Return the combination in words, such as "INOTIFY_USER=y ... VIRTIO_FS=m"."""
    names = (*WATCHERS, "CONFIG_FUSE_FS", "CONFIG_VIRTIO_FS")
    return " ".join(f"{name.removeprefix('CONFIG_')}={options[name]}" for name in names)


def unresolved(units: Iterable[Unit], ours: frozenset[str], elsewhere: frozenset[str]) -> list[str]:
    """Return a line for each symbol that a unit uses and that would not be found at link time.

    ours: the symbols that objects of the two directories define in any combination.
    elsewhere: the symbols that the rest of the kernel exports.
    """
    found = []
    units = list(units)
    for unit in units:
        others = [other for other in units if other is not unit]
        reachable = elsewhere | {
            symbol
            for other in others
            for symbol in (other.exported if unit.module or other.module else other.defined)
        }
        for symbol in sorted(unit.used - reachable):
            if symbol in ours or unit.module:
                found.append(f"error: {unit.name}: {symbol} is not defined or not exported")
    return found


def check(prefix: Prefix) -> CheckOutcome:
    """Check each combination with the patches of `prefix`. Faults of the base do not count."""
    said = compiled(prefix)
    if not prefix.number:
        return CheckOutcome(output=said.output, seconds=said.seconds)
    before = compiled(Prefix((), prefix.series))
    found = new_warnings(before.output, said.output)
    return compared(found, said.output, said.seconds, "options")


def compiled(prefix: Prefix) -> ToolOutput:
    """Compile each combination; return a line for each, and its faults."""
    kernel = build.recipe_of(prefix.patches)
    return cached(["options", RECIPE, kernel.key], lambda: compile_all(kernel))


def compile_all(kernel: build.KernelRecipe) -> str:
    """Compile each combination; return a line for each, and for each of its faults."""
    combined = combinations()
    built: list[tuple[str, list[Unit], list[str]]] = []
    with (
        build.prepared(kernel, "options") as tree,
        progress.step(f"options: {kernel.title}") as step,
    ):
        elsewhere = exported_in(tree.path)
        for number, options in enumerate(combined):
            step.update(f"{number} of {len(combined)} combinations")
            build.configure(tree, {**kernel.flavour.options(), **options})
            errors = compile_one(tree)
            built.append((title(options), [] if errors else units_of(tree.path), errors))
    ours = frozenset(
        symbol for _title, units, _errors in built for unit in units for symbol in unit.defined
    )
    lines = []
    for name, units, errors in built:
        faults = [*errors, *unresolved(units, ours, elsewhere)]
        lines += [f"{name}: {f'{len(faults)} faults' if faults else 'compiles and links'}", *faults]
    return "".join(f"{line}\n" for line in lines)


def compile_one(tree: build.BuildTree) -> list[str]:
    """Compile the two directories as the tree is configured; return errors and warnings."""
    # make leaves these as they are in a directory that the options do not have.
    for name in itertools.product(DIRECTORIES, LISTINGS):
        tree.path.joinpath(*name).unlink(missing_ok=True)
    log = paths.LOGS / f"options-{tree.path.name}.log"
    targets = [REPORTER, *(f"{name}/" for name in DIRECTORIES)]
    with contextlib.suppress(HarnessError):
        list(build.run_make([f"-j{os.cpu_count() or 1}", *targets], tree, log))
        return []
    return build.compiler_errors(log).splitlines() or [f"error: make fails: {log}"]


def units_of(tree: Path) -> list[Unit]:
    """Return what has been compiled: the kernel's part, and each module."""
    objects = [tree / REPORTER]
    modules = []
    for name in DIRECTORIES:
        built_in, order = (tree / name / listing for listing in LISTINGS)
        if built_in.exists():
            listing = subprocesses.run(["ar", "t", str(built_in.relative_to(tree))], cwd=tree)
            objects += [tree / member for member in listing.splitlines()]
        if order.exists():
            # Linux 6.1 lists the modules as they are called after linking, which is not done here.
            modules += re.sub(r"\.ko$", ".o", order.read_text(), flags=re.MULTILINE).splitlines()
    return [
        unit("the kernel", False, objects),
        *(unit(module, True, [tree / module]) for module in modules),
    ]


def unit(name: str, module: bool, objects: Sequence[Path]) -> Unit:
    """Read the symbols of these objects."""
    defined, used, exported = set(), set(), set()
    for line in subprocesses.run(["nm", "--format=posix", *map(str, objects)]).splitlines():
        symbol, kind, *_ = f"{line} ".split(" ")
        if match := EXPORTED.fullmatch(symbol):
            exported.add(match[1])
        elif kind == "U":
            used.add(symbol)
        elif kind.isupper():
            defined.add(symbol)
    return Unit(name, module, frozenset(defined), frozenset(used - defined), frozenset(exported))


def exported_in(tree: Path) -> frozenset[str]:
    """Return the symbols that any source of the kernel exports.

    Also what is an argument of a macro that exports something, since one of them is the symbol.
    """
    argv = ["grep", "-rlE", "EXPORT_\\w*SYMBOL", "--include=*.[cS]", "."]
    found: set[str] = set()
    for name in subprocesses.run(argv, cwd=tree).splitlines():
        text = (tree / name).read_text(errors="replace").replace("\\\n", " ")
        found.update(EXPORT.findall(text))
        for macro in EXPORTING_MACRO.findall(text):
            for arguments in re.findall(rf"^{macro}\(([^)]*)\)", text, re.MULTILINE):
                found.update(word.strip() for word in arguments.split(","))
    return frozenset(found)
