# SPDX-License-Identifier: Apache-2.0
"""What happens to the watched directory: the ways in which programs change files.

A watcher of a tree adds a watch for a new directory when it reads of it. What is made in it before
is reported or not, natively as well, so new directories are steps of their own.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Files of one step that makes many.
MANY = 200


@dataclass(frozen=True)
class FileChange:
    """One change of a directory."""

    name: str
    act: Callable[[Path], None]


def prepare(directory: Path) -> None:
    """Make what the steps change."""
    for name in ("edited", "saved", "vim", "jetbrains", "moved", "deleted"):
        (directory / f"{name}.txt").write_text("before\n")
    (directory / "tree/below").mkdir(parents=True)
    (directory / "tree/below/a.txt").write_text("before\n")
    for version in ("v1", "v2"):
        (directory / version).mkdir()
        (directory / version / "key.txt").write_text(f"{version}\n")
    (directory / "..data").symlink_to("v1")
    (directory / "key.txt").symlink_to("..data/key.txt")


def edit(directory: Path) -> None:
    """Append to a file."""
    with (directory / "edited.txt").open("a") as file:
        file.write("after\n")


def save(directory: Path) -> None:
    """Write a temporary file, and rename it over the name."""
    (directory / "saved.txt.tmp").write_text("after\n")
    (directory / "saved.txt.tmp").rename(directory / "saved.txt")


def save_as_vim(directory: Path) -> None:
    """Rename the file to a backup, write the name again, remove the backup."""
    file, backup = directory / "vim.txt", directory / "vim.txt~"
    file.rename(backup)
    file.write_text("after\n")
    backup.unlink()


def save_as_jetbrains(directory: Path) -> None:
    """Write a new file, rename the old one away, rename the new one, remove the old one."""
    file = directory / "jetbrains.txt"
    new, old = directory / "jetbrains.txt___jb_tmp___", directory / "jetbrains.txt___jb_old___"
    new.write_text("after\n")
    file.rename(old)
    new.rename(file)
    old.unlink()


def create(directory: Path) -> None:
    """Write a new file."""
    (directory / "new.txt").write_text("new\n")


def rename(directory: Path) -> None:
    """Rename a file."""
    (directory / "moved.txt").rename(directory / "renamed.txt")


def delete(directory: Path) -> None:
    """Delete a file."""
    (directory / "deleted.txt").unlink()


def remove_tree(directory: Path) -> None:
    """Delete a directory with what is in it."""
    shutil.rmtree(directory / "tree")


def make_directory(directory: Path) -> None:
    """Make the deleted directory again."""
    (directory / "tree").mkdir()


def make_directory_below(directory: Path) -> None:
    """Make a directory in it."""
    (directory / "tree/below").mkdir()


def create_in_tree(directory: Path) -> None:
    """Write a file in that."""
    (directory / "tree/below/a.txt").write_text("again\n")


def edit_in_tree(directory: Path) -> None:
    """Change a file in the new directory."""
    with (directory / "tree/below/a.txt").open("a") as file:
        file.write("after\n")


def swap(directory: Path) -> None:
    """Point a symbolic link to another directory, as Kubernetes does with a ConfigMap."""
    (directory / "..data_tmp").symlink_to("v2")
    (directory / "..data_tmp").rename(directory / "..data")
    shutil.rmtree(directory / "v1")


def write_many(directory: Path) -> None:
    """Write many files."""
    for number in range(MANY):
        (directory / f"many{number:03}.txt").write_text("new\n")


STEPS = (
    FileChange("edit", edit),
    FileChange("atomic save", save),
    FileChange("save as vim", save_as_vim),
    FileChange("save as JetBrains", save_as_jetbrains),
    FileChange("create", create),
    FileChange("rename", rename),
    FileChange("delete", delete),
    FileChange("remove a tree", remove_tree),
    FileChange("make it again", make_directory),
    FileChange("make a directory in it", make_directory_below),
    FileChange("create in that", create_in_tree),
    FileChange("edit in it", edit_in_tree),
    FileChange("symlink swap", swap),
    FileChange(f"{MANY} files", write_many),
)
