# SPDX-License-Identifier: Apache-2.0
"""A plugin for pytest: tells the matrix, line by line as JSON, what becomes of the guest tests.

It is loaded with -p; FARWATCH_RECORD is the descriptor of the pipe to write to. The test that the
guest boots comes first, and nothing after it when it fails; then the tests come in the order of the
patches that they belong to.
"""

import json
import os
import signal
from typing import Any

import pytest

BOOT_TEST = "test_boot.py::test_the_guest_boots"
DESCRIPTOR = "FARWATCH_RECORD"
#: Of the test's user_properties: the number of the patch that it belongs to, set by
#: guest-tests/conftest.py.
PATCH = "patch"


def name_of(nodeid: str) -> str:
    """A test's name without the directory that all are in."""
    return nodeid.removeprefix("guest-tests/")


class Recorder:
    """Writes one line for the collection, and two for each test."""

    def __init__(self, descriptor: int) -> None:
        # For us alone: a guest that is left over must not keep the pipe open.
        os.set_inheritable(descriptor, False)
        self.stream = os.fdopen(descriptor, "w", buffering=1)
        self.phases: list[pytest.TestReport] = []
        self.session: pytest.Session | None = None

    def tell(self, **facts: Any) -> None:
        """Writes one line. When nobody reads any more the tests end after the present one, and so
        do their guests."""
        try:
            self.stream.write(json.dumps(facts) + "\n")
        except BrokenPipeError:
            if self.session is None:
                raise
            self.session.shouldstop = "the matrix is gone"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(
            key=lambda item: (
                name_of(item.nodeid) != BOOT_TEST,
                dict(item.user_properties).get(PATCH, 0),
            )
        )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.session = session
        self.tell(what="collected", count=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.phases = []
        self.tell(what="started", name=name_of(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        failed = [report for report in self.phases if report.failed]
        self.tell(
            what="ended",
            name=name_of(nodeid),
            patch=next((dict(report.user_properties)[PATCH] for report in self.phases), 0),
            state="failed"
            if failed
            else "absent"
            if any(report.skipped for report in self.phases)
            else "passed",
            seconds=round(sum(report.duration for report in self.phases), 2),
            output="\n".join(told(report) for report in failed),
        )
        if failed and name_of(nodeid) == BOOT_TEST and self.session:
            self.session.shouldfail = "the guest does not boot"


def told(report: pytest.TestReport) -> str:
    """What pytest would print of a failure, with the captured output."""
    sections = (f"---- {title} ----\n{text}" for title, text in report.sections)
    return "\n".join([f"at {report.when}:", report.longreprtext, *sections])


def pytest_configure(config: pytest.Config) -> None:
    # By it the matrix has us end our guests, also where it was started with it ignored, as jobs of
    # scripts are.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Recorder(int(os.environ[DESCRIPTOR])), "farwatch-recorder")
