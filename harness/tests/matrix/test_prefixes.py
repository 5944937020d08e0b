# SPDX-License-Identifier: Apache-2.0
"""The rows that are asked for, what a patch says of itself, which patch a test's mark names."""

import pytest
from farwatch_harness.kernel.series import Patch, number_of
from farwatch_harness.matrix.prefixes import Prefix, chosen, select_prefixes, unchecked_result
from farwatch_harness.util.errors import HarnessError

MAIL = b"""From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: =?UTF-8?q?J=C3=B6rg?= <joerg@example.org>
Date: Tue, 24 Nov 2026 09:19:48 +0000
Subject: [PATCH v2 3/7] FUSE: Add a thing whose name is so long that it
 goes on

It is wanted.

--- is not a separator

Signed-off-by: J\xc3\xb6rg <joerg@example.org>
---
 fs/one.c | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/fs/one.c b/fs/one.c
index 1..2 100644
--- a/fs/one.c
+++ b/fs/one.c
@@ -1 +1 @@
-a
+b
-- 
2.39.5

"""
SERIES = (
    Patch(1, "0001-a.patch", b"", "Prerequisites: the queue", "first-queue"),
    Patch(2, "0002-b.patch", b"", "Prerequisites: the queue", "second-queue"),
    Patch(3, "0003-c.patch", MAIL, "The series", "uapi"),
    Patch(4, "0004-d.patch", b"", "Additions", "overflow"),
)


def test_base_is_part_of_every_choice() -> None:
    assert [prefix.number for prefix in select_prefixes(SERIES, None)] == [0, 1, 2, 3, 4]
    assert [prefix.number for prefix in select_prefixes(SERIES, "3")] == [0, 3]
    assert [prefix.number for prefix in select_prefixes(SERIES, "1,3-4")] == [0, 1, 3, 4]
    assert [prefix.number for prefix in select_prefixes(SERIES, "0-2")] == [0, 1, 2]
    assert [prefix.number for prefix in select_prefixes(SERIES, "base")] == [0]
    assert [prefix.number for prefix in select_prefixes(SERIES, "last")] == [0, 4]
    assert [prefix.number for prefix in select_prefixes(SERIES, "overflow, first-queue")] == [
        0,
        1,
        4,
    ]
    assert [prefix.last for prefix in select_prefixes(SERIES, "3-4")] == [False, False, True]


@pytest.mark.parametrize("choice", ["", "x", "5", "3-9", "4-3", "1-", "-1", "1;2", "oveflow"])
def test_choice_of_an_unknown_patch_is_refused(choice: str) -> None:
    with pytest.raises(HarnessError):
        chosen(choice, SERIES)


def test_prefix_describes_its_patch() -> None:
    result = unchecked_result(Prefix(SERIES[:3], SERIES), "linux")
    assert (result.number, result.file, result.section) == (3, "0003-c.patch", "The series")
    assert result.subject == "FUSE: Add a thing whose name is so long that it goes on"
    assert (
        result.message
        == "It is wanted.\n\n--- is not a separator\n\nSigned-off-by: Jörg <joerg@example.org>"
    )
    assert result.diffstat == " fs/one.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)"
    assert result.diff.startswith(
        "diff --git a/fs/one.c b/fs/one.c\nindex"
    ) and result.diff.endswith("-a\n+b\n")
    assert unchecked_result(Prefix((), SERIES), "linux").subject == "The base: linux"


def test_patch_is_found_by_its_name() -> None:
    assert [number_of(name, SERIES) for name in ("base", "first-queue", "overflow")] == [0, 1, 4]
    with pytest.raises(HarnessError, match=r"no patch 'oveflow'; the series has base, first-queue"):
        number_of("oveflow", SERIES)
