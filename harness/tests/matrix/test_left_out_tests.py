# SPDX-License-Identifier: Apache-2.0
"""The rules for guest tests that do not hold for a kernel."""

import os
import subprocess
import sys

import pytest
from farwatch_harness.kernel import versions
from farwatch_harness.matrix.left_out_tests import LeftOut
from farwatch_harness.util import paths

RULE = LeftOut("why", ("remote",), ("overflow",), ("test_one.py::test_a_*",))


@pytest.mark.parametrize(
    ("name", "patches", "mode", "left_out"),
    [
        ("test_one.py::test_a_b", set(), None, True),
        ("test_one.py::test_b", set(), "others", False),
        ("test_one.py::test_b", {"overflow"}, "others", True),
        ("test_one.py::test_b", {"base"}, "remote", True),
    ],
)
def test_rule_leaves_out_by_name_patch_or_mode(
    name: str, patches: set[str], mode: str | None, left_out: bool
) -> None:
    assert RULE.leaves_out(name, patches, mode) is left_out


def test_what_does_not_exist_is_a_problem() -> None:
    def problems(name: str) -> list[str]:
        return list(RULE.problems([name], {"overflow"}, {"remote"}))

    assert problems("test_one.py::test_a_b") == []
    assert problems("test_one.py::test_b") == ["no test is called test_one.py::test_a_*"]
    assert problems("test_two.py::test_b") == []
    assert len(list(RULE.problems([], {"renamed"}, {"others"}))) == 2


def test_guest_tests_have_all_that_the_rules_name() -> None:
    """conftest.py ends the collection otherwise."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "guest-tests"]
    done = subprocess.run(command, cwd=paths.CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_rules_of_a_version_hold_for_that_version_only() -> None:
    files = {path.stem for path in (paths.CHECKOUT / "guest-tests").glob("linux-*.toml")}
    assert files <= {version.folder.name for version in versions.VERSIONS}
    collected = {}
    for name in ("6.12", "6.1"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", "guest-tests/test_queues.py"],
            cwd=paths.CHECKOUT,
            env={**os.environ, versions.VARIABLE: name},
            capture_output=True,
            text=True,
            check=False,
        )
        collected[name] = "test_each_cpu_uses_its_own_request_queue" in done.stdout
    assert collected == {"6.12": True, "6.1": False}
