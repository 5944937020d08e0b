# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that reports the guest tests to the scheduler: one line of JSON per event.

It is loaded with -p. FARWATCH_RECORD is the descriptor of the pipe to write to. The boot test runs
first, and if it fails no other test runs. Then the tests run in the order of their patches.
"""

import json
import os
import signal
from typing import Any

import pytest

BOOT_TEST = "test_boot.py::test_the_guest_boots"
DESCRIPTOR = "FARWATCH_RECORD"
#: In a test's user_properties: the number of its patch. guest-tests/conftest.py sets it.
PATCH = "patch"


def name_of(nodeid: str) -> str:
    """Return a test's name without the directory that all tests are in."""
    return nodeid.removeprefix("guest-tests/")


class TestReporter:
    """Writes one line for the collection, and two for each test."""

    def __init__(self, descriptor: int) -> None:
        # Not inherited: a guest that outlives pytest must not keep the pipe open.
        os.set_inheritable(descriptor, False)
        self.stream = os.fdopen(descriptor, "w", buffering=1)
        self.phases: list[pytest.TestReport] = []
        self.session: pytest.Session | None = None

    def write(self, **event: Any) -> None:
        """Write one line. If the reader has ended, stop the tests after the current one."""
        try:
            self.stream.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            if self.session is None:
                raise
            self.session.shouldstop = "the harness has ended"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests: the boot test, then by patch."""
        items.sort(
            key=lambda item: (
                name_of(item.nodeid) != BOOT_TEST,
                dict(item.user_properties).get(PATCH, 0),
            )
        )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Report how many tests will run."""
        self.session = session
        self.write(what="collected", count=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Report that a test starts."""
        self.phases = []
        self.write(what="started", name=name_of(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the reports of one test: set-up, call, teardown."""
        self.phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Report the result of a test; stop after a failed boot test."""
        failed = [report for report in self.phases if report.failed]
        self.write(
            what="finished",
            name=name_of(nodeid),
            patch=next((dict(report.user_properties)[PATCH] for report in self.phases), 0),
            status="failed"
            if failed
            else "skipped"
            if any(report.skipped for report in self.phases)
            else "passed",
            seconds=round(sum(report.duration for report in self.phases), 2),
            output="\n".join(failure_text(report) for report in failed),
        )
        if failed and name_of(nodeid) == BOOT_TEST and self.session:
            self.session.shouldfail = "the guest does not boot"


def failure_text(report: pytest.TestReport) -> str:
    """Return what pytest would print of a failure, with the captured output."""
    sections = (f"---- {title} ----\n{text}" for title, text in report.sections)
    return "\n".join([f"at {report.when}:", report.longreprtext, *sections])


def pytest_configure(config: pytest.Config) -> None:
    """Register the reporter, and let SIGINT interrupt the tests."""
    # The harness interrupts pytest with SIGINT, which a background job of a shell has ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(TestReporter(int(os.environ[DESCRIPTOR])), "farwatch-recorder")
