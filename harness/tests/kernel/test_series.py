# SPDX-License-Identifier: Apache-2.0
"""Reading the series file, and applying patches to plain trees and git trees."""

import subprocess
from pathlib import Path

import pytest
from farwatch_harness.kernel import series
from farwatch_harness.util.errors import HarnessError

# patch(1).
pytestmark = pytest.mark.packages

MAIL = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Person <person@example.org>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] {subject}

Why.
---
{diff}-- 
2.39.5

"""
FIRST = """--- a/fs/fuse/dev.c
+++ b/fs/fuse/dev.c
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""
SECOND = """--- /dev/null
+++ b/fs/fuse/notify.c
@@ -0,0 +1 @@
+new
--- a/fs/fuse/dev.c
+++ b/fs/fuse/dev.c
@@ -1,3 +1,4 @@
 one
 TWO
 three
+four
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a series of two patches."""
    place = tmp_path / "patches"
    place.mkdir()
    (place / "0001-first.patch").write_text(MAIL.format(subject="first", diff=FIRST))
    (place / "0002-second.patch").write_text(MAIL.format(subject="second", diff=SECOND))
    (place / "series").write_text("# Section\n0001-first.patch\n\n0002-second.patch  # why\n")
    return place


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As much of a kernel tree as the series needs."""
    place = tmp_path / "linux"
    (place / "fs" / "fuse").mkdir(parents=True)
    (place / "Kbuild").write_text("\n")
    (place / "fs" / "fuse" / "dev.c").write_text("one\ntwo\nthree\n")
    return place


def git(tree: Path, *words: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, *words], cwd=tree, check=True, capture_output=True, text=True
    ).stdout


def as_git(tree: Path) -> str:
    """Make the tree a git tree with one commit; return that commit."""
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message=base")
    return git(tree, "rev-parse", "HEAD").strip()


def files_of(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_series_file_gives_order_and_may_have_comments(folder: Path) -> None:
    assert [(patch.number, patch.file) for patch in series.read_series(folder)] == [
        (1, "0001-first.patch"),
        (2, "0002-second.patch"),
    ]


def test_name_is_read_from_the_comment_above_the_patch(folder: Path) -> None:
    listing = folder / "series"
    listing.write_text("# Section\n# name: one\n0001-first.patch\n0002-second.patch\n")
    found = [(patch.name, patch.section) for patch in series.read_series(folder)]
    assert found == [("one", "Section"), ("second", "Section")]


@pytest.mark.parametrize("name", ["second", "base"])
def test_name_of_two_patches_is_an_error(folder: Path, name: str) -> None:
    (folder / "series").write_text(f"# name: {name}\n0001-first.patch\n0002-second.patch\n")
    with pytest.raises(HarnessError, match=f"two patches have the name {name}"):
        series.read_series(folder)


def test_missing_patch_is_named(folder: Path) -> None:
    (folder / "0002-second.patch").unlink()
    with pytest.raises(HarnessError, match=r"0002-second\.patch"):
        series.read_series(folder)


def test_touched_files_are_changed_and_added_files(folder: Path) -> None:
    assert series.touched_files(series.read_series(folder)) == ["fs/fuse/dev.c", "fs/fuse/notify.c"]


def test_content_is_computed_for_a_prefix_without_touching_the_tree(
    folder: Path, tree: Path
) -> None:
    before = files_of(tree)
    patches = series.read_series(folder)
    assert series.patched_content(tree, patches[:1]) == {"fs/fuse/dev.c": b"one\nTWO\nthree\n"}
    assert series.patched_content(tree, patches)["fs/fuse/notify.c"] == b"new\n"
    assert files_of(tree) == before


def test_plain_tree_gets_all_patches(folder: Path, tree: Path) -> None:
    series.apply_to(tree, series.read_series(folder))
    assert (tree / "fs/fuse/dev.c").read_text() == "one\nTWO\nthree\nfour\n"
    assert (tree / "fs/fuse/notify.c").read_text() == "new\n"


def test_plain_tree_stays_unchanged_if_a_patch_does_not_apply(folder: Path, tree: Path) -> None:
    (folder / "0002-second.patch").write_text(
        MAIL.format(subject="second", diff=SECOND.replace(" three", " drei"))
    )
    before = files_of(tree)
    with pytest.raises(HarnessError, match=r"0002-second\.patch does not apply.*left as it was"):
        series.apply_to(tree, series.read_series(folder))
    assert files_of(tree) == before


def test_fuzz_is_refused(folder: Path, tree: Path) -> None:
    (tree / "fs/fuse/dev.c").write_text("uno\ntwo\nthree\n")
    with pytest.raises(HarnessError, match=r"0001-first\.patch"):
        series.apply_to(tree, series.read_series(folder))


def test_git_tree_gets_one_commit_per_patch(folder: Path, tree: Path) -> None:
    as_git(tree)
    series.apply_to(tree, series.read_series(folder))
    assert git(tree, "log", "--format=%s").split() == ["second", "first", "base"]
    assert git(tree, "status", "--porcelain") == ""


def test_commits_have_the_committer_of_the_tree(folder: Path, tree: Path) -> None:
    as_git(tree)
    git(tree, "config", "user.name", "Some Person")
    git(tree, "config", "user.email", "person@example.org")
    series.apply_to(tree, series.read_series(folder))
    assert (
        git(tree, "log", "-1", "--format=%an %cn %ce")
        == "A Person Some Person person@example.org\n"
    )


def test_git_tree_keeps_its_head_if_a_patch_does_not_apply(folder: Path, tree: Path) -> None:
    (tree / "fs/fuse/dev.c").write_text("one\nzwei\nthree\n")
    head = as_git(tree)
    with pytest.raises(HarnessError, match=r"0001-first\.patch does not apply"):
        series.apply_to(tree, series.read_series(folder))
    assert git(tree, "rev-parse", "HEAD").strip() == head
    assert git(tree, "status", "--porcelain") == ""


def test_git_tree_stays_unchanged_if_git_am_refuses_a_patch(folder: Path, tree: Path) -> None:
    # patch(1) needs no author, git am does: the first commit must be taken back.
    (folder / "0002-second.patch").write_text(SECOND)
    head = as_git(tree)
    with pytest.raises(HarnessError, match=r"0002-second\.patch does not apply"):
        series.apply_to(tree, series.read_series(folder))
    assert git(tree, "rev-parse", "HEAD").strip() == head
    assert git(tree, "status", "--porcelain") == ""
    assert not (tree / ".git" / "rebase-apply").exists()


def test_git_tree_with_uncommitted_changes_is_refused(folder: Path, tree: Path) -> None:
    as_git(tree)
    (tree / "Kbuild").write_text("mine\n")
    with pytest.raises(HarnessError, match="commit or stash"):
        series.apply_to(tree, series.read_series(folder))
    assert (tree / "Kbuild").read_text() == "mine\n"


def test_directory_without_kernel_source_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not a kernel source tree"):
        series.apply_to(tmp_path, series.read_series(folder))


def test_unchanged_file_keeps_its_inode_and_hard_links_are_broken(
    tree: Path,
) -> None:
    linked = tree / "fs/fuse/dev.c"
    other = tree / "other"
    other.hardlink_to(linked)
    inode = linked.stat().st_ino
    assert series.replace_files(tree, {"fs/fuse/dev.c": b"one\ntwo\nthree\n"}) == []
    assert linked.stat().st_ino == inode
    assert series.replace_files(tree, {"fs/fuse/dev.c": b"changed\n"}) == ["fs/fuse/dev.c"]
    assert other.read_text() == "one\ntwo\nthree\n"
