# SPDX-License-Identifier: Apache-2.0
"""Each mutant applies to the series without fuzz, so that `make mutants` can run it."""

import shutil
from pathlib import Path

import pytest
from farwatch_harness.commands import mutants
from farwatch_harness.kernel import series, versions
from farwatch_harness.kernel.source_tree import find_source

pytestmark = pytest.mark.patch("remote-opt-out")

NAMES = sorted(path.stem for path in mutants.FOLDER.glob("*.patch"))


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files that the series touches, with all patches, of the version of mutants."""
    folder = tmp_path_factory.mktemp("patched")
    patches = series.read_series(versions.DEFAULT.folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("FARWATCH_KERNEL", raising=False)
        tree = find_source().path
    for name, data in series.patched_content(tree, patches).items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_mutant_applies_to_the_series(name: str, patched: Path, tmp_path: Path) -> None:
    (mutant,) = mutants.read_mutants(mutants.FOLDER, [name])
    patch = series.Patch(1, name, mutant.patch, "", name)
    for file in patch.touched():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(patched / file, tmp_path / file)
    assert series.apply_one(tmp_path, patch)
