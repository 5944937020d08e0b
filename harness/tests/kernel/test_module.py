# SPDX-License-Identifier: Apache-2.0
"""The module's sources, on a made-up kernel source and made-up series."""

from pathlib import Path

import pytest
from farwatch_harness.kernel import module, source_tree, versions
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

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
        versions.DEFAULT.folder.name: ("include/uapi/linux/fuse.h", "wire", "events"),
        f"module/{versions.DEFAULT.module_folder.name}": ("fs/fuse/dev.c", "dev", "module"),
    }
    for folder, (name, old, new) in changes.items():
        place = tmp_path / "patches" / folder
        place.mkdir(parents=True)
        (place / "0001-it.patch").write_text(PATCH.format(name=name, old=old, new=new))
        (place / "series").write_text("0001-it.patch\n")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    monkeypatch.setattr(paths, "MODULE_PATCHES", tmp_path / "patches" / "module")
    monkeypatch.setattr(source_tree, "find_source", lambda _: KernelSource("linux", tree, True))
    return tree


def test_sources_have_both_series_and_nothing_else_of_the_kernel(source: Path) -> None:
    assert module.sources(versions.DEFAULT) == {
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
    module.write_sources(folder, module.sources(versions.DEFAULT))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dev.c",
        "fuse_i.h",
        "include/linux/fuse.h",
        "include/linux/virtio_fs.h",
    ]


def test_dkms_gets_the_sources_of_each_version_in_a_directory_of_its_own(
    source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dkms"
    folder.mkdir()
    (folder / "stale").touch()
    module.write_sources_for(folder, versions.with_module())
    assert [path.name for path in folder.iterdir()] == [f"linux-{versions.DEFAULT.name}"]
    assert (folder / f"linux-{versions.DEFAULT.name}" / "dev.c").read_text() == "module\n"


def test_a_version_without_a_module_is_one_line_for_the_user(source: Path) -> None:
    with pytest.raises(HarnessError, match=r"no module for Linux 6\.18: choose 6\.12$"):
        module.sources(versions.named("6.18"))


@pytest.mark.parametrize(
    ("release", "name"), [("6.1.0-56-amd64", "6.1"), ("6.12.117+deb13-amd64", "6.12")]
)
def test_the_headers_say_which_version_the_module_is_for(
    tmp_path: Path, release: str, name: str
) -> None:
    (tmp_path / "include" / "config").mkdir(parents=True)
    (tmp_path / "include" / "config" / "kernel.release").write_text(f"{release}\n")
    assert versions.for_headers(tmp_path).name == name


def test_headers_of_another_version_are_one_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no headers of a kernel"):
        versions.for_headers(tmp_path)
    (tmp_path / "include" / "config").mkdir(parents=True)
    (tmp_path / "include" / "config" / "kernel.release").write_text("6.6.87-1\n")
    with pytest.raises(
        HarnessError, match=r"Linux 6\.6\.87-1, and there are modules for"
    ) as caught:
        versions.for_headers(tmp_path)
    assert "\n" not in str(caught.value)


def test_there_are_modules_for_debian_s_kernels() -> None:
    assert [version.name for version in versions.with_module()] == ["6.12", "6.1"]
