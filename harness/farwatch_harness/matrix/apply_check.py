# SPDX-License-Identifier: Apache-2.0
"""The check that a patch applies: with patch(1) and no fuzz, as quilt does, and with git am."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from farwatch_harness.kernel.series import Patch, apply_one, touched_files
from farwatch_harness.matrix.check_outcome import CheckOutcome, failure
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError

IDENTITY = ("-c", "user.name=Farwatch", "-c", "user.email=farwatch@localhost")
BASE = "The files that the series touches"


def git(tree: Path, *words: str, stdin: bytes = b"") -> str:
    """Run git in the tree, without the user's own settings."""
    settings = (*IDENTITY, "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    return subprocesses.run(["git", *settings, *words], cwd=tree, stdin=stdin)


def make_repository(place: Path, source: Path, patches: Sequence[Patch]) -> None:
    """Make a git repository of the source's files that the patches touch."""
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
    """Copy the source's files that the patches touch to the new directory `place`."""
    place.mkdir(parents=True)
    for name in touched_files(patches):
        if (source / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place / name)


class ApplyCheck:
    """Applies the series patch by patch, to copies of the files that it touches."""

    def __init__(self, place: Path, source: Path, patches: Sequence[Patch]) -> None:
        self.plain = place / "plain"
        self.repository = place / "git"
        self.applied = 0
        self.refused: str | None = None
        copy_touched(self.plain, source, patches)
        make_repository(self.repository, source, patches)

    def check(self, prefix: Prefix) -> CheckOutcome:
        """Check that the patches of this prefix apply; prefixes come in ascending order."""
        output = ""
        for patch in prefix.patches[self.applied :]:
            try:
                output = apply_one(self.plain, patch)
            except HarnessError as error:
                return failure(
                    str(error).removeprefix(f"{patch.file} ")
                    if patch is prefix.patch
                    else str(error)
                )
            try:
                said = git(self.repository, "am", stdin=patch.content)
            except HarnessError as error:
                return failure(
                    f"git am refuses {'it' if patch is prefix.patch else patch.file}: {error}",
                    output,
                )
            output += said
            if "warning: " in said:
                complaint = next(line for line in said.splitlines() if "warning: " in line)
                return failure(f"git am complains: {complaint}", output, usable=True)
            self.applied = patch.number
        return CheckOutcome(output=output)


@contextmanager
def apply_check(source: Path, patches: Sequence[Patch]) -> Iterator[ApplyCheck]:
    """Return an ApplyCheck. Its copies are removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="farwatch-apply-") as name:
        yield ApplyCheck(Path(name), source, patches)
