# SPDX-License-Identifier: Apache-2.0
"""A copy of the series with one patch changed: in a git tree, and exported again, so that later patches still apply."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness import tree
from farwatch_harness.matrix.applying import git, make_repository
from farwatch_harness.series import Patch


@dataclass(frozen=True)
class Edit:
    """`anchor` in `file`, as it is after the patch, becomes `text`."""

    file: str
    anchor: str
    text: str


def export(place: Path, base: str, headings: Sequence[str], folder: Path) -> None:
    """The commits since the base as a series, each under its heading."""
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
    names = sorted(path.name for path in folder.glob("*.patch"))
    lines = [f"# {heading}\n{name}\n" for heading, name in zip(headings, names, strict=True)]
    (folder / "series").write_text("".join(lines))


def edited_series(patches: Sequence[Patch], number: int, edit: Edit, place: Path) -> Path:
    """The series in a folder below `place`: what patch `number`, from 1, does is edited, the others do as before."""
    repository = place / "tree"
    make_repository(repository, tree.find_source().path, patches)
    base = git(repository, "rev-parse", "HEAD").strip()
    for patch in patches:
        git(repository, "am", stdin=patch.content)
    commits = git(repository, "rev-list", "--reverse", f"{base}..HEAD").splitlines()
    git(repository, "checkout", "--quiet", "--detach", commits[number - 1])
    path = repository / edit.file
    text = path.read_text()
    assert text.count(edit.anchor) == 1, f"{edit.file} has changed: choose another place to edit"
    path.write_text(text.replace(edit.anchor, edit.text))
    git(repository, "commit", "--quiet", "--all", "--amend", "--no-edit")
    if commits[number:]:
        git(repository, "cherry-pick", *commits[number:])
    export(repository, base, [patch.section for patch in patches], place / "series")
    return place / "series"
