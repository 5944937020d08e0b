# SPDX-License-Identifier: Apache-2.0
"""A deliberately broken patch fails its own checks, with real builds and guests.

The patches are broken in a git tree and exported again, so that the ones after them still apply. In
ascending order, as then less is to be built: about 12 minutes on 2 cores.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from farwatch_harness.kernel import source_tree, versions
from farwatch_harness.kernel.series import Patch, number_of, read_series
from farwatch_harness.matrix.apply_check import git, make_repository
from farwatch_harness.results import PatchResult, Status, load
from farwatch_harness.util import paths

LETTERS = {Status.PASSED: "p", Status.FAILED: "F", Status.BLOCKED: "b", Status.SKIPPED: "."}
LIMIT = 3000.0


@dataclass(frozen=True)
class Break:
    """What is changed in one patch, and the expected results in the order of CheckName.

    anchor: text in `file`, as it is after the patch.
    text: replaces the anchor.
    cells: the results of the patch and of those after it.
    """

    patch: str
    file: str
    anchor: str
    text: str
    cells: tuple[str, ...]
    check: str
    reason: str


INIT = "\tret = init_srcu_struct(&fsnotify_mark_srcu);\n"
LOOP = "if (events & ~FUSE_FSN_DELETE_SELF & fuse_fsnotify_bits[i].fuse)"
BREAKS = {
    "a compile error in update-mark": Break(
        "update-mark",
        "fs/fuse/fsnotify.c",
        '#include "fuse_i.h"\n',
        '#include "fuse_i.h"\n#error broken on purpose\n',
        ("ppFbbb", "ppbbbb"),
        "build",
        r"fs/fuse/fsnotify\.c:\d+:\d+: error: #error broken on purpose",
    ),
    "a checkpatch error in fsnotify-wrapper": Break(
        "fsnotify-wrapper",
        "fs/notify/fsnotify.c",
        INIT,
        f"        /* indented by spaces on purpose */\n{INIT}",
        ("pFpppp",),
        "checkpatch",
        r"ERROR:CODE_INDENT: code indent should use tabs where possible",
    ),
    "an oops at boot in fsnotify-event": Break(
        "fsnotify-event",
        "fs/notify/fsnotify.c",
        INIT,
        # A cache that is made only later; checkpatch would complain of BUG().
        f"\tkmem_cache_size(fsnotify_mark_connector_cachep);\n{INIT}",
        ("ppppFb",),
        "boot",
        r"kernel NULL pointer dereference",
    ),
    "a lost event in notifications": Break(
        "notifications",
        "fs/fuse/fsnotify.c",
        LOOP,
        LOOP.replace("~FUSE_FSN_DELETE_SELF", "~(FUSE_FSN_DELETE_SELF | FUSE_FSN_CREATE)"),
        ("pppppF",),
        "tests",
        r"test_\w+\.py::test_\w+.*",
    ),
}


def export(place: Path, base: str, patches: Sequence[Patch], folder: Path) -> None:
    """Export the commits since the base as a series, with sections and names of `patches`."""
    folder.mkdir()
    words = [
        "format-patch",
        "--quiet",
        "--no-numbered",
        "--zero-commit",
        "--no-signature",
        f"--output-directory={folder}",
    ]
    git(place, *words, base)
    files = sorted(path.name for path in folder.glob("*.patch"))
    lines = [
        f"# {patch.section}\n# name: {patch.name}\n{file}\n"
        for patch, file in zip(patches, files, strict=True)
    ]
    (folder / "series").write_text("".join(lines))


def broken_series(patches: Sequence[Patch], broken: Break, place: Path) -> Path:
    """Return a copy of the series with one patch broken; the other patches do as before."""
    number = number_of(broken.patch, patches)
    repository = place / "tree"
    make_repository(repository, source_tree.find_source().path, patches)
    base = git(repository, "rev-parse", "HEAD").strip()
    for patch in patches:
        git(repository, "am", stdin=patch.content)
    commits = git(repository, "rev-list", "--reverse", f"{base}..HEAD").splitlines()
    git(repository, "checkout", "--quiet", "--detach", commits[number - 1])
    path = repository / broken.file
    text = path.read_text()
    assert text.count(broken.anchor) == 1, (
        f"{broken.file} has changed: choose another place to break it"
    )
    path.write_text(text.replace(broken.anchor, broken.text))
    git(repository, "commit", "--quiet", "--all", "--amend", "--no-edit")
    if commits[number:]:
        git(repository, "cherry-pick", *commits[number:])
    export(repository, base, patches, place / "series")
    return place / "series"


def cells(patch: PatchResult) -> str:
    return "".join(LETTERS[check.status] for check in patch.checks)


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
def test_broken_patch_fails_its_own_checks(broken: Break, tmp_path: Path) -> None:
    patches = read_series(versions.current().folder)
    series = broken_series(patches, broken, tmp_path)
    number = number_of(broken.patch, patches)
    chosen = f"{number}-{number + len(broken.cells) - 1}"
    results = tmp_path / "report" / "results.json"
    words = ["matrix", f"--series={series}", f"--patch={chosen}", f"--output={results}"]
    done = subprocess.run(
        [sys.executable, "-m", "farwatch_harness.cli", *words],
        cwd=paths.CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    checked = load(results).patches
    assert [cells(patch) for patch in checked] == ["pppppp", *broken.cells], done.stdout
    assert re.search(
        rf"^FAILED {re.escape(checked[1].title)}: {broken.check}: .*{broken.reason}",
        done.stdout,
        re.MULTILINE,
    )
    (failed,) = checked[1].failed
    assert re.search(broken.reason, failed.reason) and re.search(
        broken.reason, failed.output + str(checked[1].tests)
    )
    page = (results.parent / "index.html").read_text()
    assert re.search(broken.reason.replace("&", "&amp;"), page)
