# SPDX-License-Identifier: Apache-2.0
"""The guest checks of a patch: a real pytest runs tests that need no guest."""

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
from farwatch_harness.matrix.check_outcome import CheckOutcome
from farwatch_harness.matrix.guest_checks import GuestChecks
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST
from farwatch_harness.results import Status
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError

SERIES = tuple(Patch(number, f"000{number}-patch.patch", b"", name="patch") for number in (1, 2))
PREFIX = Prefix(SERIES[:1], SERIES)
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
MakeChecks = Callable[..., GuestChecks]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeChecks:
    """Return a function that makes a checkout with the given tests."""
    monkeypatch.setattr("farwatch_harness.util.paths.CHECKOUT", tmp_path)
    monkeypatch.setattr("farwatch_harness.util.paths.REPORT", tmp_path / "build" / "report")

    def make(other: str, boot: str = "pass") -> GuestChecks:
        folder = tmp_path / "guest-tests"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_boot.py").write_text(BOOT.format(boot))
        # Before the boot by its name.
        (folder / "test_a.py").write_text(other)
        return GuestChecks(tmp_path / "series", lambda text: None)

    return make


def both(runs: GuestChecks) -> tuple[CheckOutcome, CheckOutcome]:
    return runs.boot(PREFIX), runs.tests(PREFIX)


def test_boot_test_runs_first_then_tests_in_patch_order(made: MakeChecks) -> None:
    boot, tests = both(made("def test_b2(): pass\ndef test_c1(): pass\n"))
    assert boot.passed and tests.passed
    assert [(test.name, test.patch, test.status) for test in tests.tests] == [
        ("test_boot.py::test_the_guest_boots", 0, Status.PASSED),
        ("test_a.py::test_c1", 1, Status.PASSED),
        ("test_a.py::test_b2", 2, Status.PASSED),
    ]


def test_environment_variables_choose_kernel_and_tests(made: MakeChecks, tmp_path: Path) -> None:
    names = ("FARWATCH_PATCHES", "FARWATCH_SERIES", "FARWATCH_SCOPE")
    text = (
        "import os\ndef test_a():\n    raise OSError(' '.join(os.environ[name] for name in"
        f" {names}))\n"
    )
    _boot, tests = both(made(text))
    assert tests.reason == f"test_a.py::test_a: OSError: 1 {tmp_path}/series patch"


def test_failed_boot_leaves_nothing_usable(made: MakeChecks) -> None:
    runs = made("def test_a(): pass\n", boot="print('console'); raise OSError('Kernel panic')")
    boot = runs.boot(PREFIX)
    assert boot.reason == "OSError: Kernel panic" and not boot.usable
    assert "console" in boot.output and "guest-1-console.log" in boot.logs
    assert [test.name for test in runs.runs[1].results] == ["test_boot.py::test_the_guest_boots"]


def test_failed_test_is_reported_with_reason_and_output(made: MakeChecks) -> None:
    _boot, tests = both(
        made("def test_a1():\n    print('seen')\n    assert 1 == 2, 'the event is missing'\n")
    )
    assert tests.reason == "test_a.py::test_a1: AssertionError: the event is missing"
    assert tests.causes == {"test_a.py::test_a1"} and tests.usable
    assert "seen" in tests.tests[-1].output and "1 == 2" in tests.tests[-1].output


def test_failure_in_fixture_teardown_fails_the_test(made: MakeChecks) -> None:
    text = (
        "import pytest\n@pytest.fixture\ndef f():\n    yield\n    raise OSError('left over')\ndef"
        " test_a(f): pass\n"
    )
    _boot, tests = both(made(text))
    assert tests.reason == "test_a.py::test_a: OSError: left over"


def test_pytest_stops_after_max_failures(made: MakeChecks) -> None:
    _boot, tests = both(
        made("import pytest\n@pytest.mark.parametrize('n', range(99))\ndef test_a(n): assert 0\n")
    )
    assert sum(test.status is Status.FAILED for test in tests.tests) == guest_checks.MAX_FAILURES
    assert f"(and {guest_checks.MAX_FAILURES - 1} more)" in tests.reason


def test_exit_of_pytest_fails_the_running_test(made: MakeChecks) -> None:
    _boot, tests = both(made("import os\ndef test_a(): os._exit(3)\n"))
    assert tests.tests[-1].name == "test_a.py::test_a" and tests.tests[-1].status is Status.FAILED
    assert tests.causes == {"test_a.py::test_a"}


def test_collection_error_fails_the_boot_check(made: MakeChecks) -> None:
    boot = made("import nothing_of_this_name\n").boot(PREFIX)
    assert boot.reason == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


def test_hanging_test_is_stopped_at_the_limit(
    made: MakeChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = made("import time\ndef test_a(): time.sleep(60)\n")

    def shorten_limit(text: str) -> None:
        # Not before the test hangs: pytest takes seconds to start on a busy machine.
        if "test_a" in text:
            monkeypatch.setattr(guest_checks, "SILENCE_LIMIT", 1.0)

    runs.report_progress = shorten_limit
    _boot, tests = both(runs)
    assert tests.causes == {"test_a.py::test_a"}
    assert "no message from pytest for 1 s, in test_a.py::test_a" in tests.output


def test_long_log_is_truncated_with_a_note(made: MakeChecks) -> None:
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
    """Yield a function that sets the handler of SIGINT until the test ends.

    The program that started pytest may have it ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_interruption_stops_the_running_tests(
    made: MakeChecks, on_interrupt: Callable[[Any], object]
) -> None:
    on_interrupt(signal.default_int_handler)
    runs = made("import time\ndef test_a(): time.sleep(60)\n")
    assert runs.boot(PREFIX).passed
    # Ctrl-C goes to the harness alone.
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        runs.tests(PREFIX)
    runs.close()
    assert runs.runs[1].process.returncode is not None
    with pytest.raises(HarnessError, match="interrupted"):
        runs.boot(PREFIX)


def test_tests_stop_cleanly_though_sigint_was_ignored(
    made: MakeChecks, on_interrupt: Callable[[Any], object], tmp_path: Path
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
    assert runs.boot(PREFIX).passed
    assert select.select([begun], [], [], 30)[0], "the test has not begun"
    os.close(begun)
    runs.close()
    assert (tmp_path / "ended").exists()


def test_several_patches_may_be_tested_concurrently(made: MakeChecks) -> None:
    runs = made("import os\ndef test_a(): raise OSError(os.environ['FARWATCH_PATCHES'])\n")
    prefixes = [Prefix(SERIES[:number], SERIES) for number in (0, 1, 2)]
    assert [runs.boot(prefix).passed for prefix in prefixes] == [True] * 3
    assert [runs.tests(prefix).reason for prefix in reversed(prefixes)] == [
        f"test_a.py::test_a: OSError: {number}" for number in (2, 1, 0)
    ]


def test_boot_test_can_run_alone(made: MakeChecks) -> None:
    made("def test_a(): assert 0\n")
    runs = GuestChecks(paths.CHECKOUT / "series", lambda text: None, f"guest-tests/{BOOT_TEST}")
    assert runs.boot(PREFIX).passed and runs.tests(PREFIX).passed


def test_tests_stop_cleanly_when_the_harness_was_killed(made: MakeChecks, tmp_path: Path) -> None:
    text = """import pathlib, pytest, time
@pytest.fixture(scope="session", autouse=True)
def guest():
    yield
    pathlib.Path("ended").touch()
@pytest.mark.parametrize("n", range(50))
def test_a(n):
    end = time.monotonic() + 30
    while n and not pathlib.Path("killed").exists():
        assert time.monotonic() < end, "the harness was not killed"
        time.sleep(0.01)
    with pathlib.Path("ran").open("a") as ran:
        ran.write("x")
"""
    runs = made(text)
    assert runs.boot(PREFIX).passed
    run = runs.runs[1]
    # What the end of the process does to the pipe, while the second test waits for it.
    run.events.close()
    (tmp_path / "killed").touch()
    assert run.process.wait(30) != 0
    assert (tmp_path / "ended").exists()
    assert len((tmp_path / "ran").read_text()) < 5
    assert "the harness has ended" in run.log.read_text()
