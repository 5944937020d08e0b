# SPDX-License-Identifier: Apache-2.0
"""`make send`: prepares the mails that would post the series, and sends nothing.

The mails are the cover letter and the patches with their base. A file lists the recipients.
"""

import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import series, source_tree
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix.apply_check import git, make_repository
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

FOLDER = paths.CHECKOUT / "build" / "send"
LETTER = paths.CHECKOUT / "patches" / "cover-letter.txt"
README = paths.CHECKOUT / "patches" / "README.md"
#: The first line of the README's table of review comments and their answers.
REVIEW = "| asked by | asked for | answer |"
RFC = "https://lore.kernel.org/linux-fsdevel/20211025204634.2517-1-iangelak@redhat.com/"
#: What was asked of the SMB client's change notifications.
SMB = (
    "https://lore.kernel.org/linux-fsdevel/"
    "CAOQ4uxjxG7KCwsHYv3Oi+t1pwjLS8jUoiAroXtzTatu3+11CWg@mail.gmail.com/"
)
WIDTH = 72
GET_MAINTAINER = ("scripts/get_maintainer.pl", "--no-git", "--no-git-fallback")


@dataclass(frozen=True)
class PreparedMails:
    """The mails that were written.

    mails: in the order in which they would be sent.
    public_base: true if the base is a commit of a tree that others have.
    """

    mails: list[Path]
    recipients: Path
    public_base: bool


def prepare(
    patches: Sequence[Patch], kernel: Path | None = None, folder: Path = FOLDER
) -> PreparedMails:
    """Write the mails into `folder`, which is emptied first.

    kernel: a git tree whose commit is the base, and whose MAINTAINERS name the recipients. Without
        it both are those of the kernel source; the base is then a commit that is made here.
    HarnessError: the series does not apply there.
    """
    if kernel is None:
        source = source_tree.find_source()
        tree, name_of_tree = source.path, source.identity
    else:
        tree, name_of_tree = kernel, str(kernel)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="farwatch-send-") as name:
        repository = Path(name) / "tree"
        if kernel is None:
            make_repository(repository, tree, patches)
        else:
            sparse_clone(kernel, repository, patches)
        base = git(repository, "rev-parse", "HEAD").strip()
        for patch in patches:
            try:
                git(repository, "am", stdin=patch.content)
            except HarnessError as error:
                raise HarnessError(
                    f"{patch.file} does not apply to {name_of_tree}: {error}"
                ) from None
        words = [
            "format-patch",
            "--quiet",
            "--cover-letter",
            f"--base={base}",
            f"--output-directory={folder}",
            base,
        ]
        # The letter's author is the user who runs this.
        git(repository, *series.committer(kernel or paths.CHECKOUT), *words)
    mails = sorted(folder.glob("*.patch"))
    fill_letter(mails[0], name_of_tree if kernel is None else f"commit {base}")
    recipients = folder / "recipients.txt"
    recipients.write_text(maintainers(tree, mails[1:]))
    return PreparedMails(mails, recipients, kernel is not None)


def sparse_clone(kernel: Path, repository: Path, patches: Sequence[Patch]) -> None:
    """Clone the user's tree with only the touched files checked out; only read the tree itself."""
    if not (kernel / ".git").exists():
        raise HarnessError(f"{kernel} is no git tree: the base of a series is a commit")
    repository.mkdir(parents=True)
    git(repository, "clone", "--quiet", "--shared", "--no-checkout", str(kernel), ".")
    patterns = "".join(f"/{file}\n" for file in series.touched_files(patches))
    git(repository, "sparse-checkout", "set", "--no-cone", "--stdin", stdin=patterns.encode())
    git(repository, "checkout", "--quiet")


def fill_letter(mail: Path, base: str) -> None:
    """Put our subject and text into the cover letter that git made."""
    subject, _, text = LETTER.read_text().partition("\n\n")
    answers = "\n".join(answered(README.read_text()))
    blurb = (
        f"{text.strip()}\n\nThe series is based on {base}.\n\n[1] {RFC}\n[2] {SMB}\n\nWhat the"
        " review of the RFC asked for\n"
    )
    blurb += f"------------------------------------\n\n{answers}"
    letter = mail.read_text()
    for mark, words in (
        ("*** SUBJECT HERE ***", subject.strip()),
        ("*** BLURB HERE ***", blurb.rstrip()),
    ):
        if letter.count(mark) != 1:
            raise HarnessError(f"git format-patch made a cover letter without '{mark}'")
        letter = letter.replace(mark, words)
    mail.write_text(letter)


def answered(readme: str) -> Iterator[str]:
    """Yield the README's table of review comments as lines for a mail.

    HarnessError: the README has no such table.
    """
    _, found, rest = readme.partition(f"{REVIEW}\n")
    if not found:
        raise HarnessError(f"{README} has no table '{REVIEW}'")
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            return
        who, what, answer = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
        yield from textwrap.wrap(f"- {who}: {what}", WIDTH, subsequent_indent="  ")
        yield from textwrap.wrap(
            answer, WIDTH, initial_indent="    -> ", subsequent_indent="       "
        )
        yield ""


def maintainers(source: Path, mails: Sequence[Path]) -> str:
    """Return the output of get_maintainer.pl for all patches together, and for each."""
    parts = [f"# All\n{get_maintainer(source, mails)}"]
    parts += [f"# {mail.name}\n{get_maintainer(source, [mail])}" for mail in mails]
    return "\n".join(parts)


def get_maintainer(source: Path, mails: Sequence[Path]) -> str:
    """Return the output of get_maintainer.pl of the kernel's own tree."""
    argv = ["perl", *GET_MAINTAINER, *(str(mail) for mail in mails)]
    done = subprocess.run(argv, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"get_maintainer.pl fails: {done.stderr.strip() or done.returncode}")
    return done.stdout
