# SPDX-License-Identifier: Apache-2.0
"""Build trees and configurations, with a made-up source and without a compiler."""

from pathlib import Path

import pytest
from farwatch_harness.kernel import build, series
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.util.errors import HarnessError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSource:
    """Return a made-up source in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "cache" / "farwatch" / "sources" / "linux"
    (tree / "fs").mkdir(parents=True)
    for name in ("one.c", "two.c", "three.c"):
        (tree / "fs" / name).write_text(f"{name}\n")
    return KernelSource("linux", tree, in_cache=True)


def state_of(tree: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every source file."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tree / "fs").iterdir()
    }


def test_only_files_that_differ_are_replaced(source: KernelSource) -> None:
    tree = build.prepare_tree(
        "linux-normal", source, {"fs/one.c": b"patched\n", "fs/two.c": b"patched\n"}
    )
    before = state_of(tree)
    build.prepare_tree("linux-normal", source, {"fs/one.c": b"patched\n", "fs/two.c": b"again\n"})
    after = state_of(tree)
    assert {name for name in after if after[name] != before[name]} == {"two.c"}


def test_shorter_series_restores_files_of_the_source(source: KernelSource) -> None:
    tree = build.prepare_tree(
        "linux-normal", source, {"fs/one.c": b"patched\n", "fs/new.c": b"new\n", "fs/two.c": None}
    )
    assert sorted(path.name for path in (tree / "fs").iterdir()) == ["new.c", "one.c", "three.c"]
    build.prepare_tree("linux-normal", source, {})
    assert {path.name: path.read_text() for path in (tree / "fs").iterdir()} == {
        name: f"{name}\n" for name in ("one.c", "two.c", "three.c")
    }


def test_source_is_never_changed(source: KernelSource) -> None:
    build.prepare_tree("linux-normal", source, {"fs/one.c": b"patched\n"})
    assert (source.path / "fs" / "one.c").read_text() == "one.c\n"


def test_failed_build_has_compiler_errors_and_caches_nothing(
    source: KernelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makefile = (
        "tinyconfig:\n\techo CONFIG_A=y > .config\nolddefconfig:\nbzImage:\n\t@echo 'a.c:1: error:"
        " no'; exit 1\n"
    )
    (source.path / "Makefile").write_text(makefile)
    monkeypatch.setattr("farwatch_harness.util.paths.LOGS", tmp_path / "logs")
    monkeypatch.setattr("farwatch_harness.kernel.source_tree.find_source", lambda: source)
    monkeypatch.setattr(
        "farwatch_harness.kernel.build.Flavour.options", lambda _flavour: {"CONFIG_A": "y"}
    )
    with pytest.raises(
        HarnessError, match=r"(?s)kernel-build-linux-normal-.*\.log.*a\.c:1: error: no"
    ):
        build.build([])
    assert list((tmp_path / "cache" / "farwatch" / "kernels").iterdir()) == []


def test_options_that_the_kernel_refuses_are_named(
    source: KernelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.path / "Makefile").write_text(
        "tinyconfig:\n\techo > .config\nolddefconfig:\n\techo CONFIG_A=y > .config\n"
    )
    monkeypatch.setattr("farwatch_harness.util.paths.LOGS", tmp_path / "logs")
    with (tmp_path / "lock").open("w") as lock:
        tree = build.BuildTree(build.prepare_tree("linux-normal", source, {}), lock.fileno())
        build.configure(tree, {"CONFIG_A": "y", "CONFIG_OFF": "n"})
        with pytest.raises(HarnessError, match="CONFIG_B"):
            build.configure(tree, {"CONFIG_A": "y", "CONFIG_B": "y"})


def test_patch_edited_after_it_was_read_is_built_as_read(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("0001-a.patch\n")
    (tmp_path / "0001-a.patch").write_bytes(b"before")
    (patch,) = series.read_series(tmp_path)
    (tmp_path / "0001-a.patch").write_bytes(b"after")
    assert patch.content == b"before"
