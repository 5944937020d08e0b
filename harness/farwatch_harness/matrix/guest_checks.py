# SPDX-License-Identifier: Apache-2.0
"""The checks in a guest: that it boots, and the tests. Both are one run of pytest, so that the
guest boots once."""

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

from farwatch_harness.matrix.check_outcome import Outcome
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.matrix.pytest_plugin import BOOT_TEST, DESCRIPTOR
from farwatch_harness.results import State, TestResult
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.util.errors import HarnessError

# Seconds without a word from pytest, after which it is ended: no single test may take nearly as
# long.
SILENCE_LIMIT = 600.0
STOP_LIMIT = 60.0
#: A kernel that fails nearly every test would take hours: so many are enough to see what is wrong.
MAX_FAILURES = 10
#: Bytes of one log that go into the results; the whole one is in build/report/logs.
LOG_LIMIT = 16_384
ALL_TESTS = "guest-tests"
ERROR_LINE = re.compile(r"^E\s+(\S.*)", re.MULTILINE)


class GuestRuns:
    """The guest checks of rows, of which several may be under way in threads; boot() first, then
    tests()."""

    def __init__(self, folder: Path, tell: Callable[[str], None], tests: str = ALL_TESTS) -> None:
        self.folder = folder
        self.tell = tell
        # What pytest is to run.
        self.wanted = tests
        # By the number of the row.
        self.runs: dict[int, GuestRun] = {}
        self.lock = threading.Lock()
        self.closed = False

    def boot(self, row: Row) -> Outcome:
        """The guest comes up with the share mounted, and its kernel has nothing to complain of."""
        with self.lock:
            if self.closed:
                raise HarnessError("interrupted")
            run = self.runs[row.number] = GuestRun(row, self.folder, self.tell, self.wanted)
        found = run.until_booted()
        if found is not None and found.state is State.PASSED:
            return Outcome(seconds=found.seconds)
        run.finish()
        output = found.output if found else run.last_words()
        reason = reason_of(output)
        return Outcome(reason, output, causes=frozenset({reason}), usable=False, logs=run.logs())

    def tests(self, row: Row) -> Outcome:
        """The tests that belong up to this row pass."""
        run = self.runs[row.number]
        status = run.finish()
        tests = tuple(run.results)
        failed = [test for test in tests if test.state is State.FAILED]
        reason = ""
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            reason = f"{failed[0].name}{more}: {reason_of(failed[0].output)}"
        elif status:
            reason = f"pytest failed ({status}): {subprocesses.last_words(run.last_words())}"
        causes = frozenset(test.name for test in failed) or frozenset({reason} - {""})
        return Outcome(reason, run.last_words(), causes=causes, tests=tests, logs=run.logs())

    def close(self) -> None:
        """Ends the runs that are under way; no more begin."""
        with self.lock:
            self.closed = True
        for run in self.runs.values():
            run.stop()


class GuestRun:
    """One pytest over the guest tests with the kernel of one row, and what it tells."""

    def __init__(self, row: Row, folder: Path, tell: Callable[[str], None], tests: str) -> None:
        self.tell = tell
        self.number = row.number
        self.place = paths.REPORT / "logs" / f"{row.number:02}"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.log = self.place / "pytest.log"
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
                env={**os.environ, **self.environment(row, folder), DESCRIPTOR: str(writer)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
                # Ctrl-C is for the matrix, which then has pytest end its guests.
                start_new_session=True,
            )
        os.close(writer)
        self.events = self.read_events()

    def environment(self, row: Row, folder: Path) -> dict[str, str]:
        """What tells the tests which kernel they are for; docs/harness.md says what a row runs."""
        return {
            "FARWATCH_PATCHES": str(row.number),
            "FARWATCH_SERIES": str(folder),
            "FARWATCH_SCOPE": "series" if row.last else "row",
            "FARWATCH_LOGS": str(self.place),
        }

    def read_events(self) -> Generator[dict[str, Any], None, None]:
        """What the recorder tells, until pytest ends or has been silent for too long."""
        with os.fdopen(self.reader, "rb", buffering=0) as pipe:
            rest = b""
            while True:
                if not select.select([pipe], [], [], SILENCE_LIMIT)[0]:
                    self.stop()
                    with self.log.open("a") as log:
                        log.write(
                            f"\nended: nothing was heard of {self.running} for"
                            f" {SILENCE_LIMIT:.0f} s\n"
                        )
                    return
                data = pipe.read(1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from (json.loads(line) for line in lines)

    def take(self) -> TestResult | None:
        """The next test that has ended; None when there will be no more."""
        for event in self.events:
            match event["what"]:
                case "collected":
                    self.count = event["count"]
                case "started":
                    self.running = event["name"]
                    self.tell(
                        f"{self.number}: test {len(self.results) + 1} of {self.count}:"
                        f" {self.running}"
                    )
                case "ended":
                    del event["what"]
                    found = TestResult(**{**event, "state": State(event["state"])})
                    self.running = ""
                    self.results.append(found)
                    return found
        return None

    def until_booted(self) -> TestResult | None:
        """The result of the test that the guest boots, which is the first; None when pytest ended
        without."""
        found = self.take()
        return found if found and found.name == BOOT_TEST else None

    def finish(self) -> int:
        """Waits for all tests and returns pytest's exit status."""
        while self.take():
            pass
        status = self.process.wait(STOP_LIMIT)
        if self.running:
            # pytest itself came to an end in this one.
            self.results.append(TestResult(self.running, 0, State.FAILED, 0.0, self.last_words()))
        return status

    def stop(self) -> None:
        """Has pytest end its guests, and ends it by force when it does not come to that."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def last_words(self) -> str:
        """The end of what pytest printed."""
        return end_of(self.log)

    def logs(self) -> dict[str, str]:
        """The consoles and the daemons' logs of this row."""
        return {
            path.name: end_of(path) for path in sorted(self.place.glob("*.log")) if path != self.log
        }


def end_of(path: Path) -> str:
    """The end of a log, with a word about what is left out."""
    data = path.read_bytes()
    if len(data) <= LOG_LIMIT:
        return data.decode(errors="replace")
    kept = data[-LOG_LIMIT:].partition(b"\n")[2]
    where = path.relative_to(paths.CHECKOUT) if path.is_relative_to(paths.CHECKOUT) else path
    return (
        f"[the first {len(data) - len(kept)} bytes are left out; all is in"
        f" {where}]\n{kept.decode(errors='replace')}"
    )


def reason_of(output: str) -> str:
    """The line of a failure's report that says most."""
    errors = ERROR_LINE.findall(output)
    if errors:
        return str(errors[0])
    lines = [
        line.strip()
        for line in output.splitlines()
        if line.strip() and not line.startswith(("at ", "----"))
    ]
    return lines[0] if lines else "pytest said nothing"
