# SPDX-License-Identifier: Apache-2.0
"""The guest checks of a row, over a pytest that really runs: on made-up tests, which need no
guest."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix import guest_checks
from farwatch_harness.matrix.check_outcome import Outcome
from farwatch_harness.matrix.guest_checks import GuestRuns
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST
from farwatch_harness.results import State
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

SERIES = tuple(Patch(number, f"000{number}-patch.patch", b"") for number in (1, 2))
ROW = Row(SERIES[:1], SERIES)
CONFTEST = """
import os, pathlib, pytest
def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("patch", int(item.name[-1]) if item.name[-1].isdigit() else 0))
@pytest.fixture(autouse=True)
def console(request):
    log = pathlib.Path(os.environ["FARWATCH_LOGS"]) / "guest-1-console.log"
    log.write_text("x" * 80 + "\\n" + "y\\n" * 20000)
"""
BOOT = "def test_the_guest_boots():\n    {}\n"
Made = Callable[..., GuestRuns]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """made(other="...", boot="...") is a checkout with these tests."""
    monkeypatch.setattr("farwatch_harness.util.paths.CHECKOUT", tmp_path)
    monkeypatch.setattr("farwatch_harness.util.paths.REPORT", tmp_path / "build" / "report")

    def make(other: str, boot: str = "pass") -> GuestRuns:
        folder = tmp_path / "guest-tests"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_boot.py").write_text(BOOT.format(boot))
        # Before the boot by its name.
        (folder / "test_a.py").write_text(other)
        return GuestRuns(tmp_path / "series", lambda text: None)

    return make


def both(runs: GuestRuns) -> tuple[Outcome, Outcome]:
    return runs.boot(ROW), runs.tests(ROW)


def test_the_boot_comes_first_and_the_tests_in_the_order_of_their_patches(made: Made) -> None:
    boot, tests = both(made("def test_b2(): pass\ndef test_c1(): pass\n"))
    assert boot.passed and tests.passed
    assert [(test.name, test.patch, test.state) for test in tests.tests] == [
        ("test_boot.py::test_the_guest_boots", 0, State.PASSED),
        ("test_a.py::test_c1", 1, State.PASSED),
        ("test_a.py::test_b2", 2, State.PASSED),
    ]


def test_the_tests_are_told_which_kernel_they_are_for(made: Made, tmp_path: Path) -> None:
    names = ("FARWATCH_PATCHES", "FARWATCH_SERIES", "FARWATCH_SCOPE")
    text = (
        "import os\ndef test_a():\n    raise OSError(' '.join(os.environ[name] for name in"
        f" {names}))\n"
    )
    _boot, tests = both(made(text))
    assert tests.reason == f"test_a.py::test_a: OSError: 1 {tmp_path}/series row"


def test_a_guest_that_does_not_boot_blocks_the_tests(made: Made) -> None:
    runs = made("def test_a(): pass\n", boot="print('console'); raise OSError('Kernel panic')")
    boot = runs.boot(ROW)
    assert boot.reason == "OSError: Kernel panic" and not boot.usable
    assert "console" in boot.output and "guest-1-console.log" in boot.logs
    assert [test.name for test in runs.runs[1].results] == ["test_boot.py::test_the_guest_boots"]


def test_a_test_that_fails_is_named_with_its_reason_and_its_output(made: Made) -> None:
    _boot, tests = both(
        made("def test_a1():\n    print('seen')\n    assert 1 == 2, 'the event is missing'\n")
    )
    assert tests.reason == "test_a.py::test_a1: AssertionError: the event is missing"
    assert tests.causes == {"test_a.py::test_a1"} and tests.usable
    assert "seen" in tests.tests[-1].output and "1 == 2" in tests.tests[-1].output


def test_a_fixture_that_fails_after_the_test_fails_it(made: Made) -> None:
    text = (
        "import pytest\n@pytest.fixture\ndef f():\n    yield\n    raise OSError('left over')\ndef"
        " test_a(f): pass\n"
    )
    _boot, tests = both(made(text))
    assert tests.reason == "test_a.py::test_a: OSError: left over"


def test_a_kernel_that_fails_everything_is_given_up_after_some(made: Made) -> None:
    _boot, tests = both(
        made("import pytest\n@pytest.mark.parametrize('n', range(99))\ndef test_a(n): assert 0\n")
    )
    assert sum(test.state is State.FAILED for test in tests.tests) == guest_checks.MAX_FAILURES
    assert f"(and {guest_checks.MAX_FAILURES - 1} more)" in tests.reason


def test_a_pytest_that_dies_is_a_failure_of_the_test_that_it_died_in(made: Made) -> None:
    _boot, tests = both(made("import os\ndef test_a(): os._exit(3)\n"))
    assert tests.tests[-1].name == "test_a.py::test_a" and tests.tests[-1].state is State.FAILED
    assert tests.causes == {"test_a.py::test_a"}


def test_tests_that_cannot_be_collected_are_a_boot_that_fails(made: Made) -> None:
    boot = made("import nothing_of_this_name\n").boot(ROW)
    assert boot.reason == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


def test_a_test_that_hangs_is_ended(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_checks, "SILENCE_LIMIT", 2.0)
    _boot, tests = both(made("import time\ndef test_a(): time.sleep(60)\n"))
    assert tests.causes == {"test_a.py::test_a"}
    assert "nothing was heard of test_a.py::test_a for 2 s" in tests.output


def test_a_long_log_is_cut_and_says_so(made: Made) -> None:
    _boot, tests = both(made("def test_a(): pass\n"))
    log = tests.logs["guest-1-console.log"]
    assert log.startswith("[the first ") and "build/report/logs/01/guest-1-console.log]" in log
    assert (
        len(log) < guest_checks.LOG_LIMIT + 200
        and log.endswith("y\n")
        and "x" not in log.partition("\n")[2]
    )


@pytest.fixture
def on_interrupt() -> Iterator[Callable[[Any], object]]:
    """on_interrupt(handler) for SIGINT, until the test ends: what started the tests may have it
    ignored."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_an_interruption_ends_the_tests_that_are_under_way(
    made: Made, on_interrupt: Callable[[Any], object]
) -> None:
    on_interrupt(signal.default_int_handler)
    runs = made("import time\ndef test_a(): time.sleep(60)\n")
    assert runs.boot(ROW).passed
    # Ctrl-C comes to the matrix alone.
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        runs.tests(ROW)
    runs.close()
    assert runs.runs[1].process.returncode is not None
    with pytest.raises(HarnessError, match="interrupted"):
        runs.boot(ROW)


def test_the_tests_end_in_order_where_interrupts_are_ignored(
    made: Made, on_interrupt: Callable[[Any], object], tmp_path: Path
) -> None:
    on_interrupt(signal.SIG_IGN)
    os.mkfifo(tmp_path / "begun")
    begun = os.open(tmp_path / "begun", os.O_RDONLY | os.O_NONBLOCK)
    text = """import pathlib, time
def test_a():
    try:
        pathlib.Path("begun").write_text("x")
        time.sleep(60)
    finally:
        pathlib.Path("ended").touch()
"""
    runs = made(text)
    assert runs.boot(ROW).passed
    assert select.select([begun], [], [], 30)[0], "the test has not begun"
    os.close(begun)
    runs.close()
    assert (tmp_path / "ended").exists()


def test_rows_may_be_under_way_at_once(made: Made) -> None:
    runs = made("import os\ndef test_a(): raise OSError(os.environ['FARWATCH_PATCHES'])\n")
    rows = [Row(SERIES[:number], SERIES) for number in (0, 1, 2)]
    assert [runs.boot(row).passed for row in rows] == [True] * 3
    assert [runs.tests(row).reason for row in reversed(rows)] == [
        f"test_a.py::test_a: OSError: {number}" for number in (2, 1, 0)
    ]


def test_the_boot_alone_can_be_asked_for(made: Made) -> None:
    made("def test_a(): assert 0\n")
    runs = GuestRuns(paths.CHECKOUT / "series", lambda text: None, f"guest-tests/{BOOT_TEST}")
    assert runs.boot(ROW).passed and runs.tests(ROW).passed


def test_tests_end_in_order_when_the_matrix_was_killed(made: Made, tmp_path: Path) -> None:
    text = """import pathlib, pytest
@pytest.fixture(scope="session", autouse=True)
def guest():
    yield
    pathlib.Path("ended").touch()
@pytest.mark.parametrize("n", range(50))
def test_a(n):
    with pathlib.Path("ran").open("a") as ran:
        ran.write("x")
"""
    runs = made(text)
    assert runs.boot(ROW).passed
    run = runs.runs[1]
    # What the end of the process does to the pipe.
    run.events.close()
    assert run.process.wait(30) != 0
    assert (tmp_path / "ended").exists()
    assert len((tmp_path / "ran").read_text()) < 5
    assert "the matrix is gone" in run.log.read_text()
