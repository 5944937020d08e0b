# SPDX-License-Identifier: Apache-2.0
"""The combinations of options, and what is found by comparing the symbols of objects."""

import subprocess
from pathlib import Path

import pytest
from farwatch_harness.matrix.option_checks import (
    DIRECTORIES,
    DRIVERS,
    REPORTER,
    WATCHERS,
    Unit,
    combinations,
    exported_in,
    title,
    units_of,
    unresolved,
)

KERNEL = Unit("the kernel", False, frozenset({"a", "b"}), frozenset({"printk"}), frozenset({"a"}))
OURS = frozenset({"a", "b", "c", "m"})


def module(name: str, *used: str) -> Unit:
    return Unit(name, True, frozenset({f"{name}_init"}), frozenset(used), frozenset())


def test_every_set_of_watchers_and_of_drivers_occurs_once() -> None:
    found = combinations()
    watchers = [tuple(options[name] for name in WATCHERS) for options in found]
    drivers = [
        (options["CONFIG_FSNOTIFY"], options["CONFIG_FUSE_FS"], options["CONFIG_VIRTIO_FS"])
        for options in found
    ]
    assert len({title(options) for options in found}) == len(found)
    assert len(set(watchers)) == 2**3
    assert set(drivers) == {(fsnotify, *pair) for fsnotify in "ny" for pair in DRIVERS}
    assert all(
        options["CONFIG_FSNOTIFY"] == max(options[name] for name in WATCHERS) for options in found
    )
    assert all(
        options["CONFIG_MODULES"] == ("y" if "m" in options.values() else "n") for options in found
    )


def test_symbol_that_only_another_combination_defines_is_a_fault() -> None:
    used = Unit("the kernel", False, frozenset({"a"}), frozenset({"c"}), frozenset())
    assert unresolved([used], OURS, frozenset()) == [
        "error: the kernel: c is not defined or not exported"
    ]
    assert unresolved([KERNEL], OURS, frozenset()) == [], "the rest of the kernel has printk"


def test_module_may_use_what_is_exported_and_nothing_else() -> None:
    fuse = module("fuse", "a", "b", "printk", "internal")
    found = unresolved([KERNEL, fuse], OURS, frozenset({"printk"}))
    assert [line.split()[2] for line in found] == ["b", "internal"]


@pytest.mark.parametrize(
    ("exported", "suffix"), [("__export_symbol_", "o"), ("__ksymtab_", "ko")], ids=["6.12", "6.1"]
)
def test_symbols_are_read_from_what_was_compiled_now(
    exported: str, suffix: str, tmp_path: Path
) -> None:
    sources = {
        "fs/namei": "void fsnotify(void); void namei(void) { fsnotify(); }",
        "fs/notify/mark": f'void fsnotify(void) {{}}\nasm("{exported}fsnotify: .quad 0");',
        "fs/notify/old": "void not_compiled_now(void) {}",
        "fs/fuse/fuse": "void fsnotify(void); void fuse(void) { fsnotify(); }",
    }
    for name, text in sources.items():
        path = tmp_path / f"{name}.c"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        subprocess.run(["gcc", "-c", "-o", path.with_suffix(".o"), path], check=True)
    for name, members, modules in (
        ("fs/notify", ["fs/notify/mark.o"], ""),
        ("fs/fuse", [], f"fs/fuse/fuse.{suffix}\n"),
    ):
        argv = ["ar", "cDPrT", f"{name}/built-in.a", *members]
        subprocess.run(argv, cwd=tmp_path, check=True)
        (tmp_path / name / "modules.order").write_text(modules)
    kernel, fuse = units_of(tmp_path)
    assert set(DIRECTORIES) == {"fs/notify", "fs/fuse"}
    assert REPORTER == "fs/namei.o"
    assert kernel == Unit(
        "the kernel", False, frozenset({"fsnotify", "namei"}), frozenset(), frozenset({"fsnotify"})
    )
    assert (fuse.name, fuse.module, set(fuse.used)) == ("fs/fuse/fuse.o", True, {"fsnotify"})
    assert unresolved([kernel, fuse], frozenset({"fsnotify"}), frozenset()) == []


def test_exports_of_all_kinds_are_found(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.c").write_text("EXPORT_SYMBOL(one);\nEXPORT_SYMBOL_GPL(two);\n")
    (tmp_path / "lib/b.S").write_text("EXPORT_SYMBOL_NS(three, SPACE)\n")
    (tmp_path / "lib/c.h").write_text("EXPORT_SYMBOL(header)\n")
    (tmp_path / "lib/d.c").write_text(
        "#define define_level(func, level) \\\nint func(void) {} \\\nEXPORT_SYMBOL(func)\n"
        "define_level(four, KERN_INFO);\n"
    )
    assert exported_in(tmp_path) >= {"one", "two", "three", "four"}
    assert not exported_in(tmp_path) & {"header", "five"}
