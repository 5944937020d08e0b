# SPDX-License-Identifier: Apache-2.0
"""The module's sources, on a made-up kernel source and made-up series."""

from pathlib import Path

import pytest
from farwatch_harness.kernel import module, source_tree, versions
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.util import paths

# patch(1).
pytestmark = pytest.mark.packages

PATCH = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Person <person@example.org>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] {name}

Why.
---
--- a/{name}
+++ b/{name}
@@ -1 +1 @@
-{old}
+{new}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a kernel source, a series that changes a header, and a module's series.

    The module's series changes dev.c.
    """
    files = {
        "fs/fuse/dev.c": "dev",
        "fs/fuse/fuse_i.h": "declarations",
        "fs/fuse/Makefile": "rules",
        "fs/fuse/Kconfig": "options",
        "fs/ext4/inode.c": "other",
        "include/uapi/linux/fuse.h": "wire",
        "include/uapi/linux/virtio_fs.h": "device",
    }
    tree = tmp_path / "linux"
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{text}\n")
    changes = {
        versions.current().folder.name: ("include/uapi/linux/fuse.h", "wire", "events"),
        "module": ("fs/fuse/dev.c", "dev", "module"),
    }
    for folder, (name, old, new) in changes.items():
        place = tmp_path / "patches" / folder
        place.mkdir(parents=True)
        (place / "0001-it.patch").write_text(PATCH.format(name=name, old=old, new=new))
        (place / "series").write_text("0001-it.patch\n")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    monkeypatch.setattr(paths, "MODULE_PATCHES", tmp_path / "patches" / "module")
    monkeypatch.setattr(source_tree, "find_source", lambda: KernelSource("linux", tree, True))
    return tree


def test_sources_have_both_series_and_nothing_else_of_the_kernel(source: Path) -> None:
    assert module.sources() == {
        "Makefile": b"rules\n",
        "dev.c": b"module\n",
        "fuse_i.h": b"declarations\n",
        "include/linux/fuse.h": b"events\n",
        "include/linux/virtio_fs.h": b"device\n",
    }


def test_writing_removes_what_is_no_source(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / "dev.o").write_text("stale")
    module.write_sources(folder, module.sources())
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dev.c",
        "fuse_i.h",
        "include/linux/fuse.h",
        "include/linux/virtio_fs.h",
    ]
