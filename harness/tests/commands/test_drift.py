# SPDX-License-Identifier: Apache-2.0
"""`make drift`: each series on the newest release of its version, patch by patch."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from farwatch_harness import cli
from farwatch_harness.kernel import source_tree, versions
from farwatch_harness.kernel.versions import KernelVersion
from farwatch_harness.util import apt, paths

# patch(1).
pytestmark = pytest.mark.packages

PATCH = """--- a/fs/fuse/dev.c
+++ b/fs/fuse/dev.c
@@ -{0},1 +{0},1 @@
-{1}
+{2}
"""
OTHER_FILE = """--- /dev/null
+++ b/fs/fuse/new.c
@@ -0,0 +1,1 @@
+new
"""
Release = Callable[[str], None]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Return what gives the newest release of Linux 7.3 this content of its one file."""
    folder = tmp_path / "checkout" / "patches" / "linux-7.3"
    folder.mkdir(parents=True)
    (folder / "0001-a.patch").write_text(PATCH.format(1, "one", "first"))
    (folder / "0002-b.patch").write_text(PATCH.format(1, "first", "second"))
    (folder / "0003-c.patch").write_text(OTHER_FILE)
    (folder / "series").write_text("0001-a.patch\n0002-b.patch\n0003-c.patch\n")
    version = KernelVersion("7.3", "linux-source-7.3")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(versions, "VERSIONS", (version,))
    monkeypatch.setattr(apt, "run_apt", lambda words, log, step: None)
    monkeypatch.setenv(versions.VARIABLE, "")

    def publish(content: str) -> None:
        source = tmp_path / "linux-source-7.3"
        (source / "fs" / "fuse").mkdir(parents=True)
        (source / "fs" / "fuse" / "dev.c").write_text(content)
        (source / "fs" / "fuse" / "untouched.c").write_text("")
        package = tmp_path / "linux-source-7.3_7.3.9-1"
        (package / "usr" / "src").mkdir(parents=True)
        with tarfile.open(package / "usr" / "src" / "linux-source-7.3.tar.xz", "w:xz") as tarball:
            tarball.add(source, source.name)
        monkeypatch.setattr(source_tree, "fetch_newest", lambda kernel: package)

    return publish


def test_series_that_fits_is_one_line(release: Release, capfd: pytest.CaptureFixture[str]) -> None:
    release("one\n")
    assert cli.main(["drift"]) == 0
    assert capfd.readouterr().out == "linux-source-7.3_7.3.9-1: all 3 patches apply\n"


def test_patches_that_need_work_are_named_and_fail_the_command(
    release: Release, capfd: pytest.CaptureFixture[str]
) -> None:
    release("another\n")
    assert cli.main(["drift"]) == 1
    head, *lines = capfd.readouterr().out.splitlines()
    assert head == "linux-source-7.3_7.3.9-1: 2 of 3 patches need work"
    assert [line.split()[:2] for line in lines] == [["0001", "a:"], ["0002", "b:"]]


def test_file_that_a_release_does_not_have_needs_work(
    release: Release, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    release("one\n")
    (tmp_path / "checkout" / "patches" / "linux-7.3" / "0002-b.patch").write_text(
        PATCH.format(1, "one", "two").replace("dev.c", "gone.c")
    )
    assert cli.main(["drift"]) == 1
    assert "1 of 3 patches need work" in capfd.readouterr().out
