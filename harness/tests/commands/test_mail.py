# SPDX-License-Identifier: Apache-2.0
"""The mails that would post the series, made from a small tree and our own words."""

import subprocess
from pathlib import Path

import pytest
from farwatch_harness.commands import mail
from farwatch_harness.kernel import source_tree
from farwatch_harness.kernel.series import Patch
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.matrix.apply_check import git
from farwatch_harness.util.errors import HarnessError

PATCH = b"""From 1 Mon Sep 17 00:00:00 2001
From: A <a@example.org>
Date: Tue, 24 Nov 2026 09:19:48 +0000
Subject: [PATCH] fuse: Change it

Why.
---
diff --git a/fs/fuse/dev.c b/fs/fuse/dev.c
--- a/fs/fuse/dev.c
+++ b/fs/fuse/dev.c
@@ -1 +1 @@
-before
+after
"""
PATCHES = [Patch(1, "0001-fuse-Change-it.patch", PATCH)]
SCRIPT = "print join(' ', map { s{.*/}{}r } @ARGV), qq{\\n};\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "linux"
    (place / "fs" / "fuse").mkdir(parents=True)
    (place / "fs" / "fuse" / "dev.c").write_text("before\n")
    (place / "scripts").mkdir()
    (place / "scripts" / "get_maintainer.pl").write_text(SCRIPT)
    monkeypatch.setattr(
        "farwatch_harness.kernel.source_tree.find_source",
        lambda: KernelSource("linux-6.12", place, in_cache=True),
    )
    return place


def test_mails_are_complete_and_answer_the_review(source: Path, tmp_path: Path) -> None:
    prepared = mail.prepare(PATCHES, None, tmp_path / "send")
    letter, patch = (mail.read_text() for mail in prepared.mails)
    assert [mail.name for mail in prepared.mails] == [
        "0000-cover-letter.patch",
        "0001-fuse-Change-it.patch",
    ]
    assert "Subject: [PATCH 0/1] fuse, fsnotify: " in letter and "***" not in letter
    assert "based on linux-6.12" in letter and mail.RFC in letter and mail.SMB in letter
    assert "- Vivek Goyal: no file handles from the guest\n    -> none are used\n" in letter
    assert "base-commit: " in letter and "Subject: [PATCH 1/1] fuse: Change it" in patch
    assert max(len(line) for line in letter.splitlines() if "://" not in line) <= 80
    assert not prepared.public_base
    recipients = prepared.recipients.read_text()
    assert recipients.count("--no-git --no-git-fallback 0001-fuse-Change-it.patch") == 2


def test_base_is_the_commit_of_the_unchanged_user_tree(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(source, "init", "--quiet")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message=base")
    commit = git(source, "rev-parse", "HEAD").strip()
    # The series of another version is for a tree that is not the harness's source.
    monkeypatch.setattr(source_tree, "find_source", lambda: pytest.fail("only the tree is read"))
    prepared = mail.prepare(PATCHES, source, tmp_path / "send")
    assert f"base-commit: {commit}" in prepared.mails[0].read_text() and prepared.public_base
    assert "0001-fuse-Change-it.patch" in prepared.recipients.read_text()
    state = subprocess.run(
        ["git", "status", "--porcelain"], cwd=source, capture_output=True, check=True
    )
    assert state.stdout == b"" and git(source, "rev-parse", "HEAD").strip() == commit


def test_unusable_tree_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no git tree"):
        mail.prepare(PATCHES, source, tmp_path / "send")
    (source / "fs" / "fuse" / "dev.c").write_text("other\n")
    with pytest.raises(
        HarnessError, match=r"0001-fuse-Change-it.patch does not apply to linux-6\.12"
    ):
        mail.prepare(PATCHES, None, tmp_path / "send")


def test_a_readme_without_the_table_is_an_error() -> None:
    with pytest.raises(HarnessError, match="has no table"):
        list(mail.answered("# The series\n"))
