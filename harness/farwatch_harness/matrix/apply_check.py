# SPDX-License-Identifier: Apache-2.0
"""The check that a patch applies: by patch(1) with no fuzz, as quilt does it, and by git am without
a complaint."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from farwatch_harness.kernel.series import Patch, apply_one, touched_files
from farwatch_harness.matrix.check_outcome import Outcome, failure
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError

IDENTITY = ("-c", "user.name=Farwatch", "-c", "user.email=farwatch@localhost")
BASE = "The files that the series touches"


def git(tree: Path, *words: str, stdin: bytes = b"") -> str:
    """Runs git in the tree, whatever the user's own settings are."""
    settings = (*IDENTITY, "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    return subprocesses.run(["git", *settings, *words], cwd=tree, stdin=stdin)


def make_repository(place: Path, source: Path, patches: Sequence[Patch]) -> None:
    """A git repository with just the files of the source that the patches touch."""
    copy_touched(place, source, patches)
    git(place, "init", "--quiet", "--initial-branch=series")
    git(place, "add", "--all", "--force")
    git(
        place,
        "commit",
        "--quiet",
        "--allow-empty",
        f"--message={BASE}",
        "--date=2026-01-01T00:00:00Z",
    )


def copy_touched(place: Path, source: Path, patches: Sequence[Patch]) -> None:
    place.mkdir(parents=True)
    for name in touched_files(patches):
        if (source / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place / name)


class Applier:
    """Applies the series patch by patch, to copies of the files that it touches."""

    def __init__(self, place: Path, source: Path, patches: Sequence[Patch]) -> None:
        self.plain = place / "plain"
        self.repository = place / "git"
        self.applied = 0
        self.refused: str | None = None
        copy_touched(self.plain, source, patches)
        make_repository(self.repository, source, patches)

    def check(self, row: Row) -> Outcome:
        """Whether the patches up to this row apply; rows come in ascending order."""
        output = ""
        for patch in row.patches[self.applied :]:
            try:
                output = apply_one(self.plain, patch)
            except HarnessError as error:
                return failure(
                    str(error).removeprefix(f"{patch.file} ") if patch is row.patch else str(error)
                )
            try:
                said = git(self.repository, "am", stdin=patch.content)
            except HarnessError as error:
                return failure(
                    f"git am refuses {'it' if patch is row.patch else patch.file}: {error}", output
                )
            output += said
            if "warning: " in said:
                complaint = next(line for line in said.splitlines() if "warning: " in line)
                return failure(f"git am complains: {complaint}", output, usable=True)
            self.applied = patch.number
        return Outcome(output=output)


@contextmanager
def applier(source: Path, patches: Sequence[Patch]) -> Iterator[Applier]:
    """An Applier, whose copies go when the block ends."""
    with tempfile.TemporaryDirectory(prefix="farwatch-apply-") as name:
        yield Applier(Path(name), source, patches)
