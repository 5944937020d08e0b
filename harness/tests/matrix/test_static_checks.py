# SPDX-License-Identifier: Apache-2.0
"""The check with sparse: the arguments of make, and that sparse ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from farwatch_harness.kernel import build
from farwatch_harness.kernel.series import Patch
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.static_checks import CHECKER, CHECKER_TEST, StaticChecks
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.util.errors import HarnessError

PATCH = Patch(1, "0001-a.patch", b"--- a/fs/fuse/dev.c\n+++ b/fs/fuse/dev.c\n", "", "a")
BASE = Prefix((), (PATCH,))


class Make:
    """Stands for make(1): it prints `said` and keeps its arguments."""

    def __init__(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said = "  CHECK   fs/fuse/dev.c\n"
        self.words: list[str] = []
        (tree / "fs" / "fuse").mkdir(parents=True)
        recipe = SimpleNamespace(key="key", title="a kernel")
        monkeypatch.setattr(build, "recipe_of", lambda patches: recipe)
        monkeypatch.setattr(build, "prepared", self.prepared)
        monkeypatch.setattr(build, "run_make", self.run)
        monkeypatch.setattr(subprocesses, "run", lambda argv: "0.6.4\n")
        monkeypatch.setattr(paths, "LOGS", tree)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
        self.tree = tree

    @contextmanager
    def prepared(self, _recipe: object) -> Iterator[build.BuildTree]:
        yield build.BuildTree(self.tree, 0)

    def run(self, words: list[str], _tree: build.BuildTree, log: Path) -> Iterator[str]:
        self.words = words
        log.write_text(self.said)
        yield from self.said.splitlines()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return Make(tmp_path, monkeypatch)


def test_sparse_reads_the_directories_of_the_series(make: Make) -> None:
    checks = StaticChecks(KernelSource("linux", make.tree, in_cache=True))
    assert checks.run_sparse(BASE).output == make.said
    assert make.words[1:] == ["C=2", "fs/fuse/"]


def test_sparse_learns_a_word_where_the_kernel_tests_for_it(make: Make) -> None:
    (make.tree / CHECKER_TEST).parent.mkdir()
    (make.tree / CHECKER_TEST).touch()
    StaticChecks(KernelSource("linux", make.tree, in_cache=True)).run_sparse(BASE)
    assert make.words[1:] == ["C=2", CHECKER, "fs/fuse/"]


def test_sparse_that_did_not_run_is_an_error(make: Make) -> None:
    make.said = "C=2 specified, but sparse is not available or not up to date\n"
    checks = StaticChecks(KernelSource("linux", make.tree, in_cache=True))
    with pytest.raises(HarnessError, match=r"make C=2 did not run sparse 0\.6\.4"):
        checks.run_sparse(BASE)
