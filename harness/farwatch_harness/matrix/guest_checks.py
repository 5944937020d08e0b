# SPDX-License-Identifier: Apache-2.0
"""The checks in a guest: the boot and the tests.

Both are one run of pytest, so that the guest boots once.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from farwatch_harness import report
from farwatch_harness.matrix.check_outcome import CheckOutcome
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST, DESCRIPTOR
from farwatch_harness.results import Status, TestResult
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.util.errors import HarnessError

# Seconds without a message from pytest, after which it is stopped. Every test has a shorter limit.
SILENCE_LIMIT = 600.0
STOP_LIMIT = 60.0
#: A kernel that fails nearly every test would take hours. 10 failures show what is wrong.
MAX_FAILURES = 10
#: Bytes of one log in the results. The whole log is in build/report/logs.
LOG_LIMIT = 16_384
ALL_TESTS = "guest-tests"
ERROR_LINE = re.compile(r"^E\s+(\S.*)", re.MULTILINE)


class GuestChecks:
    """The guest checks of all patches: call boot(), then tests(). Threads may run several patches.

    folder: the directory of the series.
    report_progress: receives one line when a test starts.
    tests: the tests, as pytest takes them.
    """

    def __init__(
        self, folder: Path, report_progress: Callable[[str], None], tests: str = ALL_TESTS
    ) -> None:
        self.folder = folder
        self.report_progress = report_progress
        self.wanted = tests
        # By the number of the patch.
        self.runs: dict[int, TestRun] = {}
        self.lock = threading.Lock()
        self.closed = False

    def boot(self, prefix: Prefix) -> CheckOutcome:
        """Check that the guest boots, mounts the share, and its kernel reports no problem."""
        with self.lock:
            if self.closed:
                raise HarnessError("interrupted")
            run = self.runs[prefix.number] = TestRun(
                prefix, self.folder, self.report_progress, self.wanted
            )
        found = run.run_boot_test()
        if found is not None and found.status is Status.PASSED:
            return CheckOutcome(seconds=found.seconds)
        run.finish()
        output = found.output if found else run.last_lines()
        reason = reason_of(output)
        return CheckOutcome(
            reason, output, causes=frozenset({reason}), usable=False, logs=run.logs()
        )

    def tests(self, prefix: Prefix) -> CheckOutcome:
        """Check that the tests of this prefix pass."""
        run = self.runs[prefix.number]
        status = run.finish()
        tests = tuple(run.results)
        failed = [test for test in tests if test.status is Status.FAILED]
        reason = ""
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            reason = f"{failed[0].name}{more}: {reason_of(failed[0].output)}"
        elif status:
            reason = f"pytest failed ({status}): {subprocesses.last_lines(run.last_lines())}"
        causes = frozenset(test.name for test in failed) or frozenset({reason} - {""})
        return CheckOutcome(reason, run.last_lines(), causes=causes, tests=tests, logs=run.logs())

    def close(self) -> None:
        """Stop the runs in progress, and refuse new ones."""
        with self.lock:
            self.closed = True
        for run in self.runs.values():
            run.stop()


class TestRun:
    """One run of pytest over the guest tests, on the kernel of one prefix."""

    def __init__(
        self, prefix: Prefix, folder: Path, report_progress: Callable[[str], None], tests: str
    ) -> None:
        self.report_progress = report_progress
        self.number = prefix.number
        self.log_folder = report.folder() / "logs" / f"{prefix.number:02}"
        shutil.rmtree(self.log_folder, ignore_errors=True)
        self.log_folder.mkdir(parents=True)
        self.log = self.log_folder / "pytest.log"
        self.results: list[TestResult] = []
        self.count = 0
        self.running = ""
        self.reader, writer = os.pipe()
        words = [
            sys.executable,
            "-m",
            "pytest",
            tests,
            "-p",
            "farwatch_harness.matrix.pytest_plugin",
        ]
        words += [f"--maxfail={MAX_FAILURES}", "-p", "no:cacheprovider"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words,
                cwd=paths.CHECKOUT,
                env={**os.environ, **self.variables(prefix, folder), DESCRIPTOR: str(writer)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
                # Ctrl-C interrupts the harness, which then interrupts pytest.
                start_new_session=True,
            )
        os.close(writer)
        self.events = self.read_events()

    def variables(self, prefix: Prefix, folder: Path) -> dict[str, str]:
        """Return the variables that choose kernel and tests; see docs/harness.md."""
        return {
            "FARWATCH_PATCHES": str(prefix.number),
            "FARWATCH_SERIES": str(folder),
            "FARWATCH_SCOPE": "series" if prefix.last else "patch",
            "FARWATCH_LOGS": str(self.log_folder),
        }

    def read_events(self) -> Generator[dict[str, Any], None, None]:
        """Yield the events of the pytest plugin, until pytest ends or its limit has passed."""
        with os.fdopen(self.reader, "rb", buffering=0) as pipe:
            rest = b""
            while True:
                if not select.select([pipe], [], [], SILENCE_LIMIT)[0]:
                    self.stop()
                    with self.log.open("a") as log:
                        log.write(
                            f"\nstopped: no message from pytest for {SILENCE_LIMIT:.0f} s,"
                            f" in {self.running or 'no test'}\n"
                        )
                    return
                data = pipe.read(1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from (json.loads(line) for line in lines)

    def next_result(self) -> TestResult | None:
        """Wait for the next test to finish and return its result; None after the last."""
        for event in self.events:
            match event["what"]:
                case "collected":
                    self.count = event["count"]
                case "started":
                    self.running = event["name"]
                    self.report_progress(
                        f"{self.number}: test {len(self.results) + 1} of {self.count}:"
                        f" {self.running}"
                    )
                case "finished":
                    del event["what"]
                    found = TestResult(**{**event, "status": Status(event["status"])})
                    self.running = ""
                    self.results.append(found)
                    return found
        return None

    def run_boot_test(self) -> TestResult | None:
        """Wait for the boot test, which is the first; None if pytest ended without it."""
        found = self.next_result()
        return found if found and found.name == BOOT_TEST else None

    def finish(self) -> int:
        """Wait for all tests and return pytest's exit status."""
        while self.next_result():
            pass
        status = self.process.wait(STOP_LIMIT)
        if self.running:
            # pytest itself ended in this test.
            self.results.append(TestResult(self.running, 0, Status.FAILED, 0.0, self.last_lines()))
        return status

    def stop(self) -> None:
        """Interrupt pytest, which then stops its guests; kill it at the limit."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def last_lines(self) -> str:
        """Return the end of pytest's output."""
        return end_of(self.log)

    def logs(self) -> dict[str, str]:
        """Return the ends of the consoles and of the daemons' logs, by name."""
        return {
            path.name: end_of(path)
            for path in sorted(self.log_folder.glob("*.log"))
            if path != self.log
        }


def end_of(path: Path) -> str:
    """Return the end of a log. Its first line says how much is left out."""
    data = path.read_bytes()
    if len(data) <= LOG_LIMIT:
        return data.decode(errors="replace")
    end = data[-LOG_LIMIT:].partition(b"\n")[2]
    where = path.relative_to(paths.CHECKOUT) if path.is_relative_to(paths.CHECKOUT) else path
    return (
        f"[the first {len(data) - len(end)} bytes are left out; all is in"
        f" {where}]\n{end.decode(errors='replace')}"
    )


def reason_of(output: str) -> str:
    """Return the line of a failure's report that names the error."""
    errors = ERROR_LINE.findall(output)
    if errors:
        return str(errors[0])
    lines = [
        line.strip()
        for line in output.splitlines()
        if line.strip() and not line.startswith(("at ", "----"))
    ]
    return lines[0] if lines else "pytest printed nothing"
