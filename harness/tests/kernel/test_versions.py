# SPDX-License-Identifier: Apache-2.0
"""Kernel versions: which series a tree gets, and where a version's configuration differs."""

from pathlib import Path

import pytest
from farwatch_harness import cli, report
from farwatch_harness.kernel import build, series, source_tree, versions
from farwatch_harness.kernel.versions import KernelVersion
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.util.errors import HarnessError

MAKEFILE = """# SPDX-License-Identifier: GPL-2.0
VERSION = {0}
PATCHLEVEL = {1}
SUBLEVEL = {2}
EXTRAVERSION ={3}
NAME = Baby Opossum Posse
"""
PATCH = """--- a/fs/fuse/dev.c
+++ b/fs/fuse/dev.c
@@ -1,1 +1,1 @@
-base
+{0}
"""
OLD = KernelVersion("6.12", "linux-source-6.12")
NEW = KernelVersion(
    "7.3", "linux-source-7.3", options={"CONFIG_PREEMPT_VOLUNTARY": None, "CONFIG_SECURITY": "y"}
)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout with a series for each of two versions; 6.12 is the default."""
    for version in (OLD, NEW):
        folder = tmp_path / "patches" / f"linux-{version.name}"
        folder.mkdir(parents=True)
        (folder / "0001-a.patch").write_text(PATCH.format(version.name))
        (folder / "series").write_text("0001-a.patch\n")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    monkeypatch.setattr(versions, "VERSIONS", (OLD, NEW))
    monkeypatch.setattr(versions, "DEFAULT", OLD)
    # setenv, so that what a command sets is undone.
    monkeypatch.setenv(versions.VARIABLE, "")
    return tmp_path


def make_tree(place: Path, *version: str) -> Path:
    """Make a kernel source tree of this version."""
    (place / "fs" / "fuse").mkdir(parents=True)
    (place / "fs" / "fuse" / "dev.c").write_text("base\n")
    (place / "Kbuild").write_text("")
    (place / "Makefile").write_text(MAKEFILE.format(*version))
    return place


@pytest.mark.parametrize(
    ("numbers", "release", "name"),
    [
        (("6", "12", "117", ""), "6.12.117", "6.12"),
        (("6", "12", "0", " -rc3"), "6.12.0-rc3", "6.12"),
        (("7", "3", "4", ""), "7.3.4", "7.3"),
    ],
)
def test_a_tree_gets_the_series_of_its_version(
    numbers: tuple[str, ...], release: str, name: str, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", *numbers)
    assert versions.release_of(tree) == release
    assert versions.for_tree(tree).name == name


@pytest.mark.parametrize("numbers", [("6", "1", "192", ""), ("7", "31", "0", "")])
def test_a_tree_of_another_version_is_refused_with_the_versions_that_there_are(
    numbers: tuple[str, ...], tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", *numbers)
    with pytest.raises(HarnessError, match=r"is Linux .* series for 6\.12, 7\.3; .*=6\.12"):
        versions.for_tree(tree)


def test_the_variable_chooses_another_series_for_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(tmp_path / "tree", "6", "1", "192", "")
    monkeypatch.setenv(versions.VARIABLE, "7.3")
    assert versions.for_tree(tree) is NEW


@pytest.mark.parametrize("text", [None, "all:\n\techo VERSION = 6\n", "VERSION = 6\n"])
def test_a_directory_without_a_kernel_s_makefile_is_no_tree(
    text: str | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "Makefile").write_text(text)
    with pytest.raises(HarnessError, match="is not a kernel source tree"):
        versions.for_tree(tmp_path)


# patch(1).
@pytest.mark.packages
def test_apply_finds_the_series_and_names_its_version(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(tmp_path / "tree", "7", "3", "4", "")
    assert cli.main(["apply", str(tree)]) == 0
    assert (tree / "fs" / "fuse" / "dev.c").read_text() == "7.3\n"
    assert "7.3.4 takes the series for Linux 7.3: 1 patches applied" in capfd.readouterr().err


def test_a_version_without_a_series_is_refused_before_anything_is_done(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--kernel", "6.6", "kernel"]) == 1
    error = capfd.readouterr().err
    assert error == "farwatch: there is no series for Linux 6.6: choose 6.12, 7.3\n"


def test_a_version_s_options_replace_add_and_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build.Flavour.NORMAL.options()
    assert plain["CONFIG_PREEMPT_VOLUNTARY"] == "y" and "CONFIG_SECURITY" not in plain
    monkeypatch.setenv(versions.VARIABLE, "7.3")
    changed = build.Flavour.NORMAL.options()
    assert "CONFIG_PREEMPT_VOLUNTARY" not in changed and changed["CONFIG_SECURITY"] == "y"
    assert {**plain, **changed} == {**plain, "CONFIG_SECURITY": "y"}


def test_a_version_s_source_is_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(source_tree.OVERRIDE, raising=False)
    monkeypatch.setattr(source_tree, "TARBALLS", tmp_path / "nothing is installed")
    for package in ("linux-source-6.12_1", "linux-source-7.3_2"):
        unpacked = tmp_path / "cache" / "farwatch" / "sources" / package
        unpacked.mkdir(parents=True)
        tarballs = tmp_path / "cache" / "farwatch" / "packages" / package / "usr" / "src"
        tarballs.mkdir(parents=True)
        (tarballs / f"{package.partition('_')[0]}.tar.xz").touch()
    assert source_tree.find_source().identity == "linux-source-6.12_1"
    monkeypatch.setenv(versions.VARIABLE, "7.3")
    assert source_tree.find_source().identity == "linux-source-7.3_2"


def test_an_upstream_version_is_the_newest_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    versions_of_the_package = ("6.17.13-1~bpo13+1", "6.18.9-1", "6.18.15-1~bpo13+1", "6.180.1-1")
    text = "".join(f"Package: linux\nVersion: {version}\n" for version in versions_of_the_package)
    monkeypatch.setattr(subprocesses, "run", lambda argv, env: text)
    upstream = KernelVersion("6.18", "linux", "trixie-backports", upstream=True)
    assert source_tree.available_version(upstream, {}) == "6.18.15-1~bpo13+1"
    other = KernelVersion("6.19", "linux", "trixie-backports", upstream=True)
    assert source_tree.available_version(other, {}) is None


def test_test_kernels_checks_the_last_patch_of_each_other_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[list[str]] = []

    def run(words: list[str], _environment: object) -> int:
        commands.append(words[-4:])
        return 1

    monkeypatch.setattr(cli, "run_to_end", run)
    monkeypatch.setattr(paths, "REPORT", paths.CHECKOUT / "report")
    assert cli.main(["test-kernels"]) == 1
    assert commands == [["7.3", "matrix", "--patch", "last"]]


def test_each_version_has_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.folder() == paths.REPORT
    monkeypatch.setenv(versions.VARIABLE, "7.3")
    assert report.folder() == paths.REPORT / "linux-7.3"


def test_the_series_of_all_versions_have_patches_of_the_same_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    names = [patch.name for patch in series.read_series(versions.DEFAULT.folder)]
    for version in versions.VERSIONS:
        assert [patch.name for patch in series.read_series(version.folder)] == names


def test_the_workflow_checks_each_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    workflow = (paths.CHECKOUT / ".github" / "workflows" / "series.yml").read_text()
    names = [f'"{version.name}"' for version in versions.VERSIONS if version != versions.DEFAULT]
    assert f"kernel: [{', '.join(names)}]" in workflow
