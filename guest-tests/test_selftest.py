# SPDX-License-Identifier: Apache-2.0
"""The tests of the series itself: the selftest, and the unit tests of the debug kernel.

The selftest is built from its patch and runs in the guest, with a server on /dev/fuse that refuses,
delays and reports as each test orders. The debug kernel has run the unit tests at boot.
"""

import os
import re
from pathlib import Path

import pytest
from farwatch_harness.kernel import series
from farwatch_harness.kernel.source_tree import find_source
from farwatch_harness.kernel.versions import current
from farwatch_harness.util import cache, paths, subprocesses
from farwatch_harness.vm.guest_client import CompletedProcess, Guest

pytestmark = pytest.mark.patch("events-selftest")

SELFTESTS = "tools/testing/selftests"
SOURCE = f"{SELFTESTS}/filesystems/fuse/fuse_fsnotify_test.c"
HEADER = "include/uapi/linux/fuse.h"
HARNESS = ("kselftest.h", "kselftest_harness.h")
#: Seconds for one test in the guest; its own limit is at most 120.
LIMIT = 150.0
#: Seconds for all tests in one run: they take one minute, and four on a busy host.
WHOLE_LIMIT = 600.0


def patches() -> list[series.Patch]:
    """Return the series of this run."""
    return series.read_series(Path(os.environ.get("FARWATCH_SERIES") or current().folder))


def selftests() -> list[object]:
    """Return the names of the tests, each marked with the patch that adds it."""
    return [
        pytest.param(name, marks=pytest.mark.patch(patch.name))
        for patch in patches()
        for name in re.findall(
            r"^\+TEST_F(?:_TIMEOUT)?\(fsnotify, (\w+)", patch.content.decode(), re.MULTILINE
        )
    ]


@pytest.fixture(scope="module")
def program() -> Path:
    """Compile the selftest with the header of the series, without a warning; cached."""
    tree = find_source().path
    content = series.patched_content(tree, patches())
    needed = {Path(name).name: (tree / SELFTESTS / name).read_bytes() for name in HARNESS}
    for name in (SOURCE, HEADER):
        data = content[name]
        assert data is not None
        needed[Path(name).name] = data

    def make(target: Path) -> None:
        folder = target / "filesystems" / "fuse"
        for where in (folder, target / "linux"):
            where.mkdir(parents=True)
        for name, data in needed.items():
            where = {"fuse.h": target / "linux", Path(SOURCE).name: folder}.get(name, target)
            (where / name).write_bytes(data)
        flags = ["-Wall", "-Werror", "-O2", "-isystem", str(target)]
        program = ["-o", str(target / "test"), str(folder / Path(SOURCE).name), "-lpthread"]
        subprocesses.run(["gcc", *flags, *program])

    key = cache.content_key(*needed.values())
    return cache.published(paths.cache_root() / "programs" / f"selftest-{key}", make) / "test"


def runs_one_test() -> bool:
    """Return whether the kernel's harness for selftests can run one test: that of 6.1 runs all."""
    return "getopt(" in (find_source().path / SELFTESTS / HARNESS[1]).read_text()


@pytest.fixture(scope="module")
def whole() -> list[CompletedProcess]:
    """Return an empty list for the run of all tests."""
    return []


@pytest.mark.parametrize("name", selftests())
def test_selftest(guest: Guest, program: Path, name: str, whole: list[CompletedProcess]) -> None:
    if not whole and not runs_one_test():
        done = guest.run("timeout", str(WHOLE_LIMIT), str(program), limit=WHOLE_LIMIT + 10)
        whole.append(done)
    if whole:
        assert re.search(rf"^ok \d+ fsnotify\.{name}$", whole[0].stdout, re.MULTILINE)
        assert whole[0].status == 0, whole[0].stdout + whole[0].stderr
        return
    done = guest.run("timeout", str(LIMIT), str(program), "-t", name, limit=LIMIT + 10)
    assert done.status == 0, done.stdout + done.stderr
    assert "pass:1 fail:0" in done.stdout


if os.environ.get("FARWATCH_FLAVOUR") == "DEBUG":

    @pytest.mark.patch("events-kunit")
    def test_unit_tests_have_passed_at_boot(guest: Guest) -> None:
        results = guest.shell("cat /sys/kernel/debug/kunit/fuse_fsnotify/results")
        assert "fuse_fsnotify: pass:2 fail:0" in results
        assert "not ok" not in results
