# SPDX-License-Identifier: Apache-2.0
"""The patch series: reads its quilt `series` file and applies patches to a kernel tree.

Before a tree is changed, the patches are applied to copies of the files that they touch. A tree
that the series does not fit therefore stays unchanged.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import subprocesses
from farwatch_harness.util.errors import HarnessError

HEADER = re.compile(rb"^(?:---|\+\+\+) (?:[ab]/)?([^\t\n]+)", re.MULTILINE)
NOWHERE = b"/dev/null"
#: A comment of the series file that gives the next patch its name.
NAME = re.compile(r"#\s*name:\s*([a-z0-9-]+)\s*")
#: Names the kernel without a patch, where a patch's name is expected.
BASE = "base"


@dataclass(frozen=True)
class Patch:
    """One patch of the series, as it was when the series was read.

    number: counts from 1 in the order of the series file, for people. It changes when a patch is
    inserted before this one.
    name: does not change; tests name a patch by it.
    section: the heading above the patch in the series file.
    """

    number: int
    file: str
    content: bytes
    section: str = ""
    name: str = ""

    @property
    def title(self) -> str:
        """Number and name, for people."""
        return f"{self.number:04} {self.name}"

    def touched(self) -> list[str]:
        """Return the files that the patch changes, adds or removes, relative to the kernel tree."""
        names = {name for name in HEADER.findall(self.content) if name != NOWHERE}
        return sorted(name.decode() for name in names)


def read_series(folder: Path) -> list[Patch]:
    """Read the patches that `folder`/series lists, in order.

    A comment "# name: NAME" names the patch below it; other comments are headings of sections. A
    patch without such a comment has the name of its file, without number and ending.

    HarnessError: a patch is missing, has an option, or has the name of another one.
    """
    listing = folder / "series"
    if not listing.is_file():
        raise HarnessError(f"{listing} is missing: it names the patches in their order")
    patches: list[Patch] = []
    section = name = ""
    for line in listing.read_text().splitlines():
        if named := NAME.fullmatch(line):
            name = named[1]
            continue
        if line.startswith("#"):
            section = line.lstrip("# ").rstrip()
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) > 1:
            raise HarnessError(
                f"{listing}: '{line}' has more than a name; patches are applied with -p1 and no"
                " options"
            )
        path = folder / words[0]
        if not path.is_file():
            raise HarnessError(f"{listing} names {words[0]}, which is not there")
        name = name or path.stem.lstrip("0123456789").lstrip("-")
        if name == BASE or any(patch.name == name for patch in patches):
            raise HarnessError(f"{listing}: two patches have the name {name}; choose another one")
        patches.append(Patch(len(patches) + 1, path.name, path.read_bytes(), section, name))
        name = ""
    return patches


def number_of(name: str, patches: Sequence[Patch]) -> int:
    """Return the number of the patch with this name; "base" is 0.

    HarnessError: no patch has this name.
    """
    numbers = {BASE: 0, **{patch.name: patch.number for patch in patches}}
    if name not in numbers:
        raise HarnessError(f"there is no patch '{name}'; the series has {', '.join(numbers)}")
    return numbers[name]


def touched_files(patches: Iterable[Patch]) -> list[str]:
    """Return all files that any of the patches touches."""
    return sorted({name for patch in patches for name in patch.touched()})


def patched_content(tree: Path, patches: Sequence[Patch]) -> dict[str, bytes | None]:
    """Return the content of the touched files with the patches applied; None for a removed file.

    `tree` is only read. patch(1) applies without fuzz.
    HarnessError: names the first patch that does not apply.
    """
    names = touched_files(patches)
    with tempfile.TemporaryDirectory(prefix="farwatch-series-") as scratch_name:
        scratch = Path(scratch_name)
        for name in names:
            if (tree / name).is_file():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / name, scratch / name)
        for patch in patches:
            apply_one(scratch, patch)
        return {
            name: (scratch / name).read_bytes() if (scratch / name).is_file() else None
            for name in names
        }


def apply_one(tree: Path, patch: Patch) -> str:
    """Apply one patch without fuzz; return the output of patch(1).

    HarnessError: the patch does not apply; `tree` may be half changed then.
    """
    argv = ["patch", "-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--reject-file=-"]
    try:
        done = subprocess.run(argv, cwd=tree, input=patch.content, capture_output=True, check=False)
    except FileNotFoundError:
        raise HarnessError("patch(1) is not installed: apt-get install patch") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        good = ("patching file ", "succeeded at ")
        complaints = [
            line for line in output.splitlines() if not any(words in line for words in good)
        ]
        raise HarnessError(
            f"{patch.file} does not apply:"
            f" {subprocesses.last_lines(chr(10).join(complaints), lines=2)}"
        )
    return output


def apply_to(tree: Path, patches: Sequence[Patch]) -> str:
    """Apply the series to `tree`, as commits in a git tree, else to its files.

    Return a line for the user that says what was done.
    """
    if not (tree / "fs" / "fuse").is_dir() or not (tree / "Kbuild").is_file():
        raise HarnessError(f"{tree} is not a kernel source tree; give one with KERNEL=DIR")
    try:
        content = patched_content(tree, patches)
    except HarnessError as error:
        raise HarnessError(f"{error}; {tree} is left as it was") from None
    if (tree / ".git").exists():
        apply_as_commits(tree, patches)
        return f"{len(patches)} commits made in {tree}"
    replace_files(tree, content)
    return f"{len(patches)} patches applied to {tree}"


def apply_as_commits(tree: Path, patches: Sequence[Patch]) -> None:
    """Apply the series with `git am`.

    The commits are made in a clone that has only the touched files checked out, and reach the tree
    in one step. HarnessError: names the patch that does not apply.
    """
    if subprocesses.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=tree).strip():
        raise HarnessError(f"{tree} has changes that are not committed: commit or stash them first")
    if (tree / ".git" / "rebase-apply").exists():
        raise HarnessError(f"{tree} is in the middle of a git am: end it with git am --abort first")
    with tempfile.TemporaryDirectory(prefix="farwatch-series-") as name:
        clone = Path(name) / "tree"
        subprocesses.run(["git", "clone", "--quiet", "--shared", "--no-checkout", tree, clone])
        patterns = "".join(f"/{file}\n" for file in touched_files(patches))
        subprocesses.run(
            ["git", "sparse-checkout", "set", "--no-cone", "--stdin"],
            cwd=clone,
            stdin=patterns.encode(),
        )
        subprocesses.run(["git", "checkout", "--quiet"], cwd=clone)
        for patch in patches:
            argv = ["git", *committer(tree), "am", "--quiet"]
            done = subprocess.run(
                argv, cwd=clone, input=patch.content, capture_output=True, check=False
            )
            if done.returncode != 0:
                # git's first lines say what is wrong. Its last lines are advice for the clone,
                # which the user never sees.
                reason = " / ".join(
                    (done.stderr or done.stdout).decode(errors="replace").splitlines()[:2]
                )
                raise HarnessError(
                    f"{patch.file} does not apply: {reason}; {tree} is left as it was"
                )
        subprocesses.run(["git", "fetch", "--quiet", clone, "HEAD"], cwd=tree)
        subprocesses.run(["git", "merge", "--quiet", "--ff-only", "FETCH_HEAD"], cwd=tree)


def committer(tree: Path) -> list[str]:
    """Return options that give git the tree's own committer; ours if it has none."""
    options: list[str] = []
    for name, fallback in (("user.name", "Farwatch"), ("user.email", "farwatch@localhost")):
        known = subprocess.run(
            ["git", "config", name], cwd=tree, capture_output=True, text=True, check=False
        )
        options += ["-c", f"{name}={known.stdout.strip() or fallback}"]
    return options


def replace_files(tree: Path, content: Mapping[str, bytes | None]) -> list[str]:
    """Give the files of `tree` this content; return those that changed.

    On failure all files get their old content again. A file whose content is right is not touched,
    so that make(1) does not compile it again. A changed file is a new file with the old name:
    another tree may share the old one by a hard link.
    """
    before = {
        name: (tree / name).read_bytes() if (tree / name).is_file() else None for name in content
    }
    changed = [name for name in content if before[name] != content[name]]
    try:
        for name in changed:
            put_file(tree / name, content[name])
    except BaseException:
        for name in changed:
            put_file(tree / name, before[name])
        raise
    return changed


def put_file(path: Path, data: bytes | None) -> None:
    """Replace one file but keep its mode; None removes the file."""
    if data is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".farwatch-{path.name}")
    fresh.write_bytes(data)
    fresh.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o644)
    fresh.replace(path)
