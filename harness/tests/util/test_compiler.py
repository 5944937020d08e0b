# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are complete when they can be seen, and are compiled once."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from farwatch_harness.util import compiler
from farwatch_harness.util.errors import HarnessError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def source(folder: Path, text: str) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


def status(program: Path) -> int:
    return subprocess.run([program], check=False, timeout=10).returncode


def test_program_is_compiled_once_for_each_source_and_flags(tmp_path: Path) -> None:
    path = source(tmp_path, "int main(void) { return ANSWER; }\n")
    first, second = compiler.program(path, "-DANSWER=3"), compiler.program(path, "-DANSWER=4")
    assert (status(first), status(second)) == (3, 4)
    made = first.stat()
    assert compiler.program(path, "-DANSWER=3") == first
    assert first.stat() == made
    source(tmp_path, "int main(void) { return 5; }\n")
    assert status(compiler.program(path, "-DANSWER=3")) == 5


def test_program_runs_for_each_that_compiles_it_concurrently(tmp_path: Path) -> None:
    path = source(tmp_path, "int main(void) { return 0; }\n")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: status(compiler.program(path)), range(8)))
    assert found == [0] * 8


def test_compiler_errors_are_reported(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="nothing"):
        compiler.program(source(tmp_path, "int main(void) { return nothing; }\n"))
