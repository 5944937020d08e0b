# SPDX-License-Identifier: Apache-2.0
"""The sandbox, entered by processes of their own.

The tests check what can be reached from inside, by paths and by the interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from farwatchd import event_loop

CONFINED = pytest.mark.parametrize(
    "sandbox", ["NAMESPACE", pytest.param("CHROOT", marks=pytest.mark.root)]
)
TIMEOUT = 20
PRELUDE = """
import errno, os, sys, threading, traceback
from farwatchd.event_loop import Loop
from pathlib import Path
from farwatchd.sandbox.enter import SandboxError, enter
from farwatchd.sandbox.options import Sandbox
"""


def _inside(sandbox: str, shared: Path, code: str) -> str:
    """Run ``code`` in a process that has entered the sandbox; return both of its outputs."""
    script = (
        f"{PRELUDE}\nroot = enter(Sandbox.{sandbox},"
        f" Path({str(shared)!r}))\n{textwrap.dedent(code)}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.stdout


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a shared directory with a file in it and one beside it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "inside").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    return shared


@CONFINED
def test_root_is_the_shared_directory_and_nothing_is_above_it(sandbox: str, shared: Path) -> None:
    printed = _inside(
        sandbox,
        shared,
        """
        print(sorted(os.listdir("/")), sorted(os.listdir("/..")),
              os.stat("/").st_ino == os.fstat(root).st_ino)
        for path in ("outside", "../outside", "../../etc/passwd"):
            try:
                os.close(os.open(path, os.O_PATH, dir_fd=root))
            except FileNotFoundError:
                print("none")
        """,
    )
    assert printed.splitlines() == ["['inside'] ['inside'] True", "none", "none", "none"]


@pytest.mark.root
def test_descriptors_are_reached_through_the_current_directory(shared: Path) -> None:
    code = """
    fd = os.open("inside", os.O_PATH, dir_fd=root)
    print(os.read(os.open(str(fd), os.O_RDONLY), 100))
    """
    for sandbox in ("NAMESPACE", "CHROOT", "NONE"):
        assert _inside(sandbox, shared, code) == "b'inside'\n"


def test_nothing_of_proc_is_above_the_descriptors(shared: Path) -> None:
    code = """
    print(sorted(os.listdir("..")) == sorted(os.listdir(".")))
    for path in ("../status", "../../1/root", "../root", "../cwd"):
        print(os.path.lexists(path))
    """
    assert _inside("NAMESPACE", shared, code).split() == ["True"] + ["False"] * 4


@CONFINED
def test_time_zone_is_not_read_from_the_share(sandbox: str, shared: Path) -> None:
    (shared / "etc").mkdir()
    (shared / "etc" / "localtime").write_bytes(b"TZif2" + bytes(15) + bytes(24))
    code = """
    import time
    before = os.stat("etc/localtime", dir_fd=root).st_atime_ns
    os.utime("etc/localtime", ns=(0, 0), dir_fd=root)
    time.localtime()
    time.tzset()
    print(os.stat("etc/localtime", dir_fd=root).st_atime_ns)
    """
    assert _inside(sandbox, shared, code) == "0\n"


@CONFINED
def test_no_module_comes_from_the_share(sandbox: str, shared: Path) -> None:
    for entry in sys.path:
        if not entry or not Path(entry).is_absolute():
            continue
        planted = shared / Path(entry).relative_to("/")
        planted.mkdir(parents=True, exist_ok=True)
        (planted / "planted.py").write_text("print('the guest runs code in the daemon')\n")
    printed = _inside(sandbox, shared, "import planted")
    assert printed.splitlines()[-1] == "ModuleNotFoundError: No module named 'planted'"
    assert "the guest runs code" not in printed


@CONFINED
def test_traceback_has_no_source_lines_of_the_share(sandbox: str, shared: Path) -> None:
    source = shared / Path(traceback_source()).relative_to("/")
    source.parent.mkdir(parents=True)
    source.write_text("the guest's words\n" * 5000)
    printed = _inside(
        sandbox,
        shared,
        """
        for attempt in range(2):
            try:
                Path("none").read_text()
            except FileNotFoundError:
                if attempt:
                    raise
                traceback.print_exc()
        """,
    )
    assert printed.count("FileNotFoundError: [Errno 2] No such file or directory: 'none'") == 2
    # In Python 3.13 it is pathlib/_local.py.
    assert f'File "{Path(traceback_source()).parent}' in printed
    assert "the guest's words" not in printed


@CONFINED
def test_hooks_of_the_interpreter_read_no_source_of_the_share(sandbox: str, shared: Path) -> None:
    source = shared / Path(event_loop.__file__).relative_to("/")
    source.parent.mkdir(parents=True)
    source.write_text("the guest's words\n" * 5000)
    printed = _inside(
        sandbox,
        shared,
        """
        class Broken:
            def __del__(self):
                Loop.remove(None, 1)

        Broken()
        thread = threading.Thread(target=Loop.remove, args=(None, 1))
        thread.start()
        thread.join()
        os.close(2)
        Loop.remove(None, 1)
        """,
    )
    assert printed.count("AttributeError: 'NoneType' object has no attribute '_callbacks'") == 2
    assert "the guest's words" not in printed


def traceback_source() -> str:
    """Return the file that the traceback names."""
    file = sys.modules[Path.__module__].__file__
    assert file is not None
    return file


def test_mounts_of_the_sandbox_stay_in_it(shared: Path) -> None:
    # Other tests mount file systems meanwhile, below their own directories.
    mounts = Path("/proc/self/mountinfo")
    before = set(mounts.read_text().splitlines())
    assert _inside("NAMESPACE", shared, "print(len(os.listdir('/')))") == "1\n"
    new = set(mounts.read_text().splitlines()) - before
    assert [line for line in new if str(shared) in line] == []


@CONFINED
def test_whole_file_system_can_be_shared(sandbox: str, shared: Path) -> None:
    printed = _inside(
        sandbox, Path("/"), f"print(os.stat({str(shared)[1:]!r}, dir_fd=root).st_ino)"
    )
    assert printed == f"{shared.stat().st_ino}\n"


def test_missing_directory_is_one_line_for_the_user(shared: Path) -> None:
    printed = _inside("NAMESPACE", shared / "none", "")
    assert "SandboxError: cannot open the shared directory" in printed.splitlines()[-1]
